"""Students: smaller denoisers of the teacher's own class, and the layers in which they are compared with it."""
