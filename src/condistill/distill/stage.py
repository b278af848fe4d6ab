"""The distill stage: derive each student, train it, and save its pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import nn

from condistill.cache import stage as cache_stage
from condistill.cache.latents import LatentCache
from condistill.config.distill import DistillSettings
from condistill.distill.batches import batch_source
from condistill.distill.checkpoints import written_hashes
from condistill.distill.continuing import RESULT_FREE, may_continue
from condistill.distill.deriving import derive_variant, initial_denoiser, prepared, size_of
from condistill.distill.facts import card_facts, devices_in_use
from condistill.distill.history import HISTORY_NAME, HistoryRecord, read_history
from condistill.distill.previews import (
    FOLDER_NAME,
    PreviewFolder,
    PreviewModels,
    Previews,
    preview_prompts,
    preview_steps,
)
from condistill.distill.stopwatch import TIME_NAME, Stopwatch, train_sec
from condistill.distill.tracking import state_of_its_own, track_image, tracked
from condistill.distill.trainer import Trainer
from condistill.errors import CondistillError
from condistill.pipelines.card import PipelineParts, model_card
from condistill.pipelines.record import STUDENT_NAME, DenoiserSize, StudentRecord
from condistill.pipelines.sampling import SAMPLING_NAME, planned_sampling
from condistill.pipelines.save import save_pipeline, too_large
from condistill.prompts import stage as prompts_stage
from condistill.prompts.split import Prompts
from condistill.run.context import Run
from condistill.run.stage_directory import Inputs, StageDir
from condistill.students.derive import Student
from condistill.students.layer_map import LAYERS_NAME, LayersRecord
from condistill.teachers.family import Family
from condistill.teachers.source import teacher_files
from condistill.utils.distributed import decide, on_main_process
from condistill.utils.format import significant
from condistill.utils.hashing import key_of
from condistill.utils.malloc import release_freed_memory
from condistill.utils.randomness import Stream, generator
from condistill.utils.text import first_line, shorten

NAME = "distill"
_REWRITTEN = ("README.md", SAMPLING_NAME)
"""Files of a pipeline that the report writes again, or that the user may edit."""


@dataclass(frozen=True)
class DistilledVariant:
    """A finished variant: where its training and its pipeline are."""

    name: str
    directory: Path
    """Its directory under `distill/`."""
    pipeline: Path
    """Its directory under `pipelines/`."""
    initial: Callable[[], nn.Module] = field(repr=False, compare=False)
    """Returns its denoiser as it was before the training, on the process that calls."""

    def record(self) -> StudentRecord:
        """Return the record of the student: its kept layers and the sizes of both denoisers."""
        return StudentRecord.read(self.directory / STUDENT_NAME, remedy="run `condistill distill` with --update")

    def history(self, say: Callable[[str], None] = lambda _: None) -> list[HistoryRecord]:
        """Return the records of its training; `say` is called with a line if some cannot be read."""
        return read_history(self.directory / "checkpoints" / HISTORY_NAME, say)

    def previews(self) -> PreviewFolder:
        """Return the grids of student and teacher that were made during its training."""
        return PreviewFolder(self.directory / FOLDER_NAME)

    def train_sec(self, steps: int) -> float | None:
        """Return the seconds that its training of `steps` steps took; None if they are not known."""
        return train_sec(self.directory, steps)

    def load(self, family: Family) -> nn.Module:
        """Return its denoiser on the family's device, read from safetensors.

        Raises:
            CondistillError: the pipeline has no denoiser, or it is damaged.
        """
        path = self.pipeline / family.denoiser_name
        if not path.is_dir():
            raise CondistillError(f"there is no student at {path}; make it with `condistill distill RECIPE`")
        kind: Any = type(family.denoiser)
        try:
            denoiser = kind.from_pretrained(path, use_safetensors=True, torch_dtype=family.dtype)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = first_line(error)
            raise CondistillError(
                f"the student at {path} cannot be loaded ({reason}); delete {self.pipeline}, and the same command "
                "makes it again from the last checkpoint"
            ) from error
        return prepared(family, denoiser.to(family.device).eval().requires_grad_(False))


def _directory(run: Run, name: str) -> StageDir:
    """Return the directory of a variant, to which its pipeline belongs."""
    directory = run.stage(f"{NAME}/{name}", lambda: _inputs(run, name))
    directory.outputs = (run.path / "pipelines" / name,)
    directory.can_continue = _can_continue
    return directory


def _can_continue(old: Inputs, new: Inputs) -> bool:
    """Return whether a training that was made from old inputs continues with the new ones, see `may_continue`."""
    if {**old, "distill": None} != {**new, "distill": None}:
        return False
    try:
        before = DistillSettings.model_validate_json(json.dumps(old["distill"]))
    except (KeyError, ValidationError):  # a version with other settings
        return False
    return may_continue(before, DistillSettings.model_validate_json(json.dumps(new["distill"])))


def _inputs(run: Run, name: str) -> dict[str, Any]:
    """Return what a variant depends on: its settings, and the variant that teaches it, or the cache."""
    student, settings = run.recipe.variant(name)
    teacher = run.recipe.variants[name].teacher
    source = _directory(run, teacher) if teacher else None
    return {
        source.name if source else cache_stage.NAME: source.key if source else cache_stage.key(run),
        "student": student.model_dump(mode="json"),
        "distill": settings.model_dump(mode="json", exclude={*RESULT_FREE}),
    }


def _variant(run: Run, name: str) -> DistilledVariant:
    directory = _directory(run, name).path

    def initial() -> nn.Module:
        teacher = run.recipe.variants[name].teacher
        denoiser = _variant(run, teacher).load(run.family) if teacher else run.family.denoiser
        return initial_denoiser(run, name, denoiser, directory, cache_stage.open(run))

    return DistilledVariant(name, directory, run.path / "pipelines" / name, initial)


def _is_variant_done(run: Run, name: str) -> bool:
    return _directory(run, name).is_done()


def _begin(run: Run, name: str) -> None:
    """Begin a variant; an older pipeline to which the user has added files is moved, since a new one replaces it."""
    directory, pipeline = _directory(run, name), _variant(run, name).pipeline
    record = directory.record()
    if record and record.done and pipeline.exists():
        made = {run.path / file for file in record.files}
        found = (file for file in pipeline.rglob("*") if file.is_file() and file.name not in _REWRITTEN)
        if not pipeline.is_dir() or any(file not in made for file in found):
            run.directory.set_aside([pipeline])
    directory.begin()


def _finish(run: Run, name: str) -> None:
    """Mark a variant as finished, with checksums of its record and of its pipeline."""
    variant = _variant(run, name)
    files = [file for file in variant.pipeline.rglob("*") if file.is_file() and file.name not in _REWRITTEN]
    checkpoints = variant.directory / "checkpoints"
    for file, sha256 in written_hashes(checkpoints).items():
        run.directory.hashes.note(file, sha256)
    _directory(run, name).finish(
        [variant.directory / STUDENT_NAME, variant.directory / LAYERS_NAME, *sorted(files)],
        noted=[checkpoints / HISTORY_NAME, variant.directory / TIME_NAME],
        optional=sorted(checkpoints.glob("step-*/*")),
    )


def variant_key(run: Run, name: str) -> str:
    """Return the hash of everything that a variant's student depends on."""
    return _directory(run, name).key


