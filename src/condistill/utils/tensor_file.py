"""Write and read safetensors files without a second copy of their tensors.

A file is the length of a header as 8 bytes, the header as JSON, and the bytes of all tensors one after the other.
`safetensors.torch` collects all of these bytes before it writes the first one, and its reader maps the whole file into
memory. Here a piece of one tensor at a time is in memory, so that a model that barely fits can be saved.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condistill.errors import CorruptError

PIECE_BYTES = 2**22
"""Bytes that are in memory at once."""
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100 * 2**20
"""As in the reference implementation."""


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> str:
    """Write named tensors, which may be on any device, and return the SHA-256 of the file.

    Equal tensors and metadata give equal bytes.

    Args:
        dtypes: the dtypes of tensors that are cast while they are written.
    """
    cast = dtypes or {}
    kinds = {name: cast.get(name, tensor.dtype) for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name))  # every tensor starts at its alignment
    header = [(name, tensors[name].shape, kinds[name]) for name in names]
    return write_in_order(path, header, (tensors[name] for name in names), metadata=metadata)


def write_in_order(
    path: Path,
    header: Sequence[tuple[str, Sequence[int], torch.dtype]],
    tensors: Iterable[Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write tensors that are produced one after the other, and return the SHA-256 of the file.

    Args:
        header: name, shape and dtype of each tensor.
        tensors: in this order, on any device; they are cast while they are written.
    """
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape, kind in header:
        start, end = end, end + math.prod(shape) * kind.itemsize
        fields[name] = {"dtype": _DTYPES[kind], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for start_of_file in (len(text).to_bytes(_LENGTH_BYTES, "little"), text):
            digest.update(start_of_file)
            file.write(start_of_file)
        for (name, shape, kind), tensor in zip(header, tensors, strict=True):
            assert tuple(tensor.shape) == tuple(shape), name
            for piece in _pieces(tensor):
                block = _bytes_of(piece.detach().to("cpu", kind))
                digest.update(block)
                file.write(block)
    return digest.hexdigest()


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Yield consecutive parts of a tensor, each of at most `PIECE_BYTES` or one row."""
    if tensor.nbytes <= PIECE_BYTES or tensor.dim() == 0:
        yield tensor
        return
    rows = max(PIECE_BYTES * len(tensor) // tensor.nbytes, 1)
    for start in range(0, len(tensor), rows):
        part = tensor[start : start + rows]
        if len(part) == 1 and part.nbytes > PIECE_BYTES:
            yield from _pieces(part[0])
        else:
            yield part


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor on the CPU, row by row; they are copied only if they lie otherwise in memory."""
    row_major = tensor.contiguous()
    flat = row_major.as_strided((tensor.numel(),), (1,))  # a single number may have any stride
    return flat.view(torch.uint8).numpy().data


@dataclass(frozen=True)
class _Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """In the file."""
    nbytes: int


class TensorFile(Mapping[str, Tensor]):
    """The named tensors of a safetensors file, in the order of the file. Each is read when it is needed."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            CorruptError: the file is not a safetensors file, or it is cut off.
            OSError: it cannot be read.
        """
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > min(size, _LONGEST_HEADER):
                raise CorruptError(f"{path.name} has no header")
            text = file.read(length)
        self._start = _LENGTH_BYTES + length
        try:
            header = json.loads(text)
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            entries = {name: self._entry(**fields) for name, fields in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorruptError(f"the header of {path.name} cannot be read") from error
        self._entries: dict[str, _Entry] = dict(sorted(entries.items(), key=lambda entry: entry[1].start))
        end = self._start
        for entry in self._entries.values():
            if entry.start != end:
                raise CorruptError(f"the tensors of {path.name} overlap, or do not follow each other")
            end += entry.nbytes
        if end != size:
            raise CorruptError(f"{path.name} has {size:,} bytes, and its tensors end at {end:,}")

    def _entry(self, dtype: str, shape: list[int], data_offsets: list[int]) -> _Entry:
        start, end = data_offsets
        kind = _BY_NAME[dtype]
        if math.prod(shape) * kind.itemsize != end - start:
            raise ValueError("the offsets of a tensor do not fit its shape")
        return _Entry(kind, tuple(shape), self._start + start, end - start)

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor; it has memory of its own."""
        entry = self._entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        if entry.nbytes:
            with self.path.open("rb", buffering=0) as file:
                file.seek(entry.start)
                _fill(file, _bytes_of(tensor))
        return tensor

    def read_into(self, name: str, target: Tensor) -> None:
        """Copy a tensor into another one of its shape, which keeps its dtype, its device and its memory layout."""
        entry = self._entries[name]
        assert entry.shape == tuple(target.shape), name
        with self.path.open("rb", buffering=0) as file, torch.no_grad():
            file.seek(entry.start)
            for part in _pieces(target.detach()):
                size = part.numel() * entry.dtype.itemsize
                piece = self._buffer[:size] if size <= PIECE_BYTES else torch.empty(size, dtype=torch.uint8)
                _fill(file, _bytes_of(piece))
                part.copy_(piece.view(entry.dtype).view(part.shape))

    @cached_property
    def _buffer(self) -> Tensor:
        return torch.empty(PIECE_BYTES, dtype=torch.uint8)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> torch.Size:
        """Return the shape of a tensor, which is not read."""
        return torch.Size(self._entries[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor, which is not read."""
        return self._entries[name].dtype

    def check(self) -> tuple[str, str | None]:
        """Read the file once.

        Returns:
            Its SHA-256; and the name of the first tensor that is not finite, None if all are.
        """
        digest, bad = hashlib.sha256(), None
        with self.path.open("rb", buffering=0) as file:
            digest.update(file.read(self._start))
            for name, entry in self._entries.items():
                for start in range(0, entry.nbytes, PIECE_BYTES):
                    piece = self._buffer[: min(PIECE_BYTES, entry.nbytes - start)]
                    block = _bytes_of(piece)
                    _fill(file, block)
                    digest.update(block)
                    if bad is None and not is_finite(piece.view(entry.dtype)):
                        bad = name
        return digest.hexdigest(), bad


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor has neither a NaN nor an infinity; no memory of its size is needed."""
    return bool(largest(tensor).isfinite())


def largest(tensor: Tensor) -> Tensor:
    """Return the largest absolute value of a tensor, as a tensor on its device; NaN if it has a NaN."""
    if not tensor.is_floating_point() or not tensor.numel():
        return torch.zeros((), device=tensor.device)
    norm: Tensor = torch.linalg.vector_norm(tensor.detach(), math.inf)
    return norm


def _fill(file: Any, buffer: memoryview) -> None:
    """Fill a buffer from an unbuffered file, which may return fewer bytes at a time."""
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])
        if not count:
            raise CorruptError(f"{Path(file.name).name} is cut off")
        done += count
