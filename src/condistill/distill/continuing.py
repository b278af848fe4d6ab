"""Whether a finished training can be continued with changed settings instead of starting again."""

from __future__ import annotations

from typing import Any

from condistill.config.distill import DistillSettings

CONTINUED = ("steps", "save_dtype")
"""Settings of a result that a training may be continued with: more steps, and the dtype of the files."""
RESULT_FREE = ("logging", "preview_every", "micro_batch_size", "gradient_checkpointing")
"""Settings that change no result."""
_ENDLESS_SCHEDULES = ("constant", "constant_with_warmup")
"""Schedules of the learning rate that do not depend on the number of steps; the others reach their end at the last."""


def may_continue(old: DistillSettings, new: DistillSettings) -> bool:
    """Return whether the last checkpoint of a training is the one that the new settings would have passed through.

    That is so if only the settings of `CONTINUED` and `RESULT_FREE` differ, the number of steps does not fall, and
    nothing depends on how many steps there will be.
    """
    if new.steps < old.steps or _rest(old) != _rest(new):
        return False
    if new.steps == old.steps:
        return True
    depends_on_end = new.optimizer.lr_scheduler not in _ENDLESS_SCHEDULES
    return not depends_on_end and not (new.path and new.path.follow == "moving")


def _rest(settings: DistillSettings) -> dict[str, Any]:
    return settings.model_dump(exclude={*CONTINUED, *RESULT_FREE})
