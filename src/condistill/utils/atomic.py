"""Write files and directories completely or not at all.

The content is written under a temporary name in the same folder, flushed to disk, and then renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = ".partial"


def partial_path(path: Path) -> Path:
    """Return the temporary path of `path`. If it exists when a write begins, it is from a run that was killed."""
    return path.with_name(f".{path.name}{_PARTIAL}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, a link or a directory, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write; rename it to `path` on success, delete it on an error.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    partial = partial_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        _fsync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file, completely or not at all."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory to fill; let it replace `path` on success, delete it on an error.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    partial = partial_path(path)
    remove(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            _fsync(file)
        _fsync(partial)
        if path.exists():
            old = path.with_name(f".{path.name}.old")
            remove(old)
            path.replace(old)
            try:
                partial.replace(path)
            except BaseException:
                old.replace(path)
                raise
            remove(old)
        else:
            partial.replace(path)
    except BaseException:
        remove(partial)
        raise
    _fsync(path.parent)
