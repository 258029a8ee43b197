"""Choosing candidates: exact, annealing, random; fronts."""
