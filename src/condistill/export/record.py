"""The record of an export, `export.json`."""

from __future__ import annotations

from typing import Literal

from condistill.utils.record import Record, RecordFile

EXPORT_NAME = "export.json"


class ExportedFile(Record):
    """One file of an export."""

    bytes: int
    sha256: str


class ExportComparison(Record):
    """One comparison of the export with the pipeline; see `Comparison`."""

    subject: str
    largest_difference: float
    tolerance: float


class ExportRecord(RecordFile):
    """`export.json` in the directory of an export."""

    format: Literal[1] = 1
    exporter: str
    """Name of the format."""
    version: str
    """Of condistill."""
    pipeline: str
    """Name of the pipeline."""
    key: str
    """Hash of the pipeline's files and of the options."""
    dtype: str | None = None
    weights: str | None = None
    files: dict[str, ExportedFile]
    """By path in the directory, with slashes."""
    comparisons: tuple[ExportComparison, ...]
    seconds: float
