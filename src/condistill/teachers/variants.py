"""Which weights of a pipeline are loaded: safetensors only, and of one file variant, such as fp16, or of none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from condistill.errors import CondistillError
from condistill.teachers.files import PLAIN, variants_in

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def names_in_directory(directory: Path, index: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the files of every component of a pipeline that has a directory."""
    found = {}
    for name, value in index.items():
        folder = directory / name
        if not name.startswith("_") and isinstance(value, list | tuple) and value[0] and folder.is_dir():
            found[name] = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    return found


def names_in_repository(files: Sequence[str], index: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the files of every component, from the paths of all files of a repository."""
    found: dict[str, list[str]] = {}
    for file in sorted(files):
        component, slash, name = file.partition("/")
        value = index.get(component)
        if slash and "/" not in name and isinstance(value, list | tuple) and value[0]:
            found.setdefault(component, []).append(name)
    return found


def choose_variant(place: str, names: Mapping[str, Sequence[str]], given: str | None) -> str | None:
    """Return the variant with which every component of a pipeline can be loaded; None: without a variant.

    As in diffusers, a component without files of the variant is loaded without it. Where none is given, and a component
    has files of a variant only, it is that variant.

    Args:
        place: the pipeline, for messages.
        names: of the files of every component.
        given: `teacher.variant`.

    Raises:
        CondistillError: a component has no safetensors of this variant, or none at all; the message names what exists.
    """
    weights = {name: [file for file in files if file.endswith(".safetensors")] for name, files in names.items()}
    pickled = [name for name, files in names.items() if not weights[name] and any(f.endswith(_PICKLES) for f in files)]
    if pickled:
        raise CondistillError(
            f"the teacher at {place} has only pickle weights for {', '.join(pickled)}; a pickle can run code, so only "
            "safetensors are loaded: load it once where you trust it and save_pretrained(..., safe_serialization=True)"
        )
    weights = {name: files for name, files in weights.items() if files}
    variants = {name: variants_in(files) for name, files in weights.items()}
    plain = {name for name, files in weights.items() if any(map(PLAIN.fullmatch, files))}
    if given is not None:
        _check_given(place, given, weights, variants, plain)
        return given
    only = {name: found for name, found in variants.items() if found and name not in plain}
    if not only:
        return None
    common = set.intersection(*only.values())
    if len(common) == 1:
        return common.pop()
    held = "; ".join(f"{name} has {_listed(found)}" for name, found in only.items())
    remedy = "set teacher.variant to one of them" if common else "save the pipeline again with one variant for all"
    raise CondistillError(f"the teacher at {place} has weights of several variants only: {held}; {remedy}")


def _check_given(
    place: str,
    given: str,
    weights: Mapping[str, Sequence[str]],
    variants: Mapping[str, set[str]],
    plain: set[str],
) -> None:
    existing = set().union(*variants.values()) if variants else set()
    if weights and given not in existing:
        name, files = next(iter(weights.items()))
        if existing:
            known = f"there are files of {_listed(existing)}{' and files without a variant' if plain else ''}"
            remedy = f"set it to {' or '.join(sorted(existing))}, or leave it out"
        else:
            known, remedy = f"there are only files without a variant, such as {name}/{files[0]}", "leave it out"
        raise CondistillError(f"teacher.variant {given!r}: no component of {place} has files of it; {known}; {remedy}")
    for name, found in variants.items():
        if found and given not in found and name not in plain:
            raise CondistillError(
                f"teacher.variant {given!r}: {name} of {place} has only files of {_listed(found)}; set it to one of "
                "them, or save the pipeline again with one variant for all"
            )


def _listed(variants: set[str]) -> str:
    return ", ".join(map(repr, sorted(variants)))
