"""Write a finished pipeline: the teacher's, with the student as its denoiser."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from condistill.teachers.family import Family
from condistill.utils.atomic import atomic_directory, write_text

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


def save_pipeline(
    family: Family,
    denoiser: nn.Module,
    directory: Path,
    *,
    card: str,
    scheduler: SchedulerMixin | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write the teacher's pipeline with another denoiser, completely or not at all.

    Args:
        card: text of README.md.
        scheduler: replaces the teacher's.
        files: text of further files, by name.
    """
    denoiser = denoiser.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with atomic_directory(directory) as partial:
        with family.using(denoiser, scheduler) as pipeline:
            pipeline.save_pretrained(partial, safe_serialization=True)
        for file in partial.rglob("*.json"):
            _remove_name_or_path(file)
        for name, text in {"README.md": card, **(files or {})}.items():
            write_text(partial / name, text)


def _remove_name_or_path(file: Path) -> None:
    """Remove `_name_or_path` from a config, because it may name a private directory."""
    config = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(config, dict) and "_name_or_path" in config:
        del config["_name_or_path"]
        write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")
