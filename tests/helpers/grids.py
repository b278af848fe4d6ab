"""Previews of a training, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from condistill.distill.previews import RECORD_NAME, PreviewFolder, PreviewPrompt, PreviewRecord


def write_previews(path: Path, steps: Sequence[int], *, side: int = 8) -> PreviewFolder:
    """Write grids of two prompts that contain markup, and return their folder."""
    path.mkdir(parents=True, exist_ok=True)
    prompts = tuple(PreviewPrompt(split=split, prompt=f"<b>a {split} prompt</b>") for split in ("seen", "unseen"))
    record = PreviewRecord(prompts=prompts, height=side, width=side, num_inference_steps=8, guidance_scale=7.5)
    record.write(path / RECORD_NAME)
    folder = PreviewFolder(path)
    for step in steps:
        Image.new("RGB", (2 * side + 4, 2 * side + 4), (step % 256, 0, 0)).save(folder.file(step))
    return folder
