"""LoRAs of a teacher: read them, check that they fit, and add them to the weights.

A LoRA of rank r holds two matrices for a layer, A `[r, in]` and B `[out, r]`, and a number alpha. It adds
`scale alpha / r B A` to the weight of the layer (Hu et al., arXiv 2106.09685, section 4.1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condistill.config.sections import LoraSettings
from condistill.errors import CondistillError
from condistill.teachers.header import is_lora, read_header
from condistill.utils.text import shorten

_OTHER_METHODS = re.compile(r"dora_scale|lora_magnitude_vector|\.(hada|lokr|oft)_|lora_mid|\.diff(_b)?$")
_SHOWN = 3
_SETTING = "teacher.loras"


@dataclass(frozen=True)
class LoraLayer:
    """What a LoRA adds to one layer."""

    component: str
    """Component of the pipeline, such as `unet`."""
    module: str
    """Path of the layer in it."""
    down: Tensor
    """A: `[r, in]`, or `[r, in, h, w]` of a convolution."""
    up: Tensor
    """B: `[out, r]`, or `[out, r, 1, 1]` of a convolution."""
    factor: float
    """The scale of the recipe times alpha / r."""

    def delta(self, shape: torch.Size) -> Tensor:
        """Return what is added to a weight of this shape, float32."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (self.factor * product).reshape(shape)

    def fits(self, shape: torch.Size) -> bool:
        """Return whether the matrices give a weight of this shape."""
        out, rank = self.up.flatten(1).shape
        return out == shape[0] and rank == self.down.shape[0] and self.down[0].numel() == math.prod(shape[1:])


def read_lora(
    pipeline_class: Any, settings: LoraSettings, components: Mapping[str, Any], *, given_as: str = _SETTING
) -> list[LoraLayer]:
    """Return the layers of a LoRA file in diffusers', peft's or kohya's naming, each of which fits the pipeline.

    Args:
        pipeline_class: class of the diffusers pipeline, which knows the naming.
        components: of the pipeline, by name; they may be on the meta device.
        given_as: the setting or the option that gives the file, for messages.

    Raises:
        CondistillError: the file is no LoRA that can be added, or a layer of it fits none of the pipeline.
    """
    file = Path(settings.path)
    _check_file(file, given_as)
    if not hasattr(pipeline_class, "lora_state_dict"):
        raise CondistillError(
            f"{given_as}: diffusers knows no LoRAs of a {pipeline_class.__name__}; leave out {file.name}"
        )
    denoiser = components.get("unet")
    try:
        found = pipeline_class.lora_state_dict(
            str(file.absolute().parent),
            weight_name=file.name,
            return_alphas=True,
            return_lora_metadata=True,
            use_safetensors=True,
            local_files_only=True,
            **({} if denoiser is None else {"unet_config": denoiser.config}),
        )
    except Exception as error:  # the conversions of names raise many kinds of exceptions
        reason = shorten(str(error).replace("\n", " "), 200)
        raise CondistillError(
            f"the LoRA {file} does not fit the teacher, a {pipeline_class.__name__}: its names cannot be converted "
            f"({type(error).__name__}: {reason})"
        ) from error
    state, alphas, metadata = (*found, None, None)[:3] if isinstance(found, tuple) else (found, None, None)
    pairs, strange = _pairs(state)
    layers = [_layer(place, pair, alphas or {}, metadata or {}, settings.scale) for place, pair in pairs.items()]
    _check_fit(file, layers, strange, components)
    return layers


def _check_file(file: Path, given_as: str) -> None:
    if not file.is_file():
        raise CondistillError(f"{given_as}: {file} does not exist; give a safetensors file")
    header = read_header(file, setting=f"{given_as}:")
    if not is_lora(header.tensors):
        raise CondistillError(f"{given_as}: {file} is no LoRA: none of its tensors is named as one of a LoRA")
    if other := next((name for name in header.tensors if _OTHER_METHODS.search(name)), None):
        remedy = "give the result as teacher.pipeline" if given_as == _SETTING else "distill a student of the result"
        raise CondistillError(
            f"{given_as}: {file} has {shorten(other, 100)}, so it is no plain LoRA (but a DoRA, LoHa, LoKr or the "
            "like), which cannot be added here; merge it into the pipeline with the program that trained it, and "
            f"{remedy}"
        )


def _pairs(state: Mapping[str, Tensor]) -> tuple[dict[tuple[str, str], dict[str, Tensor]], list[str]]:
    """Return the two matrices of each (component, module), and the names that are neither."""
    pairs: dict[tuple[str, str], dict[str, Tensor]] = {}
    strange = []
    for name, tensor in state.items():
        found = re.fullmatch(r"(.+)\.lora_(A|B)\.weight", _peft_name(name))
        if found is None:
            strange.append(name)
            continue
        component, _, module = found[1].partition(".")
        pairs.setdefault((component, module), {})[found[2]] = tensor
    strange += [f"{c}.{m} without its other matrix" for (c, m), pair in pairs.items() if len(pair) < 2]
    return {place: pair for place, pair in pairs.items() if len(pair) == 2}, strange


