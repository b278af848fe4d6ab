from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from condistill.errors import CorruptError
from condistill.utils import tensor_file
from condistill.utils.hashing import hash_file
from condistill.utils.tensor_file import TensorFile, is_finite, write_tensors

TENSORS: dict[str, Tensor] = {
    "images": torch.randn(6, 5, 4, 3).to(memory_format=torch.channels_last),
    "transposed": torch.randn(7, 9).t(),
    "a number": torch.tensor(3.5, dtype=torch.float64),
    "none": torch.zeros(0, 4),
    "half": torch.randn(33).half(),
    "brain": torch.randn(5, 3).bfloat16(),
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "integers": torch.arange(5) - 2,
    "é/odd name": torch.randn(2, requires_grad=True),
}


@pytest.fixture(autouse=True, params=[4, 2**22])
def piece_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of one number, and of whole tensors."""
    monkeypatch.setattr(tensor_file, "PIECE_BYTES", max(request.param, 8))


def equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def test_the_file_is_read_by_safetensors_and_by_this_module(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    digest = write_tensors(file, TENSORS, metadata={"format": "pt"})
    assert digest == hash_file(file)
    theirs, ours = safetensors.torch.load_file(file), TensorFile(file)
    assert theirs.keys() == ours.keys() == TENSORS.keys()
    assert ours.metadata == {"format": "pt"}
    assert ours.check() == (digest, None)
    for name, tensor in TENSORS.items():
        assert equal(theirs[name], tensor), name
        assert equal(ours[name], tensor), name
        assert ours.shape(name) == tensor.shape


def test_a_tensor_is_read_into_another_one_that_keeps_its_layout(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_tensors(file, TENSORS)
    found = TensorFile(file)
    for name, tensor in TENSORS.items():
        target = torch.zeros_like(tensor.detach())
        found.read_into(name, target)
        assert equal(target, tensor), name
        assert target.stride() == torch.zeros_like(tensor).stride()
        assert found.dtype(name) == tensor.dtype
    halved = torch.zeros(6, 5, 4, 3, dtype=torch.bfloat16)
    found.read_into("images", halved)
    assert equal(halved, TENSORS["images"].bfloat16())


def test_files_of_safetensors_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    safetensors.torch.save_file({name: tensor.detach().contiguous() for name, tensor in TENSORS.items()}, file)
    found = TensorFile(file)
    assert all(equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert found.check()[0] == hash_file(file)


def test_tensors_are_cast_while_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_tensors(file, TENSORS, dtypes={"images": torch.bfloat16})
    found = safetensors.torch.load_file(file)
    assert equal(found["images"], TENSORS["images"].bfloat16())
    assert equal(found["transposed"], TENSORS["transposed"])
    assert TENSORS["images"].dtype == torch.float32


def test_equal_tensors_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", TENSORS)
    write_tensors(tmp_path / "b", dict(reversed(TENSORS.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_first_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            tensor = torch.ones(4, 3, dtype=dtype)
            tensor[2, 1] = bad
            assert not is_finite(tensor)
            write_tensors(tmp_path / "a", {"good": torch.full((9,), torch.finfo(dtype).max, dtype=dtype), "x": tensor})
            assert TensorFile(tmp_path / "a").check()[1] == "x"


def header(**changes: object) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}
    text = json.dumps({"a": entry}).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 8


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "length": (2**60).to_bytes(8, "little") + b"{}",
    "no JSON": (2).to_bytes(8, "little") + b"}{",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "a dtype": header(dtype="F7"),
    "a shape": header(shape=[3]),
    "a hole": header(data_offsets=[4, 12]),
    "before the start": header(data_offsets=[-8, 0]),
    "cut off": header()[:-1],
    "too long": header() + b"\0",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CorruptError):
        TensorFile(tmp_path / "a")


def test_a_file_that_is_cut_off_later_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_tensors(file, {"a": torch.ones(8)})
    found = TensorFile(file)
    file.write_bytes(file.read_bytes()[:-3])
    for read in (found.check, lambda: found["a"]):
        with pytest.raises(CorruptError, match="cut off"):
            read()
