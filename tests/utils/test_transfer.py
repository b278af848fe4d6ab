from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import torch

import condistill
from condistill.utils.transfer import on_device

PACKAGE = Path(condistill.__file__).parent
OF_A_STEP = ("states", "objective", "loss_terms", "targets", "paths", "trainer", "pending", "history", "update")
OUTSIDE_OF_STEPS = {"__init__", "state", "gather", "restore"}


def test_a_tensor_stays_where_it_is_without_a_gpu() -> None:
    tensor = torch.ones(3)
    assert on_device(tensor, torch.device("cpu")) is tensor
    assert on_device(tensor, torch.device("meta")).is_meta


def test_no_copy_of_a_training_step_lets_the_cpu_wait_for_a_gpu() -> None:
    found = [f"{name}: {call}" for name in OF_A_STEP for call in waiting(PACKAGE / "distill" / f"{name}.py")]
    assert found == []


def waiting(path: Path) -> Iterator[str]:
    """Yield the calls that copy to a device, or from one, and wait: in all functions that a step calls."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef) or function.name in OUTSIDE_OF_STEPS:
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                text = ast.unparse(node)
                moves = node.func.attr == "to" and "device" in text and "non_blocking" not in text
                encodes = text.startswith(("family.encode(", "self.family.encode("))
                if moves or encodes:
                    yield text
