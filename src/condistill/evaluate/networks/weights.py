"""Read the weights of a network from a file without running code that is in it."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from condistill.errors import CondistillError
from condistill.teachers.header import read_header
from condistill.utils.text import first_line


def read_weights(file: Path, setting: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a file that `torch.save` wrote, by name.

    A pickle is read with `weights_only=True`: it may hold tensors and plain data, and runs no code. The tensors of a
    training's checkpoint are those of its `state_dict`.

    Args:
        setting: of the recipe, for messages.

    Raises:
        CondistillError: the file cannot be read, or holds no tensors.
    """
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats, which are read or refused
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise CondistillError(
            f"{setting}: {file} cannot be read as weights ({_reason(error)}); files with anything but tensors are "
            "refused, since they can run code; download it again, or give a safetensors file with the same names"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CondistillError(
            f"{setting}: {file} holds no tensors by name; give a state dict, as published, or a safetensors file"
        )
    return {str(name): value for name, value in state.items()}


def read_shapes(file: Path, setting: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a file of weights by name; few of them, or none, are read into memory.

    Raises:
        CondistillError: the file is damaged or cut off, or holds no tensors.
    """
    if file.suffix == ".safetensors":
        return {name: tensor.shape for name, tensor in read_header(file, setting=f"{setting}:").tensors.items()}
    return {name: tuple(value.shape) for name, value in read_weights(file, setting).items()}


def _reason(error: BaseException) -> str:
    """Return why a file cannot be read, in a few words."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is no pickle of tensors"
    return first_line(error)