def key(run: Run) -> str:
    """Return the hash of the keys of all variants, with their names."""
    return key_of([_directory(run, name).key for name in run.recipe.variants], list(run.recipe.variants))


def is_done(run: Run) -> bool:
    """Return whether every variant is trained and saved."""
    return all(_is_variant_done(run, name) for name in run.recipe.variants)


def make(run: Run) -> None:
    """Train the variants that are missing, in the recipe's order, and save their pipelines."""
    for name in run.recipe.variants:
        if decide(run.accelerator, lambda name=name: _is_variant_done(run, name)):  # type: ignore[misc]
            _say_done(run, name)
            continue
        directory = _directory(run, name)
        on_main_process(run.accelerator, lambda name=name: _begin(run, name))  # type: ignore[misc]
        cache = cache_stage.open(run)
        teacher = run.recipe.variants[name].teacher
        denoiser = _variant(run, teacher).load(run.family) if teacher else run.family.denoiser
        with run.family.using(denoiser), state_of_its_own(run.accelerator):
            _distill(run, name, directory.path, cache)
        release_freed_memory()
        on_main_process(run.accelerator, lambda name=name: _finish(run, name))  # type: ignore[misc]
    run.once(NAME, lambda: None)  # every variant has had its line


def open(run: Run) -> Mapping[str, DistilledVariant]:
    """Return the finished variants by name, and print them the first time, unless `make` has."""

    def say_all() -> None:
        for name in run.recipe.variants:
            _say_done(run, name)

    run.once(NAME, say_all)
    return {name: _variant(run, name) for name in run.recipe.variants}


