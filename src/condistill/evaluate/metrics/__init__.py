"""Metrics, one file each, and their registry."""
