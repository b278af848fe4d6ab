"""Write files and directories completely or not at all.

The content is written under a temporary name in the same folder, flushed to disk, and then renamed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from condistill.errors import CondistillError

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

    A directory that was about to be replaced is put back. Unfinished files and directories are deleted, but not a
    directory that another process is writing now. Only for folders that condistill alone writes: files of others may
    have such names too.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if not is_temporary(path):
            if path.is_dir() and not path.is_symlink():
                recover(path)
            continue
        original = path.with_name(path.name.removeprefix(".").removesuffix(_OLD))
        if path.name.endswith(_OLD) and not original.exists():
            path.replace(original)
        elif not _is_locked(path):
            remove(path)


def discard_partial(path: Path) -> None:
    """Delete what a killed process left of a directory that it was writing.

    Raises:
        CondistillError: another process is writing it now.
    """
    partial = partial_path(_place(path))
    if _is_locked(partial):
        raise CondistillError(f"another process is writing {path}; wait until it ends, or choose another directory")
    remove(partial)


def _place(path: Path) -> Path:
    """Return where a directory is: links are followed, and the present folder has a name."""
    return path.resolve() if path.is_symlink() or path.name in ("", "..") else path


def _is_locked(directory: Path) -> bool:
    """Return whether a process is writing a directory, which `atomic_directory` locks meanwhile."""
    if not directory.is_dir() or directory.is_symlink():
        return False
    lock = _lock(directory)
    if lock is not None:
        os.close(lock)
    return lock is None


def _lock(directory: Path) -> int | None:
    """Lock a directory until the returned descriptor is closed, or the process ends; None: another one has locked it.

    On a file system without locks, nothing is locked.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        pass
    return descriptor


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
        CondistillError: another process is writing the directory.
        OSError: the disk is full or the folder cannot be written.
    """
    path = _place(path)
    partial = partial_path(path)
    discard_partial(path)
    partial.mkdir(parents=True)
    lock = _lock(partial)
    try:
        yield partial
        for file in partial.rglob("*"):
            _fsync(file)
        _fsync(partial)
        if path.is_dir() and any(path.iterdir()):
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
            partial.replace(path)  # also onto an empty directory
    except BaseException:
        remove(partial)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    _fsync(path.parent)
