"""The steps of a pipeline as modules of tensors: what graphs are made of, and with which inputs.

All inputs and outputs are float32 or int64, whatever the dtype of the weights, so that a runner needs no other dtypes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from condistill.export.tokens import tokenize
from condistill.teachers.condition import Condition
from condistill.utils.randomness import Stream, image_noise
from condistill.utils.weights import is_cast

if TYPE_CHECKING:
    from collections.abc import Iterator

    from condistill.teachers.family import Family

Axes = tuple[str, ...]
"""Names of the axes of a tensor whose size is free, in their order; a fixed axis is an empty name."""


@dataclass(frozen=True)
class Sizes:
    """The sizes for which inputs are made."""

    batch: int
    height: int
    """Of the latents."""
    width: int
    length: int
    """Tokens more than the least of each text encoder, or fewer than all."""


class Step(nn.Module):
    """A step of a pipeline: tensors to tensors."""

    def __init__(self, family: Family, inputs: Mapping[str, Axes], models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.inputs = dict(inputs)
        self.models = nn.ModuleList(models)
        self._family = [family]  # in a list: it is no module

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the outputs for the inputs in their order."""
        sizes: dict[str, int] = {}
        for axes, tensor in zip(self.inputs.values(), tensors, strict=True):
            for axis, size in zip(axes, tensor.shape, strict=True):
                if axis:
                    # the exporter learns that they are equal
                    torch._check(size == sizes.setdefault(axis, size))  # type: ignore[no-untyped-call]
        return self.compute(dict(zip(self.inputs, tensors, strict=True)))

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
        """Return the outputs for inputs by name."""
        raise NotImplementedError


