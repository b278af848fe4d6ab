"""The record of a student: which parts of its teacher it keeps, and how large both are."""

from __future__ import annotations

from typing import Literal

from condistill.utils.record import Record, RecordFile

STUDENT_NAME = "student.json"


class DenoiserSize(Record):
    """The size of one denoiser."""

    parameters: int
    macs: int
    """Multiply-accumulates of one evaluation of one sample."""


class StudentRecord(RecordFile):
    """`student.json` of a variant."""

    format: Literal[2] = 2
    kept: tuple[str, ...]
    """Lines for people: which layers and channels of the teacher were kept, and how they were chosen."""
    teacher_size: DenoiserSize
    student_size: DenoiserSize
