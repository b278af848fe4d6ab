"""Scores of a teacher's channels, over calibration batches.

`activation`: the root mean square of a channel's activations. `taylor`: the first-order change of the teacher's squared
error if the channel's activations were 0: |E[sum of output x gradient]|, the Taylor criterion of Molchanov et al., ICLR
2017, arXiv 1611.06440, with the mean over samples inside the bars. The error is measured between the teacher's
prediction and the noise that was added, or the velocity. Against the teacher's own prediction, error and gradient would
be 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from condistill.errors import CondistillError
from condistill.students.scores.calibration import CalibrationBatch
from condistill.teachers.family import Family


def channel_importance(
    family: Family, kind: Literal["activation", "taylor"], batches: Iterable[CalibrationBatch]
) -> dict[str, Tensor]:
    """Return the score of every output channel of each linear or convolutional layer, at least 0.

    Returns:
        float32 `[C]` by module path.

    Raises:
        CondistillError: a score is not finite.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    with _hooked(family.denoiser, kind, sums), torch.set_grad_enabled(kind == "taylor"):
        for batch in batches:
            count += len(batch.x_t)
            prediction = family.predict(family.denoiser, batch.x_t, batch.timesteps, batch.condition)
            if kind == "taylor":
                # summed, not averaged: small numbers are lost in half precision, and only ratios matter
                torch.autograd.backward((prediction - batch.target).square().sum())
    scores = {
        name: (total / count).sqrt() if kind == "activation" else total.abs() / count for name, total in sums.items()
    }
    for name, score in scores.items():
        if not score.isfinite().all():
            raise CondistillError(
                f"student.importance {kind!r}: the activations of {name} are too large for {family.denoiser.dtype}; "
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
            activations = output.detach().float()  # a hook that holds the graph would keep it alive
            if kind == "activation":
                add(name, activations.square().mean(others) * len(activations))
                return
            if not output.requires_grad:
                output.requires_grad_()
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: add(name, (activations * gradient.float()).sum(others))
            )

        return record

    layers = [(name, layer) for name, layer in denoiser.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