def _say_done(run: Run, name: str) -> None:
    run.say(f"{name}: done already, {_variant(run, name).pipeline}")


def _distill(run: Run, name: str, directory: Path, cache: LatentCache) -> None:
    """Train the variant `name` in `directory`, and save its pipeline."""
    recipe, family, accelerator = run.recipe, run.family, run.accelerator
    prompts = prompts_stage.open(run)
    settings = recipe.variant(name)[1]
    if cache.latent_shape != family.latent_shape:
        raise CondistillError(
            f"the cache holds latents of {cache.latent_shape} and the teacher makes {family.latent_shape}"
        )
    with run.working(f"{name}: deriving the student, and what its layers and channels are chosen by", after_sec=2.0):
        student = derive_variant(run, name, directory, cache)
    prepared(family, student.denoiser)
    sizes = {"teacher": size_of(family, family.denoiser), "student": size_of(family, student.denoiser)}
    on_main_process(accelerator, lambda: _write_record(run, name, directory, student, sizes))
    source = batch_source(cache, prompts.pool, settings, seed=recipe.seed, accelerator=accelerator)
    trainer = Trainer(
        family,
        student,
        source,
        settings,
        directory=directory / "checkpoints",
        accelerator=accelerator,
        say=partial(run.say, style="yellow"),
    )
    counts = " of the teacher's ".join(f"{sizes[model].parameters:,}" for model in ("student", "teacher"))
    run.say(f"{name}: {counts} parameters; {settings.steps:,} steps")
    previews = _previews(run, name, prompts)
    with closing(trainer), tracked(accelerator, settings.logging.tracker, name):
        denoiser = _train(run, name, trainer, previews)
    with run.working(f"{name}: saving {_variant(run, name).pipeline}", after_sec=2.0):
        on_main_process(accelerator, lambda: _save(run, name, denoiser))
    run.say(f"{name}: saved {_variant(run, name).pipeline}")


def _train(run: Run, name: str, trainer: Trainer, previews: Previews) -> nn.Module:
    """Run the training with progress and previews, and note its seconds at every checkpoint."""
    accelerator, settings, done = run.accelerator, trainer.settings, 0
    stopwatch = Stopwatch(_variant(run, name).directory, device=devices_in_use(accelerator.num_processes))
    due = preview_steps(settings, quick=run.recipe.quick)
    losses = ""
    with run.progress(name, settings.steps, unit="steps") as advance:
        trainer.doing = partial(advance, 0)

        def on_step(step: int, record: HistoryRecord | None) -> None:
            nonlocal done, losses
            if record:
                run.status.note_losses(record.scalars())
                losses = f"loss {significant(record.loss)}"
            advance(step - done, losses or "training", found=record is None and not done)
            done = step
            if accelerator.is_main_process:
                stopwatch.on_step(step, checkpoint=step == trainer.saved_step)
            if step in due and not trainer.is_stopping:  # the next run makes it
                advance(0, "making a preview")
                with stopwatch.paused():
                    on_main_process(accelerator, lambda: _preview(run, name, trainer, previews))
                advance(0, losses or "training")

        return trainer.run(on_step)


