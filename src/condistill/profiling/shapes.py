"""A forward pass on the meta device that is interested in shapes alone, and what its products would cost.

On that device torch works out norms, activations and attention in Python, operation by operation. Here they give an
empty tensor of the right shape at once, which makes a forward pass several times faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

_SAME_SHAPE = {F.group_norm, F.layer_norm, F.rms_norm, F.silu, F.gelu, F.relu, F.dropout, F.softmax}
_ELEMENTWISE = {Tensor.add, Tensor.__add__, Tensor.mul, Tensor.__mul__, Tensor.div, Tensor.__truediv__}
_MATRIX_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm}
_OTHER_PRODUCTS = {torch.baddbmm, torch.addmm, torch.addbmm, torch.einsum, Tensor.__rmatmul__, F.bilinear, F.conv1d}
_OTHER_PRODUCTS |= {F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}


class ShapesOnly(TorchFunctionMode):
    """While it is entered, tensors have shapes and no meaningful values; `macs` counts multiply-accumulates.

    Counted are matrix products, convolutions and attention, as torch's `FlopCounterMode` counts them; what of it is
    convolutions, `convolutions` says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs = self.convolutions = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SAME_SHAPE:
            return args[0] if args else kwargs["input"]
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
        elif func in _MATRIX_PRODUCTS:
            self.macs += output.numel() * args[0].shape[-1]
        return output

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: ARG002
        self.macs += input.numel() * len(weight)
        return input.new_empty(*input.shape[:-1], len(weight))

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        rows = query.numel() // query.shape[-1]
        self.macs += rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return query.new_empty(*query.shape[:-1], value.shape[-1])
