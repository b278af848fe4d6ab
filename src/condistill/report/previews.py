"""The previews of a training as a table of images: a row per time, below the teacher's row."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from condistill.distill.previews import PreviewFolder

MOST_ROWS = 8
"""Rows of the student; more previews than these are left out evenly."""
_SMALL = 128
"""Pixels below which an image is embedded without loss."""


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """Images of one model at one time, as data URIs, one per prompt."""

    label: str
    uris: list[str]


@dataclass(frozen=True, slots=True)
class PreviewTable:
    """The previews of one student."""

    name: str
    prompts: list[tuple[str, str]]
    """The split and the text of each column."""
    rows: list[PreviewRow]
    """The teacher's first."""
    width: int
    height: int
    num_inference_steps: int


def preview_tables(folders: Mapping[str, PreviewFolder]) -> list[PreviewTable]:
    """Return one table per student that has previews."""
    tables = (_table(name, folder) for name, folder in folders.items())
    return [table for table in tables if table is not None]


def _table(name: str, folder: PreviewFolder) -> PreviewTable | None:
    record = folder.record()
    rows: list[PreviewRow] = []
    for step in _chosen(list(folder.grids())):
        if (readable := folder.rows(step)) is None:
            continue
        teacher, student = readable
        rows += [] if rows else [PreviewRow("teacher", [_uri(image) for image in teacher])]
        rows.append(PreviewRow(f"step {step:,}", [_uri(image) for image in student]))
    if record is None or not rows:
        return None
    prompts = [(prompt.split, prompt.prompt) for prompt in record.prompts]
    return PreviewTable(name, prompts, rows, record.width, record.height, record.num_inference_steps)


def _chosen(steps: Sequence[int]) -> list[int]:
    """Return at most `MOST_ROWS` steps, evenly spread, with the first and the last."""
    if len(steps) <= MOST_ROWS:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(number * last / (MOST_ROWS - 1))] for number in range(MOST_ROWS)]


def _uri(image: Image.Image) -> str:
    kind = "PNG" if max(image.size) < _SMALL else "JPEG"
    content = io.BytesIO()
    image.save(content, format=kind, **({} if kind == "PNG" else {"quality": 88}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
