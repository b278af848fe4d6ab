from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from condistill.distill.history import History, HistoryRecord, read_history

TERMS = ("output", "feature", "my_term")


def history_in(file: Path) -> History:
    return History(file, torch.device("cpu"), TERMS)


def add(history: History, output: list[float], levels: list[float], replaced: list[bool] | None = None) -> None:
    values = torch.tensor(output, requires_grad=True)
    terms = {"output": values, "feature": 3 * values, "my_term": values - 1}
    flags = torch.tensor(replaced or [False] * len(output))
    history.add(2 * values, terms, flags, torch.tensor(levels))


def same(sums: Tensor) -> Tensor:
    return sums


def flush(history: History, step: int, *, write: bool = True, reduce=same) -> HistoryRecord:
    return history.flush(step, 1e-4, reduce=reduce, write=write)


def test_a_record_has_the_means_over_the_samples_since_the_last_one(tmp_path: Path) -> None:
    history = history_in(tmp_path / "history.jsonl")
    add(history, [1.0, 2.0, 3.0], [0.05, 0.05, 0.95], [True, False, False])
    add(history, [6.0], [1.0], [True])
    record = flush(history, 10)
    assert record == HistoryRecord(
        step=10,
        learning_rate=1e-4,
        loss=6.0,
        terms={"output": 3.0, "feature": 9.0, "my_term": 2.0},
        replaced_prompt=0.5,
        bins=(1.5, *[None] * 8, 4.5),
    )
    add(history, [5.0], [0.45])
    assert flush(history, 20).bins == (*[None] * 4, 5.0, *[None] * 5)
    first, second = read_history(history.file)
    assert (first, second.step) == (record, 20)


def test_a_tracker_gets_every_number_by_name(tmp_path: Path) -> None:
    history = history_in(tmp_path / "history.jsonl")
    add(history, [1.0], [0.5])
    assert flush(history, 1).scalars() == {
        "learning_rate": 1e-4,
        "loss": 2.0,
        "output": 1.0,
        "feature": 3.0,
        "my_term": 0.0,
        "replaced_prompt": 0.0,
    }


def test_only_the_writing_process_writes_the_file(tmp_path: Path) -> None:
    history = history_in(tmp_path / "history.jsonl")
    add(history, [1.0], [0.5])
    assert flush(history, 1, write=False).terms["output"] == 1.0
    assert read_history(history.file) == []


def test_means_are_over_the_samples_of_all_processes(tmp_path: Path) -> None:
    first, second = (history_in(tmp_path / f"{i}.jsonl") for i in range(2))
    add(first, [1.0, 1.0, 1.0], [0.5, 0.5, 0.5])
    add(second, [5.0], [0.5])
    tensors = iter([second.sums, second.bins])
    record = flush(first, 1, reduce=lambda sums: sums + next(tensors))
    assert record.terms["output"] == 2.0
    assert record.bins[5] == 2.0


def test_a_resumed_training_leaves_the_same_file(tmp_path: Path) -> None:
    whole, cut = history_in(tmp_path / "whole.jsonl"), history_in(tmp_path / "cut.jsonl")
    for history in (whole, cut):
        add(history, [1.0], [0.3])
        flush(history, 10)
        add(history, [2.0], [0.3])
    kept = {name: tensor.clone() for name, tensor in cut.state().items()}
    add(cut, [9.0], [0.3])
    flush(cut, 20)

    resumed = history_in(cut.file)
    resumed.restore(kept)
    resumed.truncate(12)
    for history in (whole, resumed):
        add(history, [4.0], [0.3])
        assert flush(history, 20).terms["output"] == 3.0
    assert whole.file.read_bytes() == cut.file.read_bytes()


def test_each_process_resumes_with_its_own_sums(tmp_path: Path) -> None:
    processes = [history_in(tmp_path / f"{i}.jsonl") for i in range(2)]
    add(processes[0], [1.0], [0.3])
    add(processes[1], [5.0], [0.8])
    joined = {name: torch.cat([each.state()[name] for each in processes]) for name in ("sums", "bins")}
    for number, before in enumerate(processes):
        resumed = history_in(tmp_path / "resumed.jsonl")
        resumed.restore(joined, process=number, processes=2)
        assert torch.equal(resumed.sums, before.sums)
        assert torch.equal(resumed.bins, before.bins)


def test_another_number_of_processes_resumes_with_the_same_total(tmp_path: Path) -> None:
    alone = history_in(tmp_path / "alone.jsonl")
    add(alone, [1.0, 5.0], [0.3, 0.8])
    total = torch.zeros_like(alone.sums)
    for number in range(3):
        resumed = history_in(tmp_path / "resumed.jsonl")
        resumed.restore(alone.state(), process=number, processes=3)
        total += resumed.sums
    assert torch.equal(total, alone.sums)


def test_a_last_line_that_a_power_loss_cut_off_is_left_out(tmp_path: Path) -> None:
    history = history_in(tmp_path / "history.jsonl")
    add(history, [1.0], [0.5])
    record = flush(history, 1)
    with history.file.open("a") as file:
        file.write('{"format": 2, "step": 2, "lo')
    assert read_history(history.file) == [record]


def test_a_loss_that_is_not_finite_can_be_written_and_read(tmp_path: Path) -> None:
    history = history_in(tmp_path / "history.jsonl")
    add(history, [math.nan], [0.5])
    flush(history, 1)
    assert math.isnan(read_history(history.file)[0].loss)


@pytest.mark.parametrize("line", [b'{"step": 1, "loss": 2.0}', b"[]", b"no JSON", b"\xff\xfe", b""])
def test_a_damaged_line_is_left_out_and_named(tmp_path: Path, line: bytes) -> None:
    history = history_in(tmp_path / "history.jsonl")
    for step in (1, 2):
        add(history, [1.0], [0.5])
        flush(history, step)
    first, second = history.file.read_bytes().splitlines(keepends=True)
    history.file.write_bytes(first + line + b"\n" + second)
    said: list[str] = []
    assert [record.step for record in read_history(history.file, said.append)] == [1, 2]
    assert said == [
        f"warning: 1 record(s) of {history.file} cannot be read (line 2) and are left out of the curves; the student "
        "is not affected"
    ]
    history.truncate(1, said.append)
    assert len(said) == 2
    assert history.file.read_bytes() == first


@pytest.mark.parametrize("level", [0.0, 0.999, 1.0])
def test_every_noise_level_has_its_bin(tmp_path: Path, level: float) -> None:
    history = history_in(tmp_path / "history.jsonl")
    add(history, [1.0], [level])
    assert history.bins[1].sum() == 1
