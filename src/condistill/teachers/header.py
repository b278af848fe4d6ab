"""The header of a safetensors file: names, shapes and dtypes of its tensors, and what kind of file it is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from condistill.errors import CondistillError
from condistill.utils.text import shorten

_LONGEST = 10**8
"""Bytes of a header; the format allows no more."""
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}
WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")
"""Dtypes of weights that can be trained from; all others are quantised."""
_LORA = re.compile(r"(^|[._])lora[._]|lora_(A|B|up|down|mid|te|unet|transformer)|^lora|\.(hada|lokr|oft)_|dora_scale")
_QUANTISED = re.compile(r"\.(absmax|quant_map|quant_state\..+|scale_weight|weight_scale|comfy_quant|qweight|qzeros)$")
_KINDS: tuple[tuple[str, str], ...] = (
    (r"^(control_model\.|controlnet_|control_)", "a ControlNet; give the pipeline that it was made for"),
    (r"^(emb_params|string_to_param|clip_[gl])$", "a textual inversion; give the pipeline that it was made for"),
    (r"^(down_blocks|up_blocks)\.\d", "the denoiser of a pipeline alone; give the directory of the pipeline"),
    (r"^(input_blocks|output_blocks)\.\d", "a U-Net alone; give a file that also has text encoder and autoencoder"),
    (r"^(encoder|decoder)\.(down|up|down_blocks|up_blocks)\.\d", "an autoencoder; it can be teacher.vae"),
    (
        r"^(text_model\.|encoder\.block\.\d|text_projection|transformer\.resblocks)",
        "a text encoder alone; give a pipeline",
    ),
)
"""Pattern of a key, and what a file is that has one; in the order in which they are tried."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a safetensors file."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors spells it, such as `F16`."""


@dataclass(frozen=True)
class Header:
    """The tensors of a safetensors file by name, and its metadata."""

    file: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def dtypes(self, prefixes: tuple[str, ...] = ("",)) -> dict[str, int]:
        """Return the bytes of the tensors whose names start with a prefix, by dtype, the largest first."""
        count: dict[str, int] = {}
        for name, tensor in self.tensors.items():
            if name.startswith(prefixes):
                count[tensor.dtype] = count.get(tensor.dtype, 0) + prod(tensor.shape) * _BYTES.get(tensor.dtype, 1)
        return dict(sorted(count.items(), key=lambda item: -item[1]))


def read_header(file: Path, *, setting: str) -> Header:
    """Return the header of a safetensors file; no weight is read.

    Args:
        setting: the name of the setting that gives the file, for messages.

    Raises:
        CondistillError: the file does not exist, is of another format, or is cut off.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(8)
            length = int.from_bytes(start, "little")
            if start[:4] == b"GGUF":
                raise CondistillError(
                    f"{setting} {file} is a GGUF file, whose weights are quantised; give the safetensors file or the "
                    "pipeline that it was made from"
                )
            text = opened.read(length) if 2 <= length <= min(size - 8, _LONGEST) else b""
        data = json.loads(text)
        metadata = data.pop("__metadata__", None) or {}
        tensors = {name: TensorInfo(_sizes(info["shape"]), str(info["dtype"])) for name, info in data.items()}
        end = max((info["data_offsets"][1] for info in data.values()), default=0)
    except OSError as error:
        raise CondistillError(f"{setting} {file} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise CondistillError(
            f"{setting} {file} is no safetensors file, or is damaged; download or save it again"
        ) from error
    if size < 8 + length + end:
        raise CondistillError(
            f"{setting} {file} is cut off: it has {size:,} bytes of {8 + length + end:,}; download it again"
        )
    return Header(file, tensors, {str(name): str(value) for name, value in metadata.items()})


def _sizes(shape: Any) -> tuple[int, ...]:
    """Return a shape as a tuple.

    Raises:
        ValueError: a size is no whole number of 0 or more.
    """
    if not all(isinstance(size, int) and 0 <= size < 2**40 for size in shape):
        raise ValueError(shape)
    return tuple(shape)


def is_lora(names: Iterable[str]) -> bool:
    """Return whether the tensors of a file are those of a LoRA, or of a kindred method."""
    return any(_LORA.search(name) for name in names)


def check_weights_are_whole(header: Header, *, setting: str) -> None:
    """Check that the weights of a file are not quantised.

    Raises:
        CondistillError: they are; the message names the first such tensor, or the dtype.
    """
    name = next((name for name in header.tensors if _QUANTISED.search(name)), None)
    dtypes = header.dtypes()
    dtype = next(iter(dtypes), "F32")
    if name is None and dtype in WEIGHT_DTYPES:
        return
    sign = f"it has {shorten(name, 80)}" if name else f"most of them are {dtype}"
    raise CondistillError(
        f"the weights of {setting} {header.file} are quantised ({sign}); give a file in float32, float16 or bfloat16"
    )


def what_it_is(header: Header) -> str | None:
    """Return what a file is that is no pipeline, with what to do; None if that is not known."""
    if is_lora(header.tensors):
        return "a LoRA; give its base model as teacher.pipeline, and this file in teacher.loras"
    for pattern, what in _KINDS:
        if any(re.search(pattern, name) for name in header.tensors):
            return what
    return None


def shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
