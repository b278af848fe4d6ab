"""Forwards on the meta device: their inputs, and a mode that computes shapes only and counts multiply-accumulates.

On the meta device torch computes the shapes of norms, activations and attention in Python, operation by operation. In
this mode each gives an empty tensor of the right shape at once, which makes a forward several times faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from condistill.errors import CondistillError
from condistill.teachers.registry import family_of

_SAME_SHAPE = {F.group_norm, F.layer_norm, F.rms_norm, F.silu, F.gelu, F.relu, F.dropout, F.softmax}
_ELEMENTWISE = {Tensor.add, Tensor.__add__, Tensor.mul, Tensor.__mul__, Tensor.div, Tensor.__truediv__}
_MATRIX_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm}
_OTHER_PRODUCTS = {torch.baddbmm, torch.addmm, torch.addbmm, torch.einsum, Tensor.__rmatmul__, F.bilinear, F.conv1d}
_OTHER_PRODUCTS |= {F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}


def example_inputs(
    denoiser: ModelMixin, *, size: int | tuple[int, int] | None = None, text_length: int = 77
) -> dict[str, Any]:
    """Return keyword arguments for one forward of one sample, on the meta device.

    Args:
        size: height and width of the latents; by default the config's `sample_size`.
        text_length: tokens of the prompt.

    Raises:
        CondistillError: there is no size, or the denoiser takes a condition that its family does not give.
    """
    size = denoiser.config.get("sample_size") if size is None else size
    if size is None:
        raise CondistillError("the denoiser's config has no sample_size; give the height and width of its latents")
    height, width = (size, size) if isinstance(size, int) else size
    return family_of(denoiser).example_inputs(denoiser, (height, width), text_length)


class ShapesOnly(TorchFunctionMode):
    """While active, tensors have shapes but no meaningful values, and multiply-accumulates are counted.

    Matrix products, convolutions and attention are counted, as by torch's `FlopCounterMode`.

    Attributes:
        macs: the count.
        convolutions: those of `macs` that are in convolutions.
        saved: numbers that a backward of these layers would need, about.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = self.convolutions = self.saved = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SAME_SHAPE:
            same: Tensor = args[0] if args else kwargs["input"]
            self.saved += same.numel()
            return same
        if func in _ELEMENTWISE and not (isinstance(args[1], Tensor) and args[0].shape != args[1].shape):
            return args[0]
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func in _OTHER_PRODUCTS:
            with FlopCounterMode(display=False) as counter:
                output = func(*args, **kwargs)
            self.macs += counter.get_total_flops() // 2
            return output
        output = func(*args, **kwargs)
        if func is F.conv2d:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            count = output.numel() * weight.numel() // len(weight)
            self.macs += count
            self.convolutions += count
            self.saved += (args[0] if args else kwargs["input"]).numel()
        elif func in _MATRIX_PRODUCTS:
            self.macs += output.numel() * args[0].shape[-1]
        return output

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: ARG002
        self.macs += input.numel() * len(weight)
        self.saved += input.numel()
        return input.new_empty(*input.shape[:-1], len(weight))

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        rows = query.numel() // query.shape[-1]
        self.macs += rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        self.saved += query.numel() + key.numel() + 2 * value.numel()
        return query.new_empty(*query.shape[:-1], value.shape[-1])
