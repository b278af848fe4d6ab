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
_OLD = ".old"


def partial_path(path: Path) -> Path:
    """Return the temporary path of `path`. If it exists when a write begins, it is from a run that was killed."""
    return path.with_name(f".{path.name}{_PARTIAL}")


def _old_path(path: Path) -> Path:
    """Return where a directory is while another one takes its place."""
    return path.with_name(f".{path.name}{_OLD}")


def is_temporary(path: Path) -> bool:
    """Return whether a path is a temporary one of this module."""
    return path.name.startswith(".") and path.name.endswith((_PARTIAL, _OLD))


def recover(folder: Path) -> None:
    """Finish or undo the writes that a killed process began in a folder, and in the folders below it.

    A directory that was about to be replaced is put back. Unfinished files and directories are deleted.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if not is_temporary(path):
            if path.is_dir() and not path.is_symlink():
                recover(path)
            continue
        original = path.with_name(path.name.removeprefix(".").removesuffix(_OLD))
        if path.name.endswith(_OLD) and not original.exists():
            path.replace(original)
        else:
            remove(path)


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

    Where `path` is a link to a directory, that directory is replaced, and the link stays.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    path = path.resolve() if path.is_symlink() else path
    partial = partial_path(path)
    remove(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.rglob("*"):
            _fsync(file)
        _fsync(partial)
        if path.exists():
            old = _old_path(path)
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
