"""What `condistill push` sends: the files that loading a pipeline reads, its card and its exports, after checks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condistill.config.recipe import QUICK_LABEL
from condistill.config.sections import MINIATURE
from condistill.errors import CondistillError
from condistill.export.exporter import EXPORTERS, ExportOptions
from condistill.export.record import EXPORT_NAME, ExportRecord
from condistill.export.source import Source
from condistill.export.write import default_directory, export_key
from condistill.pipelines.card import for_hub
from condistill.pipelines.licences import is_licence_file
from condistill.pipelines.lineage import card_metadata
from condistill.teachers.defaults import SAMPLING_NAME
from condistill.utils.text import shorten

CARD_NAME = "README.md"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".npy", ".npz", ".joblib")
"""Suffixes of files that can run code when they are loaded."""
_PLACE = re.compile(
    r"(?<![\w.:/~-])(/(?:home|Users|root|tmp|mnt|media|var|opt|srv|data|work|workspace|scratch)/[^\s\"'<>()`\\]+"
    r"|[A-Za-z]:(?:\\\\?|/)Users(?:\\\\?|/)[^\s\"'<>()`\\]+|~/[^\s\"'<>()`\\]+)"
)
"""Paths as they are on the machines of people."""
_TEXTS = (".json", ".md", ".txt", ".jinja", ".xml", ".yaml", ".yml")
_VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
"""Lists of tokens; some of these look like paths."""
_LARGEST_SCAN = 64 * 2**20
"""Bytes of a file of weights in another format than safetensors that is searched for paths."""


@dataclass(frozen=True)
class Shipment:
    """The files to send, by path in the repository."""

    name: str
    files: dict[str, Path]
    card: str
    """What is sent as README.md."""
    warnings: tuple[str, ...]
    left_out: tuple[str, ...]
    """Files in the pipeline's directory that are not sent: loading the pipeline does not read them."""

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each file, by path in the repository, README.md first."""
        sizes = {path: file.stat().st_size for path, file in self.files.items()}
        return {CARD_NAME: len(self.card.encode()), **sizes}

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata at the head of the card."""
        return card_metadata(self.card)


def shipment(source: Source, repository: str, exports: Sequence[str] = ()) -> Shipment:
    """Return what is sent of a pipeline, after it was checked.

    Args:
        repository: its name on the hub; the example of the card loads from it.
        exports: names of formats whose exports are sent too.

    Raises:
        CondistillError: it is the embedded teacher, has no card, has pickled weights, an export is not there or is of
            other weights, or a file holds a path of this machine.
    """
    if source.name == MINIATURE and source.run is None:
        raise CondistillError(
            "miniature is part of condistill and is not uploaded; give a run or a pipeline of your own"
        )
    _check_weights(source)
    files = _pipeline_files(source)
    for name in exports:
        files |= _export_files(source, name)
    card = _card(source, repository)
    for path, file in files.items():
        _check_places(path, file, source)
    _check_text(CARD_NAME, card, source)
    sent = {file.resolve() for file in files.values()} | {(source.directory / CARD_NAME).resolve()}
    left_out = [
        file.relative_to(source.directory).as_posix()
        for file in sorted(source.directory.rglob("*"))
        if file.is_file() and file.resolve() not in sent
    ]
    return Shipment(source.name, files, card, tuple(_warnings(card, exports)), tuple(left_out))


def _pipeline_files(source: Source) -> dict[str, Path]:
    directory = source.directory
    files = [file for component in source.files.by_component.values() for file in component]
    files += [file for file in sorted(directory.iterdir()) if file.is_file() and is_licence_file(file.name)]
    files += [file for file in [directory / SAMPLING_NAME] if file.is_file()]
    return {file.relative_to(directory).as_posix(): file for file in files}


