"""Evaluation of teacher and students: generation, metrics, size and speed, and their records."""
