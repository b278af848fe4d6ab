"""Compare exported graphs with torch: each graph on random inputs, and one image that all of them generate.

The reference is torch in a more precise dtype with the same weights: float64 for graphs in float32, and float32 for
graphs in float16. The tolerance is a multiple of the error that torch itself makes in the dtype of the graphs, measured
on the same inputs. Sines of timesteps near 1,000, which torch computes in float32 always, have an error of
1000 * 2^-24, so the tolerance is at least `FLOORS` of the largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condistill.export.exporter import Comparison
from condistill.export.graphs import Graph, Sizes, build_graphs, computing_in, random_inputs, starting_noise
from condistill.export.tokens import tokenize
from condistill.utils.quiet import quiet_libraries

if TYPE_CHECKING:
    from condistill.teachers.family import Family

MULTIPLE = 8.0
"""Accepted multiple of torch's own error: the largest of many errors varies a few times between two orders of the same
sums, and a wrong operation is orders of magnitude off."""
FLOORS = {"float32": 1e-4, "float16": 4e-3}
"""Share of the largest value that is always accepted, by dtype of the weights."""
PIXEL_FLOOR = 1 / 255
"""One of the 256 levels of a pixel: the difference of two images that is always accepted, in the range from 0 to 1."""
IMAGE_STEPS = 4
"""Steps of the image that is compared."""
Arrays = Mapping[str, NDArray[np.generic]]
Run = Callable[[str, Arrays], Arrays]
"""Runs a graph by its name: inputs to outputs."""


@dataclass(frozen=True)
class Precision:
    """What graphs of a dtype are compared with."""

    dtype: str
    """Of the weights in the graphs."""
    allowed: float = 0.0
    """Share of the largest value that is accepted besides, for quantised weights."""
    allowed_pixel: float = 0.0
    """Difference of a pixel that is accepted besides, for quantised weights."""

    @property
    def own(self) -> torch.dtype:
        """The dtype of the graphs."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def reference(self) -> torch.dtype:
        """The more precise dtype."""
        return torch.float64 if self.dtype == "float32" else torch.float32


@dataclass(frozen=True)
class _Case:
    """Inputs of one graph, or of the image, and what torch makes of them."""

    subject: str
    inputs: Arrays | None
    """None: the image."""
    expected: Arrays
    own: Arrays

    def compared(self, found: Arrays, precision: Precision) -> Comparison:
        """Return the comparison of an export's outputs with torch's."""
        difference = max(_largest(found[name], value) for name, value in self.expected.items())
        own = max(_largest(self.own[name], value) for name, value in self.expected.items())
        largest = max(float(np.abs(value).max()) for value in self.expected.values())
        floor = FLOORS[precision.dtype] * largest + precision.allowed * largest
        if self.inputs is None:
            floor = PIXEL_FLOOR + precision.allowed_pixel
        return Comparison(self.subject, difference, max(MULTIPLE * own, floor))


def compare(family: Family, run: Run, precision: Precision) -> tuple[Comparison, ...]:
    """Return the comparison of every graph, at two batch sizes, resolutions and lengths each, and of an image.

    Args:
        run: runs the exported graphs.
    """
    cases = _cases(family, precision)
    found: dict[str, Comparison] = {}
    for case in cases:
        name = case.subject
        outputs = image_of(family, run) if case.inputs is None else run(name, case.inputs)
        comparison = case.compared(outputs, precision)
        worst = found.get(name)
        if worst is None or _excess(comparison) > _excess(worst) or not np.isfinite(comparison.largest_difference):
            found[name] = comparison
    return tuple(found.values())


def _cases(family: Family, precision: Precision) -> list[_Case]:
    """Return what torch makes of all inputs, in the reference's dtype and in that of the export."""
    graphs = build_graphs(family)
    inputs = [
        (graph.name, random_inputs(family, graph, sizes, seed=number))
        for graph in graphs
        for number, sizes in enumerate(sizes_of_comparison(family))
    ]
    results: list[list[Arrays]] = []
    for dtype, rounded in ((precision.reference, precision.own), (precision.own, None)):
        with quiet_libraries(), computing_in(family, dtype, rounded=rounded):
            by_name = {graph.name: graph for graph in build_graphs(family)}
            outputs = [_arrays(by_name[name].run(given)) for name, given in inputs]
            results.append([*outputs, image_of(family, torch_runner(by_name))])
    names = [*inputs, ("image", None)]
    return [
        _Case(name, None if given is None else _arrays(given), expected, own)
        for (name, given), expected, own in zip(names, *results, strict=True)
    ]


