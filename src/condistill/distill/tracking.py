"""What a variant has to itself while the accelerator is shared: a run of the tracker, and a state as new."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from condistill.utils.distributed import on_main_process


@contextmanager
def tracked(accelerator: Accelerator, tracker: str, variant: str) -> Iterator[None]:
    """Give a variant a run of the tracker: a folder of TensorBoard, or a run in the wandb project `condistill`.

    Only the tracker is closed at the end, not the processes: they are needed for the next variant.
    """
    if tracker == "none":
        yield
        return
    project, options = (variant, {}) if tracker == "tensorboard" else ("condistill", {tracker: {"name": variant}})
    on_main_process(
        accelerator, lambda: accelerator.init_trackers(project, config={"variant": variant}, init_kwargs=options)
    )
    try:
        yield
    finally:
        for each in accelerator.trackers:
            each.finish()
        accelerator.trackers = []


def track_image(accelerator: Any, name: str, image: NDArray[np.uint8], *, step: int) -> None:
    """Show an image `[H, W, 3]` in the trackers of the main process."""
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({name: image[None]}, step=step, **layout)


@contextmanager
def state_of_its_own(accelerator: Any) -> Iterator[None]:
    """Free models, optimisers and schedules at the end, and give the next variant the same scaler of fp16 as this one.

    The scaler must not have been used before. What is freed must not be named in the caller any more.
    """
    scaler = copy.deepcopy(accelerator.scaler)
    try:
        yield
    finally:
        accelerator.scaler = scaler
        accelerator.free_memory()
