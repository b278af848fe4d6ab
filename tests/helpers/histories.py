"""Training histories made by hand."""

from __future__ import annotations

from typing import Any

from condistill.distill.history import HistoryRecord


def build_record(step: int, **changes: Any) -> HistoryRecord:
    """Return a record whose loss falls with the step."""
    fields: dict[str, Any] = {
        "step": step,
        "learning_rate": 1e-3,
        "loss": 1.0 / step,
        "terms": {"output": 1.0 / step},
        "replaced_prompt": 0.19,
        "bins": tuple(0.1 * (b + 1) for b in range(10)),
    }
    return HistoryRecord(**{**fields, **changes})


def build_history(count: int, **changes: Any) -> list[HistoryRecord]:
    """Return the records of the steps 1 to `count`."""
    return [build_record(step, **changes) for step in range(1, count + 1)]
