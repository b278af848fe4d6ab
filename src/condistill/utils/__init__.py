"""Helpers that know nothing of diffusion: files, hashes, random numbers, progress, devices."""
