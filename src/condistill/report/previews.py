"""The previews of a training as a table of images: a row per time, below the teacher's row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from condistill.distill.previews import PreviewFolder
from condistill.report.pictures import embedded

MOST_ROWS = 8
"""Rows of the student; more previews than these are left out evenly."""
_FEWEST_ROWS = 3
_LEVELS = ((256, 80), (192, 72), (128, 62), (96, 55))
"""Longest side in pixels and quality."""


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

    @property
    def bytes(self) -> int:
        """The length of all data URIs."""
        return sum(len(uri) for row in self.rows for uri in row.uris)


def preview_tables(folders: Mapping[str, PreviewFolder], *, budget: int = 1_000_000) -> list[PreviewTable]:
    """Return one table per student that has previews.

    Args:
        budget: bytes that all images may take; they get smaller, or fewer, and at last the last tables are left out.
    """
    share = budget // max(len(folders), 1)
    tables: list[PreviewTable] = []
    used = 0
    for name, folder in folders.items():
        table = _fitting(name, folder, share)
        if table is not None and used + table.bytes <= budget:
            tables.append(table)
            used += table.bytes
    return tables


def _fitting(name: str, folder: PreviewFolder, budget: int) -> PreviewTable | None:
    """Return the table of a student: the first that fits into the budget, or else the smallest."""
    table = None
    for rows in (MOST_ROWS, _FEWEST_ROWS):
        for level in _LEVELS:
            table = _table(name, folder, rows, level)
            if table is None or table.bytes <= budget:
                return table
    return table


def _table(name: str, folder: PreviewFolder, most: int, level: tuple[int, int]) -> PreviewTable | None:
    def uri(image: Image.Image) -> str:
        return embedded(image, *level).uri

    record = folder.record()
    rows: list[PreviewRow] = []
    for step in _chosen(list(folder.grids()), most):
        if (readable := folder.rows(step)) is None:
            continue
        teacher, student = readable
        rows += [] if rows else [PreviewRow("teacher", [uri(image) for image in teacher])]
        rows.append(PreviewRow(f"step {step:,}", [uri(image) for image in student]))
    if record is None or not rows:
        return None
    prompts = [(prompt.split, prompt.prompt) for prompt in record.prompts]
    return PreviewTable(name, prompts, rows, record.width, record.height, record.num_inference_steps)


def _chosen(steps: Sequence[int], most: int) -> list[int]:
    """Return at most `most` steps, evenly spread, with the first and the last."""
    if len(steps) <= most:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(number * last / (most - 1))] for number in range(most)]
