"""Kinds of layers: each one a record of all that is known of it, in a file of its own."""
