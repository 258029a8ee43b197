"""Training schemes of supernets, each one object behind one protocol."""