def sizes_of_export(family: Family) -> Sizes:
    """Return the sizes that graphs are traced with: odd numbers of patches, which no operation can take for special."""
    m = family.latent_multiple
    return Sizes(3, 3 * m, 5 * m, 0)


def sizes_of_comparison(family: Family) -> tuple[Sizes, Sizes]:
    """Return two sizes other than those of the export."""
    m = family.latent_multiple
    return Sizes(1, 4 * m, 7 * m, -3), Sizes(2, 6 * m, 3 * m, -5)


def torch_runner(graphs: Mapping[str, Graph]) -> Run:
    """Return a function that runs graphs by torch."""

    def run(name: str, inputs: Arrays) -> Arrays:
        return _arrays(graphs[name].run({key: torch.from_numpy(value) for key, value in inputs.items()}))

    return run


@torch.no_grad()
def image_of(family: Family, run: Run) -> Arrays:
    """Return one image `[1, 3, H, W]` in [0, 1] that graphs generate, always from the same noise and prompt."""
    sampling = family.default_sampling()
    mode = family.guidance.mode(family.denoiser.config)
    prompt = next(iter(family.class_labels)) if family.class_labels else "a small red star"
    noise, is_guided = starting_noise(family), mode == "cfg" and sampling.guidance_scale > 1
    conditions = [_condition(family, run, prompt)]
    if is_guided:
        conditions.append(_condition(family, run, ""))
    if mode == "embedded":
        conditions[0]["guidance_scale"] = np.array([sampling.guidance_scale], np.float32)

    def predict(x_t: Tensor, timestep: Tensor) -> Tensor:
        inputs = {"sample": x_t.numpy(), "timestep": timestep.reshape(1).numpy()}
        predictions = [torch.from_numpy(run("denoiser", inputs | each)["prediction"]) for each in conditions]
        if not is_guided:
            return predictions[0]
        return torch.lerp(predictions[1], predictions[0], sampling.guidance_scale)

    latents = _sampled(family, predict, noise)
    images = run("vae_decoder", {"latents": latents.numpy()})["images"].astype(np.float32)
    return {"image": np.clip(images / 2 + 0.5, 0, 1)}


def _sampled(family: Family, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor) -> Tensor:
    """Return the latents after a few steps of the deterministic solver."""
    kind = family.example_inputs(family.denoiser, family.latent_shape[1:], family.text_length)["timestep"].dtype
    schedule, x_t = family.noise, noise
    timesteps = schedule.solver_timesteps(IMAGE_STEPS).to(kind)
    following = torch.cat([timesteps[1:], torch.tensor([-1], dtype=kind)])
    for t, t_next in zip(timesteps, following, strict=True):
        x_t = schedule.step(predict(x_t, t), x_t, t.reshape(1), t_next.reshape(1))
    return x_t.float()


def _condition(family: Family, run: Run, prompt: str) -> dict[str, NDArray[np.generic]]:
    """Return the condition of a prompt, with sizes and parts of images as the family makes them."""
    (tokens,) = tokenize(family, [prompt])
    encoded = dict(tokens if family.class_labels is not None else run("text_encoder", tokens))
    if not prompt and family.zeros_for_empty_prompt:
        encoded = {name: np.zeros_like(value) for name, value in encoded.items()}
    rest = {name: value for name, value in family.encode([prompt]).tensors.items() if name not in encoded}
    condition = encoded | {name: value.float().numpy() for name, value in rest.items()}
    if "masked_latents" in condition:
        grey = np.zeros((1, 3, *family.image_size), np.float32)
        condition["masked_latents"] = run("vae_encoder", {"images": grey})["latents"]
    return condition


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.generic]]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _largest(one: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())


def _excess(comparison: Comparison) -> float:
    return comparison.largest_difference / comparison.tolerance
