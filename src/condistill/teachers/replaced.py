"""An autoencoder and a scheduler that replace those of a teacher's pipeline: `teacher.vae`, `teacher.scheduler`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from condistill.errors import CondistillError
from condistill.teachers.configs import using_config
from condistill.teachers.files import variants_in, weight_files
from condistill.teachers.header import check_weights_are_whole, read_header
from condistill.utils.text import shorten

SCHEDULER_CONFIG = "scheduler_config.json"


def scheduler_file(setting: str) -> Path:
    """Return the config file that `teacher.scheduler` gives: itself, in its directory, or in that of a pipeline.

    Raises:
        CondistillError: there is none.
    """
    path = Path(setting)
    for file in (path, path / SCHEDULER_CONFIG, path / "scheduler" / SCHEDULER_CONFIG):
        if file.is_file():
            return file
    raise CondistillError(
        f"teacher.scheduler {path} is no {SCHEDULER_CONFIG}, and no directory with one; give the scheduler's directory"
    )


def read_scheduler(setting: str) -> dict[str, Any]:
    """Return the config that `teacher.scheduler` gives.

    Raises:
        CondistillError: it names no scheduler of diffusers, or cannot be read.
    """
    import diffusers

    file = scheduler_file(setting)
    config = _read_config(file, "teacher.scheduler")
    name = config.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) and name.endswith("Scheduler") else None
    if kind is None:
        raise CondistillError(
            f"teacher.scheduler {file} names {shorten(repr(name), 80)}, which is no scheduler of diffusers as "
            "installed here; correct its _class_name"
        )
    return config


def build_scheduler(setting: str) -> Any:
    """Return the scheduler that `teacher.scheduler` gives.

    Raises:
        CondistillError: its config cannot be used.
    """
    import diffusers

    config = read_scheduler(setting)
    kind = getattr(diffusers, config["_class_name"])
    with using_config(str(scheduler_file(setting)), kind, config):
        return kind.from_config(config)


def vae_directory(setting: str) -> Path | None:
    """Return the directory that `teacher.vae` gives: itself or that in a pipeline; None for a safetensors file.

    Raises:
        CondistillError: it is neither, or its weights are no safetensors.
    """
    path = Path(setting)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CondistillError(f"teacher.vae {path}: only safetensors are loaded; convert it where you trust it")
        check_weights_are_whole(read_header(path, setting="teacher.vae"), setting="teacher.vae")
        return None
    for folder in (path, path / "vae"):
        if (folder / "config.json").is_file():
            if not vae_weights(folder)[0]:
                raise CondistillError(f"teacher.vae {folder} has no weights in safetensors; save it again as such")
            return folder
    raise CondistillError(
        f"teacher.vae {path} is no directory with config.json and weights, no pipeline with one, and no safetensors "
        "file; give one of these"
    )


def vae_weights(folder: Path) -> tuple[list[Path], str | None]:
    """Return the weights in the directory of an autoencoder, and their variant: none, or the first if all have one."""
    for variant in (None, *sorted(variants_in(file.name for file in folder.iterdir()))):
        if files := weight_files(folder, "diffusers", variant):
            return files, variant
    return [], None


def read_vae_config(folder: Path) -> dict[str, Any]:
    """Return the config in the directory of an autoencoder.

    Raises:
        CondistillError: it is no config of an autoencoder of diffusers.
    """
    import diffusers

    config = _read_config(folder / "config.json", "teacher.vae")
    name = config.get("_class_name")
    if not isinstance(name, str) or not name.startswith("Autoencoder") or not hasattr(diffusers, name):
        raise CondistillError(
            f"teacher.vae {folder / 'config.json'} names {shorten(repr(name), 80)}, which is no autoencoder of "
            "diffusers as installed here; give the directory of an autoencoder"
        )
    return config


def _read_config(file: Path, setting: str) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CondistillError(f"{setting} {file} cannot be read: {shorten(str(error))}") from error
    if not isinstance(config, Mapping):
        raise CondistillError(f"{setting} {file} holds no settings; give a config that diffusers saved")
    return dict(config)
