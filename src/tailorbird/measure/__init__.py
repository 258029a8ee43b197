"""What networks cost: counted and timed."""