class Encode(Step):
    """Tokens to the condition of a denoiser."""

    outputs: tuple[str, ...] = ()

    def compute(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the tensors of the condition, numbers in float32."""
        condition = self._family[0].encode_tokens(tensors).tensors
        return tuple(_plain(condition[name]) for name in self.outputs)


class Denoise(Step):
    """x_t, timesteps and a condition to a prediction."""

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the prediction `[B, C, h, w]` in float32."""
        condition = {name: tensor for name, tensor in tensors.items() if name not in ("sample", "timestep")}
        family = self._family[0]
        return family.predict(family.denoiser, tensors["sample"], tensors["timestep"], Condition(condition))


class Decode(Step):
    """Latents to images."""

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return images `[B, 3, H, W]` in [-1, 1] in float32."""
        return self._family[0].decode_to_tensor(tensors["latents"]).float()


class EncodeImage(Step):
    """Images to latents."""

    def compute(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return latents `[B, C, h, w]` in float32."""
        return self._family[0].encode_image(tensors["images"]).float()


@dataclass(frozen=True)
class Graph:
    """One step of a pipeline as a module."""

    name: str
    """Also of its file: `text_encoder`, `denoiser`, `vae_decoder`, `vae_encoder`."""
    module: Step
    outputs: tuple[str, ...]

    @property
    def inputs(self) -> Mapping[str, Axes]:
        """The free axes of each input by name, in the order of the module's arguments."""
        return self.module.inputs

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name."""
        found = self.module(*(inputs[name] for name in self.inputs))
        return dict(zip(self.outputs, found if isinstance(found, tuple) else (found,), strict=True))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def build_graphs(family: Family) -> tuple[Graph, ...]:
    """Return the graphs of a pipeline in the order of sampling."""
    pipeline, found = family.pipeline, []
    condition = condition_axes(family)
    if family.class_labels is None:
        tokens: dict[str, Axes] = {}
        for each in family.text_inputs():
            tokens |= {name: ("batch", f"{each.ids}_length") for name in (each.ids, each.mask) if name}
        encoders = [
            part for name, part in pipeline.components.items() if isinstance(part, nn.Module) and "text_enc" in name
        ]
        encode = Encode(family, tokens, encoders)
        encode.outputs = tuple(name for name in condition if name not in ("time_ids", *_IMAGE_AXES))
        found.append(Graph("text_encoder", encode, encode.outputs))
    latents: Axes = ("batch", "", "height", "width")
    inputs: dict[str, Axes] = {"sample": latents, "timestep": ("batch",), **condition}
    if family.guidance.mode(family.denoiser.config) == "embedded":
        inputs["guidance_scale"] = ("batch",)
    found.append(Graph("denoiser", Denoise(family, inputs, [family.denoiser]), ("prediction",)))
    if family.has_image_condition:
        found.append(Graph("vae_encoder", EncodeImage(family, {"images": latents}, [pipeline.vae]), ("latents",)))
    found.append(Graph("vae_decoder", Decode(family, {"latents": latents}, [pipeline.vae]), ("images",)))
    return tuple(found)


_IMAGE_AXES: Mapping[str, Axes] = {
    "mask": ("batch", "", "height", "width"),
    "masked_latents": ("batch", "", "height", "width"),
}


@torch.no_grad()
def condition_axes(family: Family) -> dict[str, Axes]:
    """Return the free axes of each tensor of a condition, found by encoding the empty prompt."""
    axes: dict[str, Axes] = {}
    for name, tensor in family.encode([""]).tensors.items():
        is_per_token = tensor.dim() == 3 or (tensor.dim() == 2 and not tensor.is_floating_point())
        rest: Axes = ("condition_length", "") if is_per_token else ("",)
        axes[name] = _IMAGE_AXES.get(name, ("batch", *rest)[: tensor.dim()])
    return axes


@torch.no_grad()
def random_inputs(family: Family, graph: Graph, sizes: Sizes, *, seed: int) -> dict[str, Tensor]:
    """Return inputs of a graph: tokens, latents and conditions of random numbers, timesteps within their range."""
    random = torch.Generator().manual_seed(seed)
    if graph.name == "text_encoder":
        return _random_tokens(family, sizes, random)
    if graph.name == "vae_encoder":
        shape = (sizes.batch, 3, *(side * family.pixels_per_latent for side in (sizes.height, sizes.width)))
        return {"images": torch.rand(shape, generator=random) * 2 - 1}
    latents = torch.randn(sizes.batch, family.latent_channels, sizes.height, sizes.width, generator=random)
    if graph.name == "vae_decoder":
        return {"latents": latents * 0.5}
    inputs = {"sample": latents, "timestep": _random_timesteps(family, sizes.batch, random)}
    given = family.encode([""]).tensors
    for name, axes in graph.inputs.items():
        if name == "guidance_scale":
            inputs[name] = torch.rand(sizes.batch, generator=random) * 5 + 1
        elif name not in inputs:
            inputs[name] = _random_like(given[name], axes, sizes, random)
    return inputs


def _random_timesteps(family: Family, batch: int, random: torch.Generator) -> Tensor:
    timesteps = torch.rand(batch, generator=random) * 900 + 50
    example = family.example_inputs(family.denoiser, family.latent_shape[1:], family.text_length)["timestep"]
    return timesteps.to(example.dtype)


def _random_like(given: Tensor, axes: Axes, sizes: Sizes, random: torch.Generator) -> Tensor:
    known = {
        "batch": sizes.batch,
        "height": sizes.height,
        "width": sizes.width,
        "condition_length": given.shape[1] + sizes.length if given.dim() > 1 else 0,
    }
    shape = [known.get(axis, size) for axis, size in zip(axes, given.shape, strict=True)]
    if not given.is_floating_point():
        if given.dim() == 1:
            return torch.randint(0, 1000, shape, generator=random)
        mask = torch.ones(shape, dtype=given.dtype)
        mask[:, -2:] = 0
        return mask
    spread = float(given.float().std()) if given.numel() > 1 else 1.0
    return torch.randn(shape, generator=random) * (spread or 1.0)


def _random_tokens(family: Family, sizes: Sizes, random: torch.Generator) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = {}
    (tokens,) = tokenize(family, ["a"])
    for each in family.text_inputs():
        change = sizes.length if each.least == 1 else abs(sizes.length)
        known = torch.from_numpy(tokens[each.ids])[0]
        length = len(known) + change
        vocabulary = len(getattr(family.pipeline, each.tokenizer))
        ids = torch.randint(0, vocabulary, (sizes.batch, length), generator=random)
        inputs[each.ids] = torch.where(ids == known[-1], ids[:1, :1], ids)
        inputs[each.ids][:, -2:] = known[-1]
        if each.mask:
            inputs[each.mask] = torch.ones(sizes.batch, length, dtype=torch.int64)
            inputs[each.mask][:, -2:] = 0
    return inputs


def starting_noise(family: Family) -> Tensor:
    """Return the noise `[1, C, h, w]` of the image that is compared."""
    return torch.from_numpy(image_noise(0, Stream.EVALUATION_NOISE, 0, family.latent_shape))[None]


@contextmanager
def computing_in(family: Family, dtype: torch.dtype, *, rounded: torch.dtype | None = None) -> Iterator[None]:
    """Put copies of the models, converted to a dtype, into the pipeline for a while.

    Args:
        rounded: dtype to which weights are rounded first; weights that their model keeps in float32 are not.
    """
    models = {name: part for name, part in family.pipeline.components.items() if isinstance(part, nn.Module)}
    try:
        for name, model in models.items():
            is_decoder = model is family.pipeline.components.get("vae")
            converted = copy.deepcopy(model)
            for each in (rounded, dtype):
                if each is not None:
                    _convert(converted, family.decoder_dtype(each) if is_decoder else each)
            setattr(family.pipeline, name, converted)
        yield
    finally:
        for name, model in models.items():
            setattr(family.pipeline, name, model)


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert weights and buffers in place; to a dtype of 16 bits only those that their library converts."""
    if dtype.itemsize > 2:
        model.to(dtype)
        return
    stored = set(model.state_dict())  # tables that are computed when a model is built stay as they are
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in stored and is_cast(model, name, tensor):
            tensor.data = tensor.data.to(dtype)
