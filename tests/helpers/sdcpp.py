"""stable-diffusion.cpp's own loader as an oracle: what it detects in a denoiser's file, and which weights it refuses.

Its program `sd-cli` (of August 2026) is named by `CONDISTILL_SDCPP`; tests are skipped without it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

PROGRAM = "CONDISTILL_SDCPP"
_SECONDS = 120.0


@dataclass(frozen=True)
class Loaded:
    """What the loader reports."""

    version: str
    """Kind of model that was detected."""
    problems: tuple[str, ...]
    """Lines about weights of the denoiser that are missing or of another shape."""


def write_shapes(file: Path, weights: Mapping[str, torch.Tensor]) -> Path:
    """Write a float16 file of these names and shapes, whose values take no space on the disk."""
    header, end = {}, 0
    for name, each in weights.items():
        start, end = end, end + 2 * each.numel()
        header[name] = {"dtype": "F16", "shape": list(each.shape), "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(len(content).to_bytes(8, "little") + content)
        opened.truncate(8 + len(content) + end)
    return file


def load_denoiser(folder: Path, weights: Mapping[str, torch.Tensor]) -> Loaded:
    """Load a denoiser of which the names and shapes count; skips the test without the program."""
    program = os.environ.get(PROGRAM)
    if not program:
        pytest.skip(f"set {PROGRAM} to the program sd-cli of stable-diffusion.cpp")
    denoiser, vae = write_shapes(folder / "denoiser.safetensors", weights), folder / "vae.safetensors"
    if not vae.exists():
        write_shapes(vae, _autoencoder())
    command = [program, "--diffusion-model", str(denoiser), "--vae", str(vae), "-p", "", "--steps", "1", "-v", "--mmap"]
    command += ["-H", "64", "-W", "64", "-t", "1", "-o", str(folder / "image.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    lines = (done.stdout + done.stderr).splitlines()  # it stops later for want of text encoders
    version = next((line.partition("Version: ")[2].strip() for line in lines if "Version: " in line), "")
    return Loaded(version, tuple(line for line in lines if "Diffusion model tensor" in line))


def _autoencoder() -> Mapping[str, torch.Tensor]:
    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).state_dict()
