from __future__ import annotations

import importlib
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from processes import run_in_two_processes

from condistill.errors import CondistillError
from condistill.utils import distributed
from condistill.utils.distributed import (
    OtherProcessError,
    check_launcher,
    decide,
    from_main_process,
    on_every_process,
    on_main_process,
    start_processes,
)

ALONE = SimpleNamespace(num_processes=1, is_main_process=True, process_index=0)


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "tensor"),
        ("ACCELERATE_USE_SAGEMAKER", "SageMaker"),
    ],
)
def test_what_splits_a_model_over_processes_is_refused_by_name(variable: str, name: str) -> None:
    for value in ("true", "True", "1"):
        with pytest.raises(CondistillError, match=rf"{name}.*not supported yet.*torchrun"):
            check_launcher({variable: value})
    check_launcher({variable: "false"})


def test_accumulation_by_the_launcher_is_refused_since_it_scales_the_losses() -> None:
    with pytest.raises(CondistillError, match=r"gradient_accumulation_steps to 4.*micro_batch_size"):
        check_launcher({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"})
    check_launcher({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"})


def test_a_kind_of_parallelism_that_is_not_proven_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []

    def state(**options: Any) -> Any:
        waited.append(options["timeout"])
        return SimpleNamespace(distributed_type=SimpleNamespace(value="XLA"))

    monkeypatch.setattr(importlib.import_module("accelerate"), "PartialState", state)
    with pytest.raises(CondistillError, match="XLA, which is not supported yet; supported: NO, MULTI_GPU, MULTI_CPU"):
        start_processes()
    assert waited == [distributed.LONGEST_WAIT]
    assert waited[0] > timedelta(days=1)  # an evaluation of one process is shorter


@pytest.mark.parametrize("size", ["2", None])
def test_processes_that_would_not_know_of_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch, size: str | None
) -> None:
    state = SimpleNamespace(distributed_type=SimpleNamespace(value="NO"), num_processes=1)
    monkeypatch.setattr(importlib.import_module("accelerate"), "PartialState", lambda **_: state)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is None:
        assert start_processes() is state
        return
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(CondistillError, match=r"started 2 processes.*no GPU.*ACCELERATE_USE_CPU=true"):
        start_processes()


def test_one_process_works_and_fails_by_itself() -> None:
    assert from_main_process(ALONE, lambda: "answer") == "answer"
    assert on_every_process(ALONE, lambda: 3) == 3
    assert decide(ALONE, lambda: True) is True
    for call in (from_main_process, on_main_process, on_every_process):
        with pytest.raises(ZeroDivisionError):
            call(ALONE, lambda: 1 / 0)


class Recorded(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("error", [Recorded, KeyboardInterrupt, SystemExit])
def test_the_others_get_the_outcome_also_of_an_interrupted_main_process(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(importlib.import_module("accelerate.utils"), "broadcast_object_list", sent.append)

    def fail() -> None:
        raise error

    with pytest.raises(error):
        on_main_process(SimpleNamespace(num_processes=2, is_main_process=True), fail)
    assert sent == [[None, error.__name__]]


SCRIPT = r"""
import os, time
from condistill.utils.distributed import *
state = start_processes()
rank = state.process_index

def say(text):
    os.write(1, (text + "\n").encode())

def attempt(name, call):
    try:
        say(f"{name} {rank} result {call()}")
    except Exception as error:
        say(f"{name} {rank} {type(error).__name__} {error}")

def late(value, of):
    if rank == of:
        time.sleep(1)
    return value

attempt("decide", lambda: decide(state, lambda: late(True, 0)))
attempt("from_main", lambda: from_main_process(state, lambda: rank))
attempt("main_fails", lambda: on_main_process(state, lambda: 1 / 0))
attempt("every", lambda: on_every_process(state, lambda: late(rank, 1)))
attempt("one_fails", lambda: on_every_process(state, lambda: 1 / (1 - rank)))
attempt("all_fail", lambda: on_every_process(state, lambda: 1 / 0))
attempt("after", lambda: decide(state, lambda: False))
state.destroy_process_group()  # else its threads may outlive the interpreter
"""


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_others_and_is_raised_once(tmp_path: Path) -> None:
    done = run_in_two_processes(tmp_path, SCRIPT)
    assert done.returncode == 0, done.stderr
    other = OtherProcessError.__name__
    assert sorted(line for line in done.stdout.splitlines() if line) == [
        "after 0 result False",
        "after 1 result False",
        "all_fail 0 ZeroDivisionError division by zero",
        f"all_fail 1 {other} process 0 failed: division by zero",
        "decide 0 result True",
        "decide 1 result True",
        "every 0 result 0",
        "every 1 result 1",
        "from_main 0 result 0",
        "from_main 1 result 0",
        "main_fails 0 ZeroDivisionError division by zero",
        f"main_fails 1 {other} the main process failed: division by zero",
        f"one_fails 0 {other} process 1 failed: division by zero",
        "one_fails 1 ZeroDivisionError division by zero",
    ]
