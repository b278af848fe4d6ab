"""How well a student draws: judged attributes, Fréchet distance, distance to the teacher, size and speed."""
