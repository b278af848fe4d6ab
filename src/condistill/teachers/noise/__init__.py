"""Noise schedules: diffusion and flow matching, and the timesteps of a solver."""
