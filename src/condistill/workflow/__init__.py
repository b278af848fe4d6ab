"""The stages in order, what is checked before them, and many runs in one table."""
