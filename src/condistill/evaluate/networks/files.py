"""Where the files of a network come from: a file, a directory, or a repository on the hub. Nothing is loaded."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from condistill.errors import CondistillError
from condistill.teachers.hub import HubCommit, hub_commit, repository_files
from condistill.utils.format import byte_size
from condistill.utils.home import expand_home
from condistill.utils.text import first_line

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")
_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<file>[\w./-]+))?")


@dataclass(frozen=True)
class Published:
    """What messages say about a network."""

    setting: str
    """Such as `evaluate.networks.clip`."""
    file: str
    """The file of its usual weights and where they are published."""
    size: int
    """About, in bytes."""

    def error(self, problem: str) -> CondistillError:
        """Return an error with the file that is usual, its source and its size."""
        return CondistillError(f"{self.setting}: {problem}; the usual weights are {self.file}, {byte_size(self.size)}")


class Place(ABC):
    """A directory with files."""

    published: Published

    @property
    @abstractmethod
    def title(self) -> str:
        """Its name in messages."""

    @property
    @abstractmethod
    def names(self) -> frozenset[str]:
        """The files that it has."""

    @abstractmethod
    def get(self, name: str, *, download: bool) -> tuple[Path | None, int]:
        """Return the path of a file that it has, and 0; or None, and the bytes to download, if `download` is False."""


@dataclass(frozen=True)
class LocalPlace(Place):
    """A directory on this disk."""

    directory: Path
    published: Published

    @property
    def title(self) -> str:
        return str(self.directory)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(file.name for file in self.directory.iterdir() if file.is_file())

    def get(self, name: str, *, download: bool) -> tuple[Path | None, int]:  # noqa: ARG002
        return self.directory / name, 0


@dataclass(frozen=True)
class HubPlace(Place):
    """A repository on the hub; files are read from the local cache where they are in it."""

    name: str
    revision: str | None
    published: Published

    @property
    def title(self) -> str:
        return self.name if self.commit.is_reachable else f"{self.name} in the local cache (the hub cannot be reached)"

    @cached_property
    def commit(self) -> HubCommit:
        """The commit that the revision stands for."""
        setting = self.published.setting
        try:
            return hub_commit(
                self.name,
                self.revision,
                setting=setting,
                revision_setting=f"{setting}: revision",
                directory="the directory of the model",
            )
        except CondistillError as error:
            problem = str(error).removeprefix(setting).lstrip(": ")
            raise self.published.error(problem) from error

    @property
    def names(self) -> frozenset[str]:
        return frozenset(repository_files(self.name, self.commit))

    def get(self, name: str, *, download: bool) -> tuple[Path | None, int]:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        cached = try_to_load_from_cache(self.name, name, revision=self.commit.commit)
        if isinstance(cached, str):
            return Path(cached), 0
        if not download and self.commit.is_reachable:
            return None, self._size(name)
        try:
            return Path(hf_hub_download(self.name, name, **self.commit.options())), 0
        except Exception as error:  # of the disk, of several HTTP libraries, or of the hub
            hint = (
                "" if self.commit.is_reachable else f"; run `hf download {self.name} {name}` where there is a network"
            )
            size = f" ({byte_size(known)})" if (known := self._size(name)) else ""
            raise self.published.error(
                f"{name}{size} of {self.name} on the hub cannot be downloaded: {first_line(error)}{hint}"
            ) from error

    def _size(self, name: str) -> int:
        """Return the size of a file on the hub; 0 where it is not known."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        if not self.commit.is_reachable:
            return 0
        try:
            return get_hf_file_metadata(hf_hub_url(self.name, name, revision=self.commit.commit), timeout=10).size or 0
        except Exception:  # of several HTTP libraries; the size is only shown
            return 0


def find_place(source: str, published: Published, *, may_be_file: bool) -> tuple[Place, str | None]:
    """Return a directory or a repository, and the file of it that the source names, if it names one.

    Args:
        source: a path, `OWNER/NAME`, `OWNER/NAME@REVISION`, or one of these with `/FILE` after it.
        may_be_file: whether the network can be one file.

    Raises:
        CondistillError: it is neither on this disk nor a hub name.
    """
    try:
        path = expand_home(source)
    except CondistillError as error:
        raise published.error(str(error)) from error
    if _holds(path.is_dir):
        return LocalPlace(path, published), None
    if _holds(path.is_file):
        if may_be_file:
            return LocalPlace(path.parent, published), path.name
        raise published.error(f"{path} is a file; give the directory that it belongs to, with its config.json")
    found = None if source.startswith((".", "/", "~")) else _HUB.fullmatch(source)
    name, revision, file = (None, None, None) if found is None else found.group("name", "revision", "file")
    if name is None or (file is None and name.endswith(WEIGHT_FILES)):
        wanted = "a file, a directory" if may_be_file else "a directory"
        raise published.error(f"{source} does not exist; give {wanted} or a hub name (OWNER/NAME)")
    if file is not None and not may_be_file:
        raise published.error(f"{source} is one file on the hub; give the name of its repository, {name}")
    return HubPlace(name, revision, published), file


def _holds(check: Callable[[], bool]) -> bool:
    """Return the result of a check of a path; False for a name that no file system can have."""
    try:
        return check()
    except (OSError, ValueError):
        return False
