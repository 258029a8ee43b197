"""Tailorbird: one trained network in, one measured network per deployment target out."""
