"""The record of re-indexed LoRAs, `lora.json`."""

from __future__ import annotations

from typing import Literal

from condistill.utils.record import Record, RecordFile

LORA_RECORD_NAME = "lora.json"


class Spread(Record):
    """A number that was measured on several inputs."""

    mean: float
    lowest: float
    highest: float


class LoraEffect(Record):
    """What a LoRA changes in the student's predictions, compared with what it changes in the teacher's."""

    inputs: int
    """Noised latents that both predicted."""
    origin: Literal["cache", "noise"]
    """Where the latents are from: the run's cache, or random numbers."""
    direction: Spread
    """Cosine of the two changes: 1 where both have the same direction, 0 where they have nothing in common."""
    size: Spread
    """Norm of the student's change divided by that of the teacher's."""


class ReindexedLora(Record):
    """One LoRA, and the file that was written of it."""

    source: str
    """Name of the file of the teacher's LoRA."""
    source_sha256: str
    bytes: int
    sha256: str
    layers: int
    """Of the teacher's LoRA."""
    dropped: dict[str, int]
    """Layers in each part of the teacher that the student has not, by the path of that part."""
    norm_kept: float | None = None
    """Norm of what it adds to the student's denoiser, as a share of what it adds to the teacher's; None: it adds
    nothing to the teacher's."""
    effect: LoraEffect | None = None
    """None: the teacher is not on this machine, or the LoRA changes none of its predictions."""


class LoraExportRecord(RecordFile):
    """`lora.json` in the directory of re-indexed LoRAs."""

    format: Literal[1] = 1
    version: str
    """Of condistill."""
    student: str
    layout: str
    key: str
    """Hash of the student, the LoRAs and the layout."""
    files: dict[str, ReindexedLora]
    """By the name of the file in the directory."""
