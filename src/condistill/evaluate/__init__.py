"""How well a student draws: classified attributes, Fréchet distance, distance to the teacher, size and speed."""
