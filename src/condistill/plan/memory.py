"""How much memory a training step needs, counted on the meta device: nothing is computed and nothing is allocated.

What torch would keep for the backward of each layer is kept here as well, as tensors of shapes only, so that the peak
is that of the real step. The kernels are those of a GPU: attention never holds its map (Dao et al., arXiv 2205.14135).
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
from condistill.profiling.memory import LiveMemory

_HALF = {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, Tensor.matmul, Tensor.__matmul__}
_HALF |= {torch.bmm, torch.baddbmm, torch.addmm, torch.einsum}
"""What torch's autocast does in half precision."""
_SINGLE = {F.group_norm, F.layer_norm, F.softmax}
"""What it does in float32; all else in whatever it is given."""


def training_peak(step: SyntheticStep, half: torch.dtype | None) -> int:
    """Bytes alive at the worst moment of a step beyond weights, optimiser and average; gradients are among them.

    Args:
        step: of networks on the meta device.
        half: the dtype of mixed precision, if it is on.
    """
    mode = KeptOnly(half)
    if step.settings.gradient_checkpointing:
        step.student.enable_gradient_checkpointing(mode.checkpoint)
    with LiveMemory() as memory:
        with mode:
            loss = step.loss(*step.forward_teacher(), autocast=mode.forward)
        loss.backward()  # type: ignore[no-untyped-call]
    return int(memory.peak)


class KeptOnly(TorchFunctionMode):
    """While it is entered, layers keep what they keep for the backward and do nothing else."""

    def __init__(self, half: torch.dtype | None) -> None:
        super().__init__()
        self._half = half
        self._cast: dict[int, Tensor] = {}

    @contextmanager
    def forward(self) -> Iterator[None]:
        """One forward: weights are cast to half precision once in it, as autocast does."""
        try:
            yield
        finally:
            self._cast.clear()

    def checkpoint(self, layer: nn.Module, *inputs: Any) -> Any:
        """Run a layer whose inner tensors are not kept, but made again in the backward; as diffusers does it."""
        return checkpoint(
            layer.__call__, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), self._again())
        )

    @contextmanager
    def _again(self) -> Iterator[None]:
        with self, self.forward():
            yield

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._half is not None and func in _HALF | _SINGLE:
            to = self._half if func in _HALF else torch.float32
            args = tuple(self._as(value, to) for value in args)
            kwargs = {name: self._as(value, to) for name, value in kwargs.items()}
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
    """A layer of shapes only, with a gradient for each tensor it is given."""

    @staticmethod
    def forward(ctx: Any, shape: Sequence[int], kept: Sequence[bool], notes: Sequence[Any], *given: Tensor) -> Tensor:
        """Make the output.

        Args:
            kept: which of the given tensors the backward needs; the last one is the output.
            notes: shapes of what else it needs, in float32.
        """
        output = given[0].new_empty(shape)
        noted = [given[0].new_empty(note, dtype=torch.float32) for note in notes]
        ctx.save_for_backward(*(t for t, keep in zip((*given, output), kept, strict=True) if keep), *noted)
        ctx.like = [(t.shape, t.dtype) for t in given]
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        _ = ctx.saved_tensors  # of a layer that is recomputed, this is what recomputes it
        needed = ctx.needs_input_grad[3:]
        made = (
            gradient.new_empty(shape, dtype=dtype) if wanted else None
            for wanted, (shape, dtype) in zip(needed, ctx.like, strict=True)
        )
        return None, None, None, *made


def _layer(shape: Sequence[int], given: Sequence[Tensor | None], kept: Sequence[bool], *notes: Sequence[int]) -> Tensor:
    """As `_Layer` makes it; of what is given, what is None is left out."""
    there = [(tensor, keep) for tensor, keep in zip(given, kept, strict=False) if tensor is not None]
    apply: Callable[..., Tensor] = _Layer.apply
    return apply(shape, [*(keep for _, keep in there), kept[-1]], notes, *(tensor for tensor, _ in there))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _layer((*input.shape[:-1], len(weight)), (input, weight, bias), (True, True, False, False))


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    note = (len(input), num_groups)  # a mean and a deviation of each group
    return _layer(input.shape, (input, weight, bias), (True, False, False, False), note, note)


def _layer_norm(
    input: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    note = input.shape[: -len(shape)]
    return _layer(input.shape, (input, weight, bias), (True, False, False, False), note, note)


def _activation(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return _layer(input.shape, (input,), (True, False))


def _softmax(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return _layer(input.shape, (input,), (False, True))


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    shape = (*query.shape[:-1], value.shape[-1])
    return _layer(shape, (query, key, value), (True,) * 4, query.shape[:-1])


_LAYERS: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.silu: _activation,
    F.gelu: _activation,
    F.softmax: _softmax,
    F.scaled_dot_product_attention: _attention,
}
