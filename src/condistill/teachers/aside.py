"""Encoding of prompts in a training on a GPU, next to the work that is queued there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch

from condistill.teachers.condition import Condition


class Encoder(Protocol):
    """What is used of a family."""

    @property
    def device(self) -> torch.device:
        """The device of the text encoders."""

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Return the condition of each prompt."""


_STREAMS: WeakKeyDictionary[Encoder, torch.cuda.Stream] = WeakKeyDictionary()


def encode_aside(family: Encoder, prompts: Sequence[str]) -> Condition:
    """Return `family.encode(prompts)`; on a GPU, the CPU does not wait for the work that is queued there.

    The pipelines of diffusers copy tokens to the device and wait. On a stream of its own, that copy waits for the text
    encoders only, and not for the models of the step before.

    Raises:
        CondistillError: a prompt cannot be encoded.
    """
    device = family.device
    if device.type != "cuda":
        return family.encode(prompts)
    current = torch.cuda.current_stream(device)
    if family not in _STREAMS:
        kind: Any = torch.cuda.Stream  # which has no types
        _STREAMS[family] = kind(device)
        _STREAMS[family].wait_stream(current)  # which may still be loading the text encoders
    with torch.cuda.stream(_STREAMS[family]):
        condition = family.encode(prompts)
    current.wait_stream(_STREAMS[family])
    for tensor in condition.tensors.values():
        if tensor.is_cuda:
            tensor.record_stream(current)  # its memory is not used again before this stream has read it
    return condition
