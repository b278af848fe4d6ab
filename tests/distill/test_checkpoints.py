from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resident import MIB, resident_growth
from safetensors.torch import save_file
from torch import Tensor

from condistill.distill import checkpoints
from condistill.distill.checkpoints import (
    CHECKSUM_NAME,
    Checksum,
    list_checkpoints,
    load_checkpoint,
    newest_whole,
    not_finite,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    step_of,
    written_hashes,
)
from condistill.errors import CondistillError, CorruptError
from condistill.utils.hashing import hash_file


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    parts: dict[str, dict[str, Tensor]] = {
        "trained": {"a.weight": torch.randn(3, 4), "a/odd name": torch.tensor(7)},
        "ema": {"a.weight": torch.randn(8, 3, 2, 2).to(memory_format=torch.channels_last)},
        "optimizer": {"0.exp_avg": torch.randn(2, dtype=torch.float64), "0.step": torch.tensor(3.0)},
    }
    meta = {"scaler": None, "numbers": [1, 2.5]}
    path = save_checkpoint(tmp_path, 12, parts, keep=1, meta=meta)
    step, loaded, loaded_meta = load_checkpoint(path)
    assert (step, loaded_meta) == (12, meta)
    assert {part: sorted(group) for part, group in loaded.items()} == {p: sorted(g) for p, g in parts.items()}
    for part, group in parts.items():
        for name, tensor in group.items():
            assert loaded[part][name].dtype == tensor.dtype
            assert torch.equal(loaded[part][name], tensor)


def test_a_checkpoint_is_written_and_read_without_a_second_copy_of_its_tensors(tmp_path: Path) -> None:
    weights = [torch.ones(64, 256, 8, 16).to(memory_format=torch.channels_last) for _ in range(4)]
    optimizer = torch.optim.AdamW(weights)
    moments = {f"{i}.{name}": torch.ones_like(weights[i]) for i in range(4) for name in ("exp_avg", "exp_avg_sq")}
    one, little = weights[0].nbytes, 20 * MIB
    assert 8 * one == 64 * MIB
    assert resident_growth(lambda: not_finite({"optimizer": moments})) < little
    assert resident_growth(lambda: save_checkpoint(tmp_path, 3, {"optimizer": moments})) < one + little
    assert resident_growth(lambda: load_checkpoint(tmp_path / "step-00000003")) < one + little
    loaded = load_checkpoint(tmp_path / "step-00000003", verify=False)[1]["optimizer"]
    assert resident_growth(lambda: restore_optimizer(optimizer, loaded)) < 8 * one + one + little


def test_only_the_newest_checkpoints_are_kept_in_order(tmp_path: Path) -> None:
    for step in (5, 999, 10_000, 123_456_789):
        save_checkpoint(tmp_path, step, {"a": {"b": torch.zeros(1)}}, keep=2)
    assert [load_checkpoint(path)[0] for path in list_checkpoints(tmp_path)] == [10_000, 123_456_789]
    assert len(names(tmp_path)) == 2


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, {"a": {"b": torch.ones(1)}}, keep=1)

    def half(path: Path, _tensors: Any, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "write_tensors", half)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 2, {"a": {"b": torch.ones(1)}}, keep=1)
    assert names(tmp_path) == ["step-00000001"]


def test_the_remains_of_a_killed_run_are_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".step-00000003.partial").mkdir()
    (tmp_path / "history.jsonl").touch()
    assert list_checkpoints(tmp_path) == []
    assert list_checkpoints(tmp_path / "not there") == []


def cut(path: Path) -> None:
    file = path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def flip(path: Path) -> None:
    file = path / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1  # a bit of a tensor, which safetensors reads like any other
    file.write_bytes(content)


def write_nan(path: Path) -> None:
    """A checkpoint of an older version, which did not look."""
    save_checkpoint(path.parent, step_of(path), {"a": {"b": torch.tensor([1.0, math.nan])}})


