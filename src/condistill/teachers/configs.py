"""Say which file and which key of a teacher's configs cannot be used, where a library says it less clearly."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
import time
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from condistill.errors import CondistillError
from condistill.teachers.files import PipelineFiles
from condistill.utils.text import shorten

_NUMBERS = (int, float)
_SIZE = re.compile(r"^num_|^layers_per_block$|_(size|dim|channels|layers|heads|groups)$")
_SEARCH_SEC = 2.0
_NEED_SAMPLE_SIZE = ("StableDiffusionInpaintPipeline",)
"""Pipelines that compare the size of their U-Net with a number when they are built."""


def unusable(file: str, reason: str) -> CondistillError:
    """Return the error for a config that cannot be used."""
    return CondistillError(f"{file} cannot be used: {reason}; restore the file of the original pipeline")


@contextmanager
def using_config(file: str, kind: Any = None, config: Any = None) -> Iterator[None]:
    """Turn any exception of code that uses a config into an error that names the file, and the key if it is found.

    Args:
        file: the config, for the message.
        kind: the class that is built from the config.
        config: its content.
    """
    try:
        yield
    except CondistillError:
        raise
    except Exception as error:  # a library can raise any exception for a value that it does not expect
        text = next((line for line in str(error).splitlines() if line.strip()), "")
        reason = f"{type(error).__name__}: {shorten(text, 300)}"
        if kind is not None and (found := suspect(kind, config) or _culprit(kind, config)):
            reason = f"{found} ({reason})"
        raise unusable(file, reason) from error


def check_sizes(kind: Any, config: Any, file: str) -> None:
    """Check the sizes and counts of a config; some libraries build a model without layers where one is negative.

    Raises:
        CondistillError: names the first key that is too small.
    """
    names = [name for name in inspect.signature(kind.__init__).parameters if _SIZE.search(name)]
    for name in names:
        value = config.get(name)
        least = 1 if name == "layers_per_block" else 0
        if isinstance(value, _NUMBERS) and value < least:
            raise unusable(file, f"{name} is {value}, and must be {least} or more")


def _culprit(kind: Any, config: Any) -> str | None:
    """Return the value of a diffusers config without which the class can be built, if it is found in short time."""
    import torch

    deadline = time.monotonic() + _SEARCH_SEC
    device = "meta" if issubclass(kind, torch.nn.Module) else "cpu"
    for key in config if hasattr(kind, "from_config") else ():
        if time.monotonic() > deadline:
            return None
        with contextlib.suppress(Exception), torch.device(device):
            kind.from_config({name: value for name, value in config.items() if name != key})
            return f"{key} is {shorten(repr(config[key]), 60)}"
    return None


def suspect(kind: Any, config: Any) -> str | None:
    """Return the first value of a config that is not of the type that the class declares."""
    if not isinstance(config, Mapping):
        return f"it holds a {type(config).__name__} instead of settings"
    constructor = kind.__init__
    try:
        hints = typing.get_type_hints(constructor)
    except Exception:  # some annotations name what is only imported for type checkers
        hints = {}
    for key, parameter in inspect.signature(constructor).parameters.items():
        if key in config and not _fits(config[key], hints.get(key), parameter.default):
            return f"{key} is {shorten(repr(config[key]), 60)}"
    return None


def _fits(value: Any, hint: Any, default: Any) -> bool:
    """Return whether a value of a JSON file can be what an annotation and a default describe; in doubt it can."""
    if value is None or default is None:
        return default is None or hint is None or type(None) in typing.get_args(hint)
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and (isinstance(default, bool) or bool in _kinds(hint))
    if isinstance(value, _NUMBERS):
        counts = isinstance(default, int) and default > 0
        return math.isfinite(value) and not (counts and value <= 0) and not isinstance(default, str)
    if isinstance(value, list | tuple):
        return not isinstance(default, str) and (bool(value) or not default) and all(item is not None for item in value)
    kinds = _kinds(hint) | {type(default)}
    return not isinstance(value, str) or str in kinds or hint is None


def _kinds(hint: Any) -> set[Any]:
    """Return the plain types in an annotation."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return set().union(*map(_kinds, typing.get_args(hint)))
    return {hint}


def check_weights(pipeline: Any, pipeline_files: PipelineFiles) -> None:
    """Check that the files of every model hold as many numbers as the model has weights.

    Libraries fill weights that are missing with random numbers, and only log it. Names are not compared, since
    libraries rename weights; weights that share memory count once.

    Raises:
        CondistillError: names the first component whose files hold too few.
    """
    import torch
    from safetensors import safe_open

    for name, model in pipeline.components.items():
        files = pipeline_files.weights(name) if isinstance(model, torch.nn.Module) else []
        if not files:
            continue
        held = 0
        for file in files:
            with safe_open(file, "pt") as tensors:
                held += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
        needed = sum(weight.numel() for weight in model.parameters())
        if held < needed:
            names = ", ".join(file.name for file in files)
            raise CondistillError(
                f"the teacher's {name} cannot be loaded: {names} in {pipeline_files.directory / name} hold {held:,} "
                f"numbers, and the model has {needed:,} weights; download or save the files again"
            )


def check_sample_size(config: Mapping[str, Any], pipeline_class: str, file: str, *, resolution: int | None) -> None:
    """Check that a config with a `sample_size` of null can be used with the resolution of the recipe.

    Raises:
        CondistillError: it cannot; the message names what to set.
    """
    if config.get("sample_size", 0) is not None:
        return
    if resolution is None:
        raise CondistillError(
            f"{file} has sample_size: null, so the pipeline does not say which images it makes; set teacher.resolution "
            "to their height and width in pixels"
        )
    if pipeline_class in _NEED_SAMPLE_SIZE:
        raise CondistillError(
            f"{file} has sample_size: null, with which diffusers cannot load a {pipeline_class}; write the height of "
            "the latents there, such as 64 for images of 512 pixels"
        )


def checked_count(value: Any, key: str, file: str) -> int:
    """Return a value that must be a whole number above 0.

    Raises:
        CondistillError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise unusable(file, f"{key} is {shorten(repr(value), 60)}, and must be a whole number above 0")
    return value


def checked_factor(value: Any, key: str, file: str) -> float:
    """Return a value that must be a finite number other than 0.

    Raises:
        CondistillError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, _NUMBERS) or not math.isfinite(value) or value == 0:
        raise unusable(file, f"{key} is {shorten(repr(value), 60)}, and must be a number other than 0")
    return float(value)
