"""Hashes of settings and files, and a memory of the hashes of files."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

from condistill.errors import CondistillError
from condistill.utils.record import CheckedFile

_UNCERTAIN_NS = 2 * 10**9
"""A file may change again without another time stamp, so a hash is remembered only for a file that is older."""


class _KnownHashes(CheckedFile):
    """`hashes.json`: by path, the size, the times of change of content and entry, and the SHA-256 of files."""

    format: Literal[1] = 1
    files: dict[str, tuple[int, int, int, str]]


def key_of(*parts: Any) -> str:
    """Return a hash of settings and inputs, 16 hexadecimal digits; equal parts have equal hashes."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def hash_file(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of the content of a file, in hexadecimal digits.

    Args:
        on_bytes: called with the number of bytes that were read since its last call.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()


Reading = Callable[[Path], AbstractContextManager[Callable[[int], None]]]
"""Returns, for a file that is about to be read, a context with a function that is called with the bytes read."""


@contextmanager
def _unseen(_path: Path) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


def _identity(file: Path) -> tuple[int, int, int, int]:
    """Return what all hard links to a file share, and what changes with its content."""
    stat = file.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


class HashMemory:
    """Hashes of files, each computed once for a size and its times of change, and kept in a JSON file.

    Teachers and caches have many gigabytes; a command reads them again only where a file changed. The time of change of
    the directory entry counts too: a file of the same size that `cp -p` or `rsync -t` put there has an old time itself.
    """

    def __init__(self, file: Path, *, say: Callable[[str], None] = lambda _: None, reading: Reading = _unseen) -> None:
        """Read the file, if it exists.

        Args:
            say: called with a line for the user if the file is damaged; its hashes are then computed again.
            reading: shows the progress of each file that is read.
        """
        self._file, self._reading = file, reading
        self._entries: dict[str, tuple[int, int, int, str]] = {}
        self._is_changed = False
        if file.is_file():
            try:
                self._entries = _KnownHashes.read(file, remedy="").files
            except CondistillError:
                say(f"{file} is damaged; the checksums in it are computed again")

    def of(self, path: Path) -> str:
        """Return the SHA-256 of the content of a file.

        Raises:
            OSError: the file cannot be read.
        """
        name, stat = str(path.resolve()), path.stat()
        stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        known = self._entries.get(name)
        if known is not None and known[:3] == stamp:
            return known[3]
        with self._reading(path) as on_bytes:
            digest = hash_file(path, on_bytes)
        self._remember(name, stamp, digest)
        return digest

    def note(self, path: Path, digest: str) -> None:
        """Take the SHA-256 of a file that was computed while it was written, so that it need not be read.

        Raises:
            OSError: there is no such file.
        """
        stat = path.stat()
        self._remember(str(path.resolve()), (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns), digest)

    @contextmanager
    def linking(self, files: Collection[Path], folder: Path) -> Iterator[None]:
        """Keep the hashes of files while hard links to them are made in a folder, and know those of the links.

        A link changes the time of change of the file's entry, which would otherwise be read again.

        Raises:
            OSError: a file cannot be read.
        """
        digests = {_identity(file): self.of(file) for file in files}
        yield
        for file in (*files, *folder.rglob("*")):
            if file.is_file() and (digest := digests.get(_identity(file))):
                self.note(file, digest)

    def _remember(self, name: str, stamp: tuple[int, int, int], digest: str) -> None:
        if time.time_ns() - stamp[1] > _UNCERTAIN_NS:
            self._entries[name] = (*stamp, digest)
            self._is_changed = True

    def save(self) -> None:
        """Write the hashes that were added to the file."""
        if self._is_changed:
            _KnownHashes(files=self._entries).write(self._file)
            self._is_changed = False
