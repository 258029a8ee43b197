"""Training: one loop for students and teachers, its recipe, losses, and evaluation."""
