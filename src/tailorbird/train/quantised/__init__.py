"""Training a network as its quantised file computes: places, fake quantisation, one entry point."""
