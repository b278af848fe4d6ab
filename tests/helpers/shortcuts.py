"""What costs whole runs the most time and has nothing to do with what their tests are about."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

_MANY_MODULES = 50
_frozen = [0]
_pictures: dict[str, Any] = {}
_drawn: dict[str, Any] = {}


def freeze_imports(*, clean: bool = True) -> None:
    """Leave what was imported since the last call out of collections of garbage: a run collects a dozen times.

    Args:
        clean: collect first, so that no garbage is kept.
    """
    if len(sys.modules) > _frozen[0] + _MANY_MODULES:
        if clean:
            gc.collect()
        gc.freeze()
        _frozen[0] = len(sys.modules)


def time_images_once() -> None:
    """Let evaluations time an image of every model once: toys would be timed for three seconds."""
    timing: Any = sys.modules.get("condistill.profiling.timing")
    if timing is not None:  # else the test may not need it
        timing.MIN_ROUNDS, timing.MAX_SECONDS = 1, 0.0


def plot_each_history_once(*, own: bool) -> None:
    """Give reports of the same losses the same plots, which are equal byte for byte; `own` plots every time."""
    plots: Any = sys.modules.get("condistill.report.plots")
    if plots is None:
        return
    for name in ("total_loss", "loss_by_noise"):
        plot = _pictures.setdefault(name, getattr(plots, name))
        setattr(plots, name, plot if own else _once(name, plot))


def _once(name: str, plot: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(plot)
    def known(*histories: Any, **options: Any) -> Any:
        key = repr((name, histories, options))
        if key not in _drawn:
            _drawn[key] = plot(*histories, **options)
        return _drawn[key]

    return known
