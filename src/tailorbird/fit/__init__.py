"""From candidates and targets to students: one path, whatever the candidates are made of."""
