"""Scores of channels and of layers, measured over cached latents: which of them a student keeps."""
