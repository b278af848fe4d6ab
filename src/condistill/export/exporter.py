"""The contract of a format in which a pipeline is exported, and the registry of formats.

Adding a format is one file with a subclass of `Exporter` and one line in `export/__init__.py`. An exporter first checks
the shape of a pipeline, which needs no weights, so that `plan` can say before a training where its students will load.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from condistill.export.source import Shape, Source
from condistill.utils.registry import Registry


@dataclass(frozen=True)
class ExportOptions:
    """What the user chooses of a format."""

    dtype: str | None = None
    """Dtype of the written weights, one of `Exporter.dtypes`; None: that of the pipeline's denoiser on disk."""
    weights: str | None = None
    """How weights are quantised, one of `Exporter.weights`; None: they are not."""
    say: Callable[[str], None] = lambda _: None
    """Called with a line for the user before each long part of the work; changes nothing that is written."""


@dataclass(frozen=True)
class Comparison:
    """One comparison of an export with the pipeline."""

    subject: str
    """What was compared, such as `unet` or `image`."""
    largest_difference: float
    """Largest absolute difference of a value; 0 where every bit is equal."""
    tolerance: float
    """Largest difference that is accepted."""

    @property
    def holds(self) -> bool:
        """Whether the difference is a number and within the tolerance."""
        return self.largest_difference <= self.tolerance


class Exporter(ABC):
    """A format that other programs load."""

    name: ClassVar[str]
    """Of the format, as in `condistill export --to NAME`."""
    title: ClassVar[str]
    """As people write it: the name of the program, or of the format."""
    summary: ClassVar[str]
    """What is written, in a few words, for the list of formats."""
    sources: ClassVar[str] = ""
    """Where the facts about the other program are from, and of when; empty for formats without limits on shapes."""
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float16", "bfloat16")
    """Dtypes in which it can be written."""
    weights: ClassVar[tuple[str, ...]] = ()
    """Quantisations of the weights that it can be written with."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Modules that writing needs."""
    extra: ClassVar[str] = "export"
    """The extra of condistill that installs them."""

    @abstractmethod
    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why a pipeline of this shape cannot be exported; empty if it can.

        Each reason states what the pipeline has and what the other program accepts. Reads no weights.
        """

    @abstractmethod
    def write(self, source: Source, directory: Path, options: ExportOptions) -> None:
        """Write all files into an empty directory."""

    @abstractmethod
    def verify(self, source: Source, directory: Path, options: ExportOptions) -> tuple[Comparison, ...]:
        """Return the comparisons of what `write` wrote with the pipeline, at least one."""

    @abstractmethod
    def how_to_load(self, shape: Shape) -> str:
        """Return how the files are loaded, as Markdown for the model card and the user."""


EXPORTERS: Registry[Exporter] = Registry("format")
"""By name, in the order in which they are listed."""
AnyExporter = TypeVar("AnyExporter", bound=type[Exporter])


def register_exporter(kind: AnyExporter) -> AnyExporter:
    """Add a format to the registry; a class decorator."""
    EXPORTERS.register(kind.name, kind())
    return kind