def _peft_name(name: str) -> str:
    """Return the name of a tensor as peft spells it: `<component>.<module>.lora_A.weight`."""
    attention = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
    if name.startswith("text_encoder"):
        attention = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
    name = name.replace(".processor.", ".").replace(".lora_linear_layer.", ".lora.")
    name = re.sub(r"\.to_(q|k|v|out)_lora\.", lambda found: f".{attention[found[1]]}.lora.", name)
    return name.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")


def _layer(
    place: tuple[str, str],
    pair: Mapping[str, Tensor],
    alphas: Mapping[str, Any],
    metadata: Mapping[str, Any],
    scale: float,
) -> LoraLayer:
    component, module = place
    rank = pair["A"].shape[0]
    of_modules = {_module_of_alpha(name): float(value) for name, value in alphas.items()}
    settings = {
        name.removeprefix(f"{component}."): value
        for name, value in metadata.items()
        if name.startswith(f"{component}.")
    }
    alpha = of_modules.get(f"{component}.{module}")
    if alpha is None:
        alpha = float(_of_pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha", rank)))
    root = math.sqrt(rank) if settings.get("use_rslora") else rank
    return LoraLayer(component, module, pair["A"], pair["B"], scale * alpha / root)


def _module_of_alpha(name: str) -> str:
    """Return the component and the module that an alpha belongs to."""
    name = name.removesuffix(".alpha")
    name = name if re.search(r"\.(down|up|lora_A|lora_B)\.weight$", name) else f"{name}.lora.down.weight"
    return _peft_name(name).split(".lora_A.")[0]


def _of_pattern(patterns: Any, module: str, otherwise: float) -> float:
    """Return the value of the first pattern that matches a module, as peft matches them."""
    for pattern, value in patterns.items() if isinstance(patterns, Mapping) else ():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return otherwise


def _check_fit(file: Path, layers: Sequence[LoraLayer], strange: Sequence[str], components: Mapping[str, Any]) -> None:
    """Check that every layer of a LoRA is one of the pipeline, with the same shape."""
    wrong = [*strange]
    for layer in layers:
        name = f"{layer.component}.{layer.module}"
        weight = weight_of(components.get(layer.component), layer.module)
        if weight is None:
            wrong.append(f"{name}, which the teacher has not")
        elif not layer.fits(weight.shape):
            adds = [layer.up.shape[0], *layer.down.shape[1:]]
            wrong.append(f"{name} of {adds}, where the teacher has {list(weight.shape)}")
    if wrong or not layers:
        shown = "; ".join(shorten(text, 160) for text in wrong[:_SHOWN]) or "it has no layers"
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise CondistillError(
            f"the LoRA {file} does not fit the teacher: {len(wrong)} of its layers do not: {shown}{more}; give one "
            "that was trained for this model"
        )
    broken = [layer for layer in layers if not all(bool(m.isfinite().all()) for m in (layer.down, layer.up))]
    if broken:
        shown = ", ".join(shorten(f"{layer.component}.{layer.module}", 160) for layer in broken[:_SHOWN])
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise CondistillError(
            f"the LoRA {file} has values that are not finite in {shown}{more}: its training diverged; give one whose "
            "images are right"
        )


def weight_of(model: Any, module: str) -> nn.Parameter | None:
    """Return the weight of a layer of a model; None where the model has no such layer."""
    if not isinstance(model, nn.Module):
        return None
    names = [module]
    if not hasattr(model, "text_model"):
        names.append(module.removeprefix("text_model."))  # some versions of transformers have it, some have not
    elif not module.startswith("text_model."):
        names.append(f"text_model.{module}")
    for name in names:
        try:
            weight = getattr(model.get_submodule(name), "weight", None)
        except AttributeError:
            continue
        if isinstance(weight, nn.Parameter):
            return weight
    return None


@torch.no_grad()
def fuse(layers: Iterable[LoraLayer], components: Mapping[str, Any]) -> None:
    """Add the layers of a LoRA to the weights of their components; sums are computed in float32."""
    for layer in layers:
        weight = weight_of(components[layer.component], layer.module)
        assert weight is not None, "checked when it was read"
        weight.copy_(weight.float() + layer.delta(weight.shape).to(weight.device))


@contextmanager
def fused(layers: Sequence[LoraLayer], components: Mapping[str, Any]) -> Iterator[None]:
    """Add the layers of a LoRA to the weights for a while; afterwards every weight is exactly as before."""
    found = (weight_of(components[layer.component], layer.module) for layer in layers)
    before = [(weight, weight.detach().clone()) for weight in found if weight is not None]
    try:
        fuse(layers, components)
        yield
    finally:
        with torch.no_grad():
            for weight, content in before:
                weight.copy_(content)


def unmentioned_loras(directory: Path, loras: Sequence[LoraSettings]) -> list[Path]:
    """Return the LoRA files at the top level of a teacher's directory that are not among its LoRAs."""
    known = {Path(lora.path).resolve() for lora in loras}
    found = []
    for file in sorted(directory.glob("[!.]*.safetensors")):
        try:
            names = read_header(file, setting="").tensors
        except CondistillError:
            continue  # a file that is not used may be damaged
        if is_lora(names) and file.resolve() not in known:
            found.append(file)
    return found
