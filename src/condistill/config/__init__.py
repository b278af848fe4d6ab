"""The recipe: its sections, typed and frozen, and the messages for every mistake in it."""
