"""Full-size teachers as configs alone, written from their published hyper-parameters."""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).parents[1] / "data"
SIZES = {
    "sd14": ("unet", 859_520_964, (4, 64, 64), 77),
    "sd21": ("unet", 865_910_724, (4, 96, 96), 77),
    "sdxl": ("unet", 2_567_463_684, (4, 128, 128), 77),
    "pixart_sigma": ("transformer", 610_856_096, (4, 128, 128), 300),
    "sd35_medium": ("transformer", 2_243_171_520, (16, 128, 128), 333),
    "flux_dev": ("transformer", 11_901_408_320, (16, 128, 128), 512),
    "sana_1600m": ("transformer", 1_604_462_752, (32, 32, 32), 300),
}
"""Denoiser and its parameters (as the released weights have), latents, tokens of text."""
