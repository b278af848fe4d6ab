"""A run: its directory, and what its stages share."""
