"""How much each channel of a teacher matters, by what it carries over cached latents.

Latents of the cache, noised to levels spread evenly over all there are, each with its own prompt. `activation`: the
root mean square of what a layer writes to the channel. `taylor`: how much the teacher's squared error against the truth
would change, to first order, if the layer wrote nothing to it: |E[sum of output x gradient]|, the Taylor criterion of
Molchanov et al., ICLR 2017, arXiv 1611.06440, with the mean over samples inside the bars. The error is measured against
the noise that was added, or its velocity: against what the teacher itself predicts it would be 0, and so would its
gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from condistill.cache.latents import LatentCache
from condistill.errors import CondistillError
from condistill.students.scores.calibration import States, cached_states, kept
from condistill.teachers.family import Family

SCORES_NAME = "channel_importance.safetensors"


def channel_importance(
    family: Family, kind: Literal["activation", "taylor"], samples: Iterable[States]
) -> dict[str, Tensor]:
    """A score, at least 0, of every channel that a linear or convolutional layer writes: float32 `[C]` by module path.

    Raises:
        CondistillError: a score is not a number.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    with _hooked(family.denoiser, kind, sums), torch.set_grad_enabled(kind == "taylor"):
        for states in samples:
            count += len(states.x_t)
            prediction = family.predict(family.denoiser, states.x_t, states.timesteps, states.condition)
            if kind == "taylor":
                # summed, not averaged: small numbers are lost in half precision, and only ratios matter
                torch.autograd.backward((prediction - states.target).square().sum())
    scores = {
        name: (total / count).sqrt() if kind == "activation" else total.abs() / count for name, total in sums.items()
    }
    for name, score in scores.items():
        if not score.isfinite().all():
            raise CondistillError(
                f"student.importance {kind!r}: what {name} carries is too large for {family.denoiser.dtype}; "
                "set teacher.dtype to float32, or importance to weight_norm"
            )
    return {name: score.float() for name, score in scores.items()}


@contextmanager
def _hooked(denoiser: nn.Module, kind: str, sums: dict[str, Tensor]) -> Iterator[None]:
    """Add to `sums`, for every sample, the mean square of each channel, or the sum of output x gradient."""

    def add(name: str, values: Tensor) -> None:
        sums[name] = sums.get(name, 0) + values.double().cpu()

    def hook(name: str) -> Callable[..., None]:
        def record(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            channel = 1 if isinstance(module, nn.Conv2d) else output.dim() - 1
            others = [dimension for dimension in range(output.dim()) if dimension != channel]
            written = output.detach().float()  # the graph must not hold itself
            if kind == "activation":
                add(name, written.square().mean(others) * len(written))
                return
            if not output.requires_grad:
                output.requires_grad_()
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: add(name, (written * gradient.float()).sum(others))
            )

        return record

    layers = [(name, layer) for name, layer in denoiser.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def kept_importance(
    family: Family,
    kind: Literal["activation", "taylor"],
    cache: LatentCache,
    directory: Path,
    accelerator: Any,
    *,
    seed: int,
    batch_size: int,
    guidance_range: tuple[float, float] | None = None,
) -> dict[str, Tensor]:
    """The scores of a run, kept in `directory`.

    Args:
        guidance_range: of scales, for teachers that are told one.

    Raises:
        CorruptError: the file is not what was written.
    """

    def measure(file: Path) -> None:
        states = cached_states(family, cache, seed=seed, batch_size=batch_size, guidance_range=guidance_range)
        save_file(channel_importance(family, kind, states), file)

    return kept(directory / SCORES_NAME, accelerator, measure, load_file)
