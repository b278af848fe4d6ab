"""Helpers that are independent of diffusion: files, hashes, random numbers, progress, devices."""
