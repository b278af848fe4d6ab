"""Convert the tensor names of original training code to those of diffusers, and compare shapes with a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from condistill.errors import CondistillError
from condistill.teachers.header import Header, shapes
from condistill.utils.text import shorten

_UNET = ("model.diffusion_model.",)
_VAE = ("first_stage_model.", "vae.", "encoder.", "decoder.")
_POSITIONS = "text_model.embeddings.position_embedding.weight"
_CLIP = (
    ("cond_stage_model.transformer.", False, _POSITIONS),
    ("conditioner.embedders.0.transformer.", False, _POSITIONS),
    ("text_encoders.clip_l.transformer.", False, _POSITIONS),
    ("text_encoders.clip_g.transformer.", False, _POSITIONS),
    ("cond_stage_model.model.", True, "positional_embedding"),
    ("conditioner.embedders.1.model.", True, "positional_embedding"),
)
"""Where files have a CLIP: prefix of its names, whether they are OpenCLIP's, and a tensor that shows its width."""
_SHOWN = 3


def converted_shapes(name: str, model: nn.Module, header: Header, config: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's tensors in a file under diffusers' names; empty where the file has none."""
    with torch.device("meta"):
        tensors = {key: torch.empty(tensor.shape) for key, tensor in header.tensors.items()}
    try:
        return shapes(converted_tensors(model, tensors))
    except CondistillError:
        raise
    except Exception as error:  # the conversions of diffusers expect the tensors of the kind that the config names
        raise CondistillError(
            f"the {name} of {header.file} cannot be converted with {config} "
            f"({type(error).__name__}: {shorten(str(error), 100)}); give configs of the same model as teacher.config"
        ) from error


def converted_tensors(model: nn.Module, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors of a model under diffusers' names; empty where the file has none.

    Args:
        tensors: of the file; the conversion may take some out.
    """
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        return _convert_text_encoder(model, tensors)
    kind = next((kind.__name__ for kind in type(model).__mro__ if kind.__name__ in SINGLE_FILE_LOADABLE_CLASSES), None)
    if kind is None:
        return {}
    prefixes = {"UNet2DConditionModel": _UNET, "AutoencoderKL": _VAE}.get(kind, ("",))
    if not any(key.startswith(prefixes) for key in tensors):
        return {}
    convert: Callable[..., Mapping[str, Tensor]] = SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"]
    return convert(checkpoint=tensors, config=dict(model.config))  # type: ignore[arg-type]


def _convert_text_encoder(model: nn.Module, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors of a text encoder under the names of transformers; empty where there are none."""
    from diffusers.loaders import single_file_utils as utils

    config: Any = model.config
    if hasattr(config, "d_model"):
        return utils.convert_sd3_t5_checkpoint_to_diffusers(tensors) if utils.is_t5_in_single_file(tensors) else {}
    width = config.hidden_size
    converted: dict[str, Tensor] = {}
    for prefix, is_open, first in _CLIP:
        key = prefix + first
        if key not in tensors or tensors[key].shape[-1] != width:
            continue
        if is_open:
            converted = utils.convert_open_clip_checkpoint(model, tensors, prefix=prefix)
        else:
            converted = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if prefix.startswith("text_encoders.clip_l"):
                converted["text_projection.weight"] = torch.empty(width, width, device="meta")
        break
    if not hasattr(model, "text_model"):
        converted = {key.removeprefix("text_model."): value for key, value in converted.items()}
    return converted


def check_shapes(
    name: str,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    header: Header,
    config: str,
    *,
    setting: str,
) -> None:
    wrong = [
        f"{key} is {_written(found.get(key))} in the file and {list(shape)} by the config"
        for key, shape in expected.items()
        if found.get(key) != shape
    ]
    if name in ("unet", "transformer"):  # a text encoder may be used without its last layers
        wrong += [f"{key} is in the file and not in the model of the config" for key in found if key not in expected]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        remedy = (
            "give the configs of this model as teacher.config"
            if setting == "teacher.pipeline"
            else "give one that fits"
        )
        raise CondistillError(
            f"{setting} {header.file} and {config} do not fit: {'; '.join(wrong[:_SHOWN])}{more}; {remedy}"
        )


def _written(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
