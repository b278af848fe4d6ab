"""What follows an evaluation: images for other programs, and the scores that those computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from condistill.errors import CondistillError
from condistill.evaluate.engine import Host
from condistill.evaluate.export_images import Decode, check_folder, export_images
from condistill.evaluate.figures import publish_metrics
from condistill.evaluate.image_values import Groups
from condistill.evaluate.merge_scores import (
    images_of,
    joined,
    keep_scores,
    kept_scores,
    merge_into,
    scores_directory,
)
from condistill.evaluate.outside import check_scores, load_scores
from condistill.evaluate.record import METRICS_NAME
from condistill.evaluate.results import Job
from condistill.evaluate.rounds import Round
from condistill.run.stage_directory import StageDir
from condistill.utils.distributed import on_main_process


@dataclass(frozen=True)
class Extras:
    """What a user wants besides the metrics."""

    scores: tuple[Path, ...] = ()
    images: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.scores) or self.images is not None


ScoreFiles = list[tuple[Path, dict[str, Any]]]


class EvaluationHost(Host, Protocol):
    """What the engine uses of a run, and where its results are."""

    @property
    def results(self) -> Path:
        """The folder of `metrics.json`."""


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation."""

    job: Job
    figures: StageDir
    groups: Groups


class _Decoder(Protocol):
    def __call__(self, number: int, rows: range, /) -> NDArray[np.uint8]: ...


def check_extras(extras: Extras, models: Sequence[str]) -> ScoreFiles:
    """Return the content of the score files, after the checks that need no evaluation.

    Args:
        models: the names of the models.

    Raises:
        CondistillError: a file of scores cannot be read, or a folder of images has other files.
    """
    if extras.images is not None:
        for name in models:
            check_folder(extras.images, name, None)
    return load_scores(extras.scores)


def write_images(host: Host, job: Job, out: Path) -> None:
    """Write the images of all models and their prompts; see `export_images`.

    Raises:
        CondistillError: a folder has other files.
    """
    images = images_of(job.rounds)
    for task in job.models:
        check_folder(out, task.model.name, task.model.latents.key)
    with host.progress("images", len(images) * len(job.models), unit="images") as advance:
        for task in job.models:
            name = task.model.name
            with ExitStack() as stack:
                export_images(
                    out,
                    name,
                    images,
                    _by_index(job.rounds, partial(stack.enter_context, job.engine.decoder(task))),
                    key=task.model.latents.key,
                    batch_size=job.engine.settings.batch_size,
                    on_images=lambda count, name=name: advance(count, note=name),  # type: ignore[misc]
                    on_found=lambda count, name=name: advance(count, note=name, found=True),  # type: ignore[misc]
                )
    host.say(f"images: {out}")


def _by_index(rounds: Sequence[Round], open_decoder: Callable[[], _Decoder]) -> Decode:
    """Return a function that decodes images by their positions among all images; neighbours are decoded together.

    Args:
        open_decoder: loads the model; called once, when the first image is decoded.
    """
    places = [(number, row) for number, each in enumerate(rounds) for row in range(len(each.prompts))]
    decoder = cache(open_decoder)

    def images(indices: Sequence[int]) -> NDArray[np.uint8]:
        parts: list[tuple[int, range]] = []
        for number, row in (places[index] for index in indices):
            if parts and parts[-1][0] == number and parts[-1][1].stop == row:
                parts[-1] = number, range(parts[-1][1].start, row + 1)
            else:
                parts.append((number, range(row, row + 1)))
        return np.concatenate([decoder()(number, rows) for number, rows in parts])

    return images


def check_is_evaluated(extras: Extras, results: Path, command: str) -> None:
    """Refuse scores where nothing was evaluated yet: they could belong to no image.

    Args:
        results: the folder with `metrics.json`.
        command: that writes the images.

    Raises:
        CondistillError: there is no evaluation.
    """
    if extras.scores and not (results / METRICS_NAME).is_file():
        raise CondistillError(
            f"--scores: {results} has no {METRICS_NAME}, so the scores belong to no image; first write the images with "
            f"`{command} --images FOLDER` and score them"
        )


def finish_extras(host: EvaluationHost, evaluated: Evaluated, extras: Extras, scores: ScoreFiles) -> None:
    """Write the images and merge the scores. Every process calls this."""
    if extras.images is not None:
        out = extras.images
        on_main_process(host.accelerator, lambda: write_images(host, evaluated.job, out))
    if scores:
        on_main_process(host.accelerator, lambda: _merge(host, evaluated, scores))


def _merge(host: EvaluationHost, evaluated: Evaluated, files: ScoreFiles) -> None:
    """Merge scores with the figures, and keep them."""
    job, figures = evaluated.job, evaluated.figures
    images = images_of(job.rounds)
    found = check_scores(files, models=[task.model.name for task in job.models], images=images)
    directory = scores_directory(host, job)
    found = joined(kept_scores(host, directory, job), found)
    keep_scores(directory, found)
    merge_into(figures.path, found, images, evaluated.groups)
    record = figures.record()
    assert record is not None
    figures.finish([figures.root / name for name in record.files])
    publish_metrics(figures, host.results)
    names = ", ".join(record.label for record in found.metrics.values())
    host.say(f"scores: merged {names} of {', '.join(path.name for path, _ in files)}")
