"""The memory that a training step needs, counted on the meta device: nothing is computed and nothing is allocated.

Each layer saves the tensors that torch would save for its backward, as tensors of shapes only, so the peak is that of
the real step. The kernels are those of a GPU: the attention map is never held (Dao et al., arXiv 2205.14135).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from condistill.plan.step import SyntheticStep
from condistill.profiling.memory import MemoryMeter

_HALF = {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, Tensor.matmul, Tensor.__matmul__}
_HALF |= {torch.bmm, torch.baddbmm, torch.addmm, torch.einsum}
"""Functions that torch's autocast computes in half precision."""
_SINGLE = {F.group_norm, F.layer_norm, F.softmax}
"""Functions that it computes in float32; the others keep the dtype of their inputs."""


def training_peak(step: SyntheticStep, half: torch.dtype | None, *, accumulates: bool = False) -> int:
    """Return the bytes alive at the peak of a step, gradients included, without weights, optimiser and average.

    Args:
        step: of networks on the meta device.
        half: the dtype of mixed precision, if it is on.
        accumulates: whether a step has further micro-batches, to whose gradients those of the last are added.
    """
    mode = SavedTensorsOnly(half)
    if step.settings.gradient_checkpointing:
        step.trained.denoiser.enable_gradient_checkpointing(mode.checkpoint)
    with MemoryMeter() as meter:
        if accumulates:
            for parameter in step.trained.parameters():
                parameter.grad = torch.empty_like(parameter)
        with mode:
            loss = step.loss(*step.forward_teacher(), autocast=mode.forward)
        loss.backward()  # type: ignore[no-untyped-call]
    return int(meter.peak)


class SavedTensorsOnly(TorchFunctionMode):
    """While active, layers on the meta device save tensors for the backward as they would, and compute shapes only."""

    def __init__(self, half: torch.dtype | None) -> None:
        """Start without cast weights.

        Args:
            half: the dtype of mixed precision, if it is on.
        """
        super().__init__()
        self._half = half
        self._cast: dict[int, Tensor] = {}

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Enter one forward, in which each weight is cast to half precision once, as by autocast."""
        try:
            yield
        finally:
            self._cast.clear()

    def checkpoint(self, layer: nn.Module, *inputs: Any) -> Any:
        """Run a layer whose inner tensors are recomputed in the backward, as diffusers does with checkpointing."""
        return checkpoint(
            layer.__call__, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), self._recomputation())
        )

    @contextmanager
    def _recomputation(self) -> Iterator[None]:
        with self, self.forward():
            yield

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._half is not None and func in _HALF | _SINGLE:
            dtype = self._half if func in _HALF else torch.float32
            args = tuple(self._as(value, dtype) for value in args)
            kwargs = {name: self._as(value, dtype) for name, value in kwargs.items()}
        layer = _LAYERS.get(func)
        return layer(*args, **kwargs) if layer else func(*args, **kwargs)

    def _as(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(dtype)
        return self._cast[id(value)]


class _Layer(torch.autograd.Function):
    """A layer of shapes only, with a gradient for each of its input tensors."""

    @staticmethod
    def forward(
        ctx: Any, shape: Sequence[int], saved: Sequence[bool], statistics: Sequence[Sequence[int]], *inputs: Tensor
    ) -> Tensor:
        """Return the output, and save tensors for the backward.

        Args:
            shape: of the output.
            saved: whether the backward needs each of the inputs and, last, the output.
            statistics: shapes of other float32 tensors that the backward needs.
        """
        output = inputs[0].new_empty(shape)
        others = [inputs[0].new_empty(size, dtype=torch.float32) for size in statistics]
        ctx.save_for_backward(*(t for t, keep in zip((*inputs, output), saved, strict=True) if keep), *others)
        ctx.like = [(t.shape, t.dtype) for t in inputs]
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        _ = ctx.saved_tensors  # with checkpointing, reading them recomputes the layer
        needed = ctx.needs_input_grad[3:]
        gradients = (
            gradient.new_empty(shape, dtype=dtype) if wanted else None
            for wanted, (shape, dtype) in zip(needed, ctx.like, strict=True)
        )
        return None, None, None, *gradients


def _layer(
    shape: Sequence[int], inputs: Sequence[Tensor | None], saved: Sequence[bool], *statistics: Sequence[int]
) -> Tensor:
    """Apply `_Layer`, without the inputs that are None."""
    pairs = [(tensor, keep) for tensor, keep in zip(inputs, saved, strict=False) if tensor is not None]
    apply: Callable[..., Tensor] = _Layer.apply
    return apply(shape, [*(keep for _, keep in pairs), saved[-1]], statistics, *(tensor for tensor, _ in pairs))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _layer((*input.shape[:-1], len(weight)), (input, weight, bias), (True, True, False, False))


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    moments = (len(input), num_groups)  # the mean and the deviation of each group
    return _layer(input.shape, (input, weight, bias), (True, False, False, False), moments, moments)


def _layer_norm(
    input: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    moments = input.shape[: -len(shape)]
    return _layer(input.shape, (input, weight, bias), (True, False, False, False), moments, moments)


def _activation(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return _layer(input.shape, (input,), (True, False))


def _softmax(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return _layer(input.shape, (input,), (False, True))


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    shape = (*query.shape[:-1], value.shape[-1])
    return _layer(shape, (query, key, value), (True,) * 4, query.shape[:-1])


_LAYERS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.linear: _linear,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.silu: _activation,
    F.gelu: _activation,
    F.softmax: _softmax,
    F.scaled_dot_product_attention: _attention,
}
