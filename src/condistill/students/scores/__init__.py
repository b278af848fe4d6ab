"""Scores of channels and layers, measured on calibration batches: they choose what a student keeps."""