def rewrite_note(path: Path) -> None:
    file = path / "state.safetensors"
    save_file({"a/b": torch.ones(100)}, file, metadata={"checkpoint": "{"})
    Checksum(bytes=file.stat().st_size, sha256=hash_file(file)).write(path / CHECKSUM_NAME)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut, r"state.safetensors has 526 bytes and had 536"),
    "flipped": (flip, r"the checksum of state.safetensors differs"),
    "gone": (lambda path: (path / "state.safetensors").unlink(), r"state.safetensors is missing"),
    "no checksum": (lambda path: (path / CHECKSUM_NAME).unlink(), r"checksum.json does not exist"),
    "bad checksum": (lambda path: (path / CHECKSUM_NAME).write_text("{"), r"checksum.json is not a JSON object"),
    "NaN": (write_nan, r"a/b is not finite"),
    "note": (rewrite_note, r"its note cannot be read"),
    "a file": (lambda path: (shutil.rmtree(path), path.touch()), r"step-00000004 is damaged"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    for number in (2, 4):
        path = save_checkpoint(tmp_path, number, {"a": {"b": torch.ones(100)}})
    damage(path)
    with pytest.raises(CorruptError, match=reason):
        load_checkpoint(path)
    printed_lines: list[str] = []
    found, loaded = newest_whole(tmp_path, printed_lines.append)
    assert found == tmp_path / "step-00000002"
    assert loaded is not None
    assert loaded[0] == 2
    (line,) = printed_lines
    assert line.startswith(f"warning: the checkpoint {path} is damaged (")
    assert line.endswith("it is removed: resuming from step-00000002")
    assert names(tmp_path) == ["step-00000002"]


def test_without_a_whole_checkpoint_a_training_starts_again_and_says_so(tmp_path: Path) -> None:
    cut(save_checkpoint(tmp_path, 4, {"a": {"b": torch.ones(100)}}))
    printed_lines: list[str] = []
    assert newest_whole(tmp_path, printed_lines.append) == (None, None)
    assert printed_lines[0].endswith("it is removed: training starts at step 0")


def test_the_checksum_of_a_checkpoint_is_known_without_reading_it(tmp_path: Path) -> None:
    whole, other = (save_checkpoint(tmp_path, number, {"a": {"b": torch.ones(9)}}) for number in (2, 4))
    cut(other)
    file = whole / "state.safetensors"
    assert written_hashes(tmp_path) == {file: hash_file(file)}


def test_the_name_of_a_tensor_that_is_not_finite_is_found() -> None:
    good = {"ints": torch.tensor([3]), "floats": torch.ones(2, dtype=torch.bfloat16)}
    assert not_finite({"a": good}) is None
    assert not_finite({}) is None
    assert not_finite({"a": good, "b": {"x": torch.ones(1), "y": torch.tensor([[1.0, -math.inf]])}}) == "b/y"


def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(seed))
    module(images).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("fused", [False, True])
def test_a_restored_optimiser_continues_as_if_it_had_not_stopped(
    tmp_path: Path, fused: bool, memory_format: torch.memory_format
) -> None:
    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.SiLU(), torch.nn.Conv2d(16, 4, 1))
        module = module.to(memory_format=memory_format)
        return module, torch.optim.AdamW(module.parameters(), lr=1e-2, fused=fused)

    module, optimizer = build()
    for seed in range(3):
        step(module, optimizer, seed)
    parts = {"trained": module.state_dict(), "optimizer": optimizer_tensors(optimizer)}
    path = save_checkpoint(tmp_path, 3, parts, keep=1)
    for seed in range(3, 6):
        step(module, optimizer, seed)

    resumed, its_optimizer = build()
    _, loaded, _ = load_checkpoint(path)
    resumed.load_state_dict(loaded["trained"])
    restore_optimizer(its_optimizer, loaded["optimizer"])
    for seed in range(3, 6):
        step(resumed, its_optimizer, seed)
    for a, b in zip(module.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_student_is_refused() -> None:
    weights = {"a": torch.zeros(2), "b": torch.zeros(3)}
    for others, count in (({"a": torch.ones(2)}, 1), ({"a": torch.ones(3), "b": torch.ones(3), "c": torch.ones(1)}, 2)):
        with pytest.raises(CondistillError, match=rf"of another student \({count} weights differ, such as"):
            checkpoints._copy_into(weights, others)
    assert not weights["b"].any()


def test_a_restored_optimiser_keeps_the_present_hyper_parameters(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones(2)
    optimizer.step()
    other = torch.optim.AdamW([weight], lr=0.5)
    restore_optimizer(other, optimizer_tensors(optimizer))
    assert other.param_groups[0]["lr"] == 0.5
    assert torch.equal(other.state[weight]["exp_avg"], optimizer.state[weight]["exp_avg"])
