from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from condistill.distill.history import History, read_history

CPU = torch.device("cpu")


def same(sums: torch.Tensor) -> torch.Tensor:
    return sums


def terms(output: list[float], replaced_prompt: list[bool] | None = None) -> dict[str, torch.Tensor]:
    values = torch.tensor(output, requires_grad=True)
    flags = torch.tensor(replaced_prompt or [False] * len(output))
    zero = 0 * values
    return {
        "loss": 2 * values,
        "output": values,
        "feature": 3 * values,
        "task": zero,
        "guidance": zero,
        "replaced_prompt": flags,
    }


def flush(history: History, step: int, *, write: bool = True, reduce=same) -> dict:
    return history.flush(step, 1e-4, reduce=reduce, write=write)


def test_a_record_holds_means_over_samples_since_the_last(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl", CPU)
    history.add(terms([1.0, 2.0, 3.0], [True, False, False]), torch.tensor([0.05, 0.05, 0.95]))
    history.add(terms([6.0], [True]), torch.tensor([1.0]))
    record = flush(history, 10)
    assert record == {
        "step": 10,
        "learning_rate": 1e-4,
        "loss": 6.0,
        "output": 3.0,
        "feature": 9.0,
        "task": 0.0,
        "guidance": 0.0,
        "replaced_prompt": 0.5,
        "bins": [1.5, *[None] * 8, 4.5],
    }
    history.add(terms([5.0]), torch.tensor([0.45]))
    assert flush(history, 20)["bins"] == [None] * 4 + [5.0] + [None] * 5
    assert [r["step"] for r in read_history(history.file)] == [10, 20]
    assert read_history(history.file)[0] == record


def test_only_the_process_that_writes_leaves_a_file(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl", CPU)
    history.add(terms([1.0]), torch.tensor([0.5]))
    assert flush(history, 1, write=False)["output"] == 1.0
    assert read_history(history.file) == []


def test_means_are_over_all_processes(tmp_path: Path) -> None:
    one, other = (History(tmp_path / f"{i}.jsonl", CPU) for i in range(2))
    one.add(terms([1.0, 1.0, 1.0]), torch.tensor([0.5, 0.5, 0.5]))
    other.add(terms([5.0]), torch.tensor([0.5]))
    others = iter([other.sums, other.bins])
    record = flush(one, 1, reduce=lambda sums: sums + next(others))
    assert record["output"] == 2.0
    assert record["bins"][5] == 2.0


def test_going_back_to_a_checkpoint_forgets_what_came_after(tmp_path: Path) -> None:
    whole, cut = History(tmp_path / "whole.jsonl", CPU), History(tmp_path / "cut.jsonl", CPU)
    level = torch.tensor([0.3])
    for history in (whole, cut):
        history.add(terms([1.0]), level)
        flush(history, 10)
        history.add(terms([2.0]), level)
    kept = {name: tensor.clone() for name, tensor in cut.state().items()}
    cut.add(terms([9.0]), level)
    flush(cut, 20)

    resumed = History(cut.file, CPU)
    resumed.restore(kept, 12, write=True)
    for history in (whole, resumed):
        history.add(terms([4.0]), level)
        assert flush(history, 20)["output"] == 3.0
    assert whole.file.read_bytes() == cut.file.read_bytes()


def test_a_last_line_cut_off_by_a_power_loss_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_history(file) == [{"step": 1}]


@pytest.mark.parametrize("level", [0.0, 0.999, 1.0])
def test_every_noise_level_has_its_bin(tmp_path: Path, level: float) -> None:
    history = History(tmp_path / "history.jsonl", CPU)
    history.add(terms([1.0]), torch.tensor([level]))
    assert history.bins[1].sum() == 1
