"""Export a pipeline: check its shape, write the files, compare them with the pipeline, and record both."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

from condistill.errors import CondistillError
from condistill.export.exporter import Comparison, Exporter, ExportOptions
from condistill.export.held import check_same, held_record
from condistill.export.record import EXPORT_NAME, ExportComparison, ExportedFile, ExportRecord
from condistill.export.source import Source
from condistill.teachers.defaults import SAMPLING_NAME
from condistill.utils.atomic import atomic_directory, discard_partial
from condistill.utils.format import byte_size, significant
from condistill.utils.hashing import hash_file, key_of

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Of a weight."""


def default_directory(source: Source, exporter: Exporter) -> Path:
    """Return where an export is written unless the user chooses: in the run, or next to the pipeline."""
    name = f"{source.name}-{exporter.name}"
    return source.run / "exports" / name if source.run else Path("exports") / name


def check_export(source: Source, exporter: Exporter, options: ExportOptions) -> None:
    """Check everything that can be known before weights are read.

    Raises:
        CondistillError: the format cannot hold the pipeline, an option does not fit the format, or a package is not
            installed.
    """
    if reasons := exporter.check(source.shape):
        raise CondistillError(f"{source.name} cannot be exported to {exporter.title}: {'; '.join(reasons)}")
    for given, name, allowed in (
        (options.dtype, "--dtype", exporter.dtypes),
        (options.weights, "--weights", exporter.weights),
    ):
        if given is not None and given not in allowed:
            known = f"choose from {', '.join(allowed)}" if allowed else "leave it out"
            raise CondistillError(f"{name} {given} is not possible with --to {exporter.name}; {known}")
    if missing := [name for name in exporter.packages if importlib.util.find_spec(name) is None]:
        raise CondistillError(
            f"--to {exporter.name} needs {', '.join(missing)}, which is not installed; run "
            f'`pip install "condistill[{exporter.extra}]"`'
        )


def export(
    source: Source,
    exporter: Exporter,
    directory: Path,
    options: ExportOptions,
    *,
    say: Callable[[str], None] = lambda _: None,
    working: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> ExportRecord:
    """Write an export into a directory, completely or not at all, and return its record.

    A directory that holds this very export already is left as it is.

    Args:
        say: takes a line for the user.
        working: shows that work with this description is still running.

    Raises:
        CondistillError: see `check_export`; or the directory holds something else; or the written files differ from
            the pipeline by more than the tolerance, and then nothing is written.
    """
    check_export(source, exporter, options)
    record = held_record(directory, ExportRecord, file=EXPORT_NAME, lacking="is no export")
    with working(f"{source.name}: reading the files of {source.directory}"):
        key = export_key(source, exporter, options)
    if record is not None:
        _check_same(directory, record, key)
        say(f"{directory} holds this export already")
        return record
    discard_partial(directory)
    started = time.monotonic()
    directory.parent.mkdir(parents=True, exist_ok=True)
    _check_space(directory.parent, source, options)
    options = replace(options, say=say)
    with atomic_directory(directory) as partial:
        with working(f"{source.name}: writing for {exporter.title}"):
            exporter.write(source, partial, options)
        with working(f"{source.name}: comparing what was written with the pipeline"):
            comparisons = exporter.verify(source, partial, options)
        _check_comparisons(exporter, comparisons)
        record = ExportRecord(
            exporter=exporter.name,
            version=metadata.version("condistill"),
            pipeline=source.name,
            key=key,
            dtype=options.dtype,
            weights=options.weights,
            files=_stamps(partial),
            comparisons=tuple(ExportComparison.model_validate(asdict(each)) for each in comparisons),
            seconds=time.monotonic() - started,
        )
        record.write(partial / EXPORT_NAME)
    for line in described(record):
        say(line)
    return record


def _stamps(directory: Path) -> dict[str, ExportedFile]:
    """Return size and hash of every file in a directory, by path."""
    return {
        file.relative_to(directory).as_posix(): ExportedFile(bytes=file.stat().st_size, sha256=hash_file(file))
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def described(record: ExportRecord) -> list[str]:
    """Return the lines for the user: how far the export differs from the pipeline, and its files."""
    lines = [
        f"{each.subject}: bit-equal to the pipeline"
        if each.largest_difference == 0
        else f"{each.subject}: differs by at most {significant(each.largest_difference)} "
        f"(tolerance {significant(each.tolerance)})"
        for each in record.comparisons
    ]
    return [*lines, *(f"{name}: {byte_size(file.bytes)}" for name, file in record.files.items())]


def _check_comparisons(exporter: Exporter, comparisons: tuple[Comparison, ...]) -> None:
    wrong = [
        f"{each.subject} by {significant(each.largest_difference)} (tolerance {significant(each.tolerance)})"
        for each in comparisons
        if not each.holds
    ]
    if wrong:
        raise CondistillError(
            f"the export to {exporter.title} differs from the pipeline, so it was not kept: {', '.join(wrong)}; please "
            "report it with the pipeline's configs"
        )


def _check_space(folder: Path, source: Source, options: ExportOptions) -> None:
    """Check that the export fits on the disk, as far as its size is known before it is written."""
    if options.weights is not None:
        return
    before = source.files.dtype(source.denoiser_name)
    needed = source.files.total_bytes() * _BYTES[options.dtype or before] // _BYTES[before]
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CondistillError(
            f"the export needs about {byte_size(needed)} in {folder} and {byte_size(free)} are free; free some space, "
            "or choose another --out"
        )


def export_key(source: Source, exporter: Exporter, options: ExportOptions) -> str:
    """Return the hash of a pipeline's files, the format and the options, by which an export is recognised."""
    files = [file for component in source.files.by_component.values() for file in component]
    files += [file for file in [source.directory / SAMPLING_NAME] if file.is_file()]
    hashes = {file.relative_to(source.directory).as_posix(): hash_file(file) for file in files}
    return key_of(exporter.name, options.dtype, options.weights, hashes)


def _check_same(directory: Path, record: ExportRecord, key: str) -> None:
    """Check that a directory holds the export with this key, completely."""
    check_same(
        directory,
        {name: file.bytes for name, file in record.files.items()},
        same_key=record.key == key,
        other="an export of other files or options",
        damaged="an export that is not complete",
    )
