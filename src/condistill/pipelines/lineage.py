"""Where a student comes from: its teacher's name, commit or hashes, and licence, read from the teacher's own files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from condistill.config.sections import MINIATURE, TeacherSettings
from condistill.errors import CondistillError
from condistill.pipelines.licences import KNOWN, Licence, is_licence_file, recognised
from condistill.teachers.header import read_header
from condistill.teachers.hub import cached_file, hub_commit, repository_files
from condistill.teachers.locate import is_file, locate
from condistill.teachers.registry import family_of_pipeline
from condistill.utils.text import printable

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CARD_NAME = "README.md"
_LONGEST = 10**6
"""Characters of a card or a licence that are read; longer ones are cut off."""


def hub_name(pipeline: str) -> str | None:
    """Return the teacher's name on the hub; None for the miniature and for a folder."""
    on_hub = _HUB_NAME.fullmatch(pipeline) and pipeline != MINIATURE and not Path(pipeline).exists()
    return pipeline if on_hub else None


def teacher_name(pipeline: str) -> str:
    """Return the public name of a teacher: its hub name, or the last part of its folder."""
    if pipeline == MINIATURE:
        return "the miniature of condistill"
    return hub_name(pipeline) or PureWindowsPath(pipeline).name or "a local pipeline"


@dataclass(frozen=True)
class Lineage:
    """The teacher of a student."""

    hub: str | None = None
    """Its name on the hub."""
    commit: str | None = None
    """Of its repository on the hub."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of its files, by name without folders of the machine; empty for a hub name, which has a commit."""
    base: str | None = None
    """The hub name that the teacher's own card gives as its base model, where the teacher itself is not on the hub."""
    licence: Licence = field(default_factory=Licence)
    licence_files: Mapping[str, str] = field(default_factory=dict)
    """Text of its licence and notice files, by name; a student takes them along."""
    is_miniature: bool = False


def read_lineage(settings: TeacherSettings, inputs: Mapping[str, Any]) -> Lineage:
    """Return the lineage of the students of a teacher.

    Args:
        inputs: from `teacher_inputs`: the commit, or the hash of every file.
    """
    if settings.pipeline == MINIATURE:
        return Lineage(
            hashes=_hashes(inputs), licence=Licence("apache-2.0", source="part of condistill"), is_miniature=True
        )
    if is_file(settings):
        return Lineage(hashes=_hashes(inputs), licence=_of_header(Path(settings.pipeline).expanduser()))
    location = locate(settings)
    if isinstance(location, Path):
        names = sorted(file.name for file in location.iterdir() if file.is_file())
        files = _Files(names, lambda name: location / name, "the teacher's")
        metadata = files.metadata()
        return Lineage(
            hashes=_hashes(inputs), base=_base(metadata), licence=files.licence(metadata), licence_files=files.texts()
        )
    commit = hub_commit(location, settings.revision)
    listed = [name for name in repository_files(location, commit) if "/" not in name]
    files = _Files(listed, lambda name: cached_file(location, name, commit), "the teacher's")
    licence = files.licence(files.metadata())
    if licence.link and "://" not in licence.link:
        link = f"https://huggingface.co/{location}/blob/{commit.commit}/{licence.link}"
        licence = Licence(licence.identifier, link, licence.source)
    return Lineage(location, commit.commit, licence=licence, licence_files=files.texts())


def denoiser_hashes(lineage: Lineage, pipeline_class: str) -> dict[str, str]:
    """Return the hashes of the files that hold the teacher's denoiser, or of its one file."""
    folder = f"{family_of_pipeline(pipeline_class).denoiser_name}/"
    found = {name: sha256 for name, sha256 in lineage.hashes.items() if name.endswith(".safetensors")}
    return {name: each for name, each in found.items() if name.startswith(folder)} or {
        name: each for name, each in found.items() if "/" not in name
    }


def _hashes(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return the hash of every file of the teacher, LoRAs and replaced parts included, by name."""
    found = {}
    for name, value in inputs.items():
        role, is_a_file, file = name.partition(" file ")
        if is_a_file and isinstance(value, str):
            found[file if role == "teacher" else f"{file} ({role})"] = value
    return found


@dataclass(frozen=True)
class _Files:
    """The files in the top folder of a pipeline, on the disk or on the hub."""

    names: list[str]
    find: Callable[[str], Path | None]
    whose: str

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of its card; empty where it has none that can be read."""
        return card_metadata(self._text(_CARD_NAME)) if _CARD_NAME in self.names else {}

    def licence(self, metadata: dict[str, Any]) -> Licence:
        """Return the licence that its card names; else that of its LICENSE file, if that is known."""
        found = Licence.of_metadata(metadata, f"{self.whose} README.md")
        if found is not None:
            return found
        for name, text in self.texts().items():
            if identifier := recognised(text):
                return Licence(identifier, source=f"{self.whose} {name}")
        return Licence()

    def texts(self) -> dict[str, str]:
        """Return the text of its licence and notice files by name."""
        found = {name: self._text(name) for name in self.names if is_licence_file(name)}
        return {name: text for name, text in found.items() if text}

    def _text(self, name: str) -> str:
        try:
            file = self.find(name)
            return "" if file is None else file.read_bytes()[:_LONGEST].decode("utf-8", errors="replace")
        except OSError:
            return ""


def card_metadata(card: str) -> dict[str, Any]:
    """Return the metadata at the head of a model card; empty where it has none that can be read."""
    found = re.match(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", card, re.DOTALL)
    try:
        metadata = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _base(metadata: Mapping[str, Any]) -> str | None:
    base = metadata.get("base_model")
    base = base[0] if isinstance(base, list) and len(base) == 1 else base
    return base if isinstance(base, str) and _HUB_NAME.fullmatch(base) else None


def _of_header(file: Path) -> Licence:
    """Return the licence that the header of a pipeline in one file names."""
    try:
        text = read_header(file, setting="teacher.pipeline").metadata.get("modelspec.license", "")
    except CondistillError:
        return Licence()
    words = printable(" ".join(text.split()))[:200]
    if not words:
        return Licence()
    for name, known in KNOWN.items():
        if words.lower() in (name, known.title.lower(), known.heading):
            return Licence(name, source="the header of the teacher's file")
    return Licence(words, source="the header of the teacher's file")
