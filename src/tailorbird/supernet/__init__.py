"""Supernets: their spaces of architectures, what each architecture costs, official formats."""