def _previews(run: Run, name: str, prompts: Prompts) -> Previews:
    """Return the previews of a variant: their prompts and noise depend on the seed of the recipe alone."""
    recipe = run.recipe
    count = preview_prompts(quick=recipe.quick)

    def choose() -> list[tuple[str, str]]:
        chosen = []
        for number, split in enumerate(prompts.splits):
            rng = generator(recipe.seed, Stream.PREVIEWS, number, 2)
            chosen += [(split, prompt) for prompt in prompts.choose(split, count, rng)]
        return chosen

    models = PreviewModels.of(planned_sampling(recipe, recipe.variants[name].teacher), planned_sampling(recipe, name))
    return Previews(run.family, _variant(run, name).directory, models, choose=choose, seed=recipe.seed)


def _preview(run: Run, name: str, trainer: Trainer, previews: Previews) -> None:
    """Make a preview; one that cannot be made is reported and never stops the training."""
    step = trainer.step
    try:
        file = previews.make(step, trainer.trained.denoiser, trainer.ema)
        with Image.open(file) as image:
            track_image(run.accelerator, "preview", np.asarray(image.convert("RGB")), step=step)
    except Exception as error:
        reason = shorten(first_line(error), 200)
        run.say(f"warning: {name}: no preview of step {step:,}: {reason}; the training goes on", style="yellow")
    else:
        run.say(f"{name}: preview of step {step:,}: {file}")


def _write_record(run: Run, name: str, directory: Path, student: Student, sizes: Mapping[str, DenoiserSize]) -> None:
    teacher = run.recipe.variants[name].teacher
    lineage = [f"taught by, and made of, the student {teacher!r} of this run"] if teacher else []
    kept = (*lineage, *student.kept)
    StudentRecord(kept=kept, teacher_size=sizes["teacher"], student_size=sizes["student"]).write(
        directory / STUDENT_NAME
    )
    if student.layers is not None:
        LayersRecord.of(run.family.denoiser, student.layers).write(directory / LAYERS_NAME)


def _save(run: Run, name: str, denoiser: nn.Module) -> None:
    """Write the pipeline of a variant, with a file that says how it is meant to sample."""
    variant, sampling = _variant(run, name), planned_sampling(run.recipe, name)
    teacher, dtype = teacher_files(run.teacher), _save_dtype(run, name, denoiser)
    facts = card_facts(run, name, variant.directory)
    card = model_card(
        name=name,
        recipe=run.recipe,
        student=variant.record(),
        parts=PipelineParts.of(teacher, dtype=dtype),
        facts=facts,
    )
    save_pipeline(
        run.family,
        denoiser,
        variant.pipeline,
        card=card,
        teacher=teacher,
        dtype=getattr(torch, dtype),
        scheduler=sampling.scheduler(run.family),
        files={SAMPLING_NAME: sampling.to_json(), **facts.lineage.licence_files},
    )


def _save_dtype(run: Run, name: str, denoiser: nn.Module) -> str:
    """Return the dtype of a student on disk; `auto` is that of the teacher's file, if it holds every weight."""
    chosen = run.recipe.variant(name)[1].save_dtype
    if chosen != "auto":
        return chosen
    dtype = teacher_files(run.teacher).dtype(run.family.denoiser_name)
    if weight := too_large(denoiser, getattr(torch, dtype)):
        run.say(f"{name}: the weight {weight} is too large for {dtype}, so the student is saved in float32")
        return "float32"
    return dtype