def _export_files(source: Source, name: str) -> dict[str, Path]:
    exporter = EXPORTERS[name]
    folder = default_directory(source, exporter)
    command = f"condistill export --to {name}"
    if not (folder / EXPORT_NAME).is_file():
        raise CondistillError(f"{source.name} has no export in {folder}; run `{command}` first")
    record = ExportRecord.read(folder / EXPORT_NAME, remedy=f"delete the folder, and run `{command}` again")
    for file, stamp in record.files.items():
        if not (folder / file).resolve().is_relative_to(folder.resolve()):
            raise CondistillError(f"{folder / EXPORT_NAME} names {file!r}, which is outside of {folder}; export again")
        if not (folder / file).is_file() or (folder / file).stat().st_size != stamp.bytes:
            raise CondistillError(f"{folder / file} is missing or damaged; delete {folder}, and run `{command}` again")
    if record.key != export_key(source, exporter, ExportOptions(record.dtype, record.weights)):
        raise CondistillError(
            f"{folder} was exported from other weights or configs than {source.directory} has now; delete {folder}, "
            f"and run `{command}` again"
        )
    return {f"{folder.name}/{file}": folder / file for file in (*record.files, EXPORT_NAME)}


def _check_weights(source: Source) -> None:
    """Refuse a component whose weights are pickles only."""
    for name in (each for each in source.files.by_component if each):
        folder = source.directory / name
        pickles = [file.name for file in sorted(folder.glob("*")) if file.suffix in PICKLES]
        if pickles and not source.files.weights(name):
            raise CondistillError(
                f"{folder / pickles[0]} is a pickle, which can run code, and {name} has no safetensors; save the "
                "pipeline with save_pretrained of a current diffusers"
            )


def _card(source: Source, repository: str) -> str:
    """Return the card as it is sent: its example loads from the hub."""
    file = source.directory / CARD_NAME
    try:
        card = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CondistillError(
            f"{source.directory} has no {CARD_NAME}, the model card; run `condistill report` with the recipe of its "
            "run, or write one that names the licence"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CondistillError(f"{file} cannot be read ({error}); correct it or delete it") from error
    return for_hub(card, source.name, repository)


def _warnings(card: str, exports: Sequence[str]) -> Iterator[str]:
    metadata = card_metadata(card)
    if not metadata:
        yield f"{CARD_NAME} has no metadata at its head: the hub will show neither a task nor a licence"
    elif str(metadata.get("license", "unknown")).lower() == "unknown":
        yield (
            "the card names no known licence; the terms of the teacher's weights apply to the student too, so find "
            f"them, and write `license:` into the head of {CARD_NAME}, before others use it"
        )
    if QUICK_LABEL.lower() in card.lower():
        yield f"this is a {QUICK_LABEL}"
    for name in exports:
        if f"--to {name}" not in card.replace("\\", "") or "Exported: " not in card:
            yield f"{CARD_NAME} does not name the export to {name}; run `condistill report` with the recipe of its run"


def _check_places(path: str, file: Path, source: Source) -> None:
    """Refuse a file that holds a path of this machine."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "np") as tensors:
            _check_text(path, json.dumps(tensors.metadata() or {}), source)
    elif file.name in _VOCABULARY:
        return
    elif file.suffix in _TEXTS or is_licence_file(file.name):
        _check_text(path, file.read_text(encoding="utf-8", errors="replace"), source)
    elif file.stat().st_size <= _LARGEST_SCAN:
        content = file.read_bytes()
        for place in _own_places(source):
            if place.encode() in content:
                raise _found(path, place)


def _check_text(path: str, text: str, source: Source) -> None:
    for place in _own_places(source):
        if place in text:
            raise _found(path, place)
    if found := _PLACE.search(text):
        raise _found(path, found[0])


def _own_places(source: Source) -> list[str]:
    """Return the folders of this machine that files may name by mistake, each with a slash at its end."""
    folders = [source.directory.resolve(), Path.cwd(), Path.home(), *([source.run.resolve()] if source.run else [])]
    return [f"{folder.as_posix()}/" for folder in folders if len(folder.parts) > 1]


def _found(path: str, place: str) -> CondistillError:
    return CondistillError(
        f"{path} holds the path {shorten(place)}, which may be private; remove it from the file, then push again"
    )
