"""What a directory holds already that an export is to be written into: nothing, this very export, or something else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from condistill.errors import CondistillError
from condistill.utils.record import AnyRecordFile


def held_record(directory: Path, kind: type[AnyRecordFile], *, file: str, lacking: str) -> AnyRecordFile | None:
    """Return the record in a directory; None where there is no such directory, or an empty one.

    Args:
        kind: of the record.
        file: name of the record's file.
        lacking: what a directory without the file is, for the message, such as "is no export".

    Raises:
        CondistillError: it holds something else, or the record is damaged.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    if not (directory / file).is_file():
        raise CondistillError(f"{directory} exists and {lacking}; choose another --out")
    return kind.read(directory / file, remedy="delete the directory, or choose another --out")


def check_same(directory: Path, sizes: Mapping[str, int], *, same_key: bool, other: str, damaged: str) -> None:
    """Check that a directory holds what is to be written, completely.

    Args:
        sizes: bytes of every file by its path in the directory.
        same_key: whether its record has the key of what is to be written.
        other: what it holds if not, for the message, such as "an export of other files or options".
        damaged: what it holds if files are missing, such as "an export that is not complete".

    Raises:
        CondistillError: it was made of other files or options, or files of it are missing.
    """
    intact = all(
        (directory / name).is_file() and (directory / name).stat().st_size == size for name, size in sizes.items()
    )
    if not same_key or not intact:
        what = damaged if same_key else other
        raise CondistillError(f"{directory} holds {what}; delete it, or choose another --out")
