"""The recipe: its sections as typed, frozen settings, and the messages for its mistakes."""
