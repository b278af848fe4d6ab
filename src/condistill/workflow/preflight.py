"""Checks before anything is generated or trained: inputs, students, prompts.

What a run would refuse hours later is refused at once. `check_inputs` needs the files, `preflight` the configs of the
teacher, `check_prompts` the text pool and the teacher.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch

from condistill.config.recipe import TEACHER, Recipe
from condistill.config.sections import FEWEST_CLASSIFIED, MINIATURE
from condistill.distill import stage as distill_stage
from condistill.distill.checkpoints import checkpoint_bytes, checkpoints_kept
from condistill.distill.loss_terms import active_terms
from condistill.errors import CondistillError
from condistill.evaluate.metrics.classifier import choose_classifier
from condistill.evaluate.networks.locate import (
    check_evaluation_files,
    check_reference,
    download_lines,
    locate_networks,
    sources_of,
)
from condistill.evaluate.prompt_sets import FilePrompts, check_prompt_files, open_prompt_set
from condistill.evaluate.reference_images import ReferenceImages
from condistill.evaluate.rounds import Round, choose_rounds
from condistill.prompts import stage as prompts_stage
from condistill.prompts.lengths import long_prompts
from condistill.prompts.readers import check_column, read_prompts
from condistill.prompts.text import clean_prompt
from condistill.prompts.words import has_word
from condistill.run.context import PROTOCOLS, Run
from condistill.students.derive import Student
from condistill.students.variants import OnRefusal, cannot_be_made, check_guidance, derive_variants, refuse
from condistill.teachers.family import Family
from condistill.teachers.load import family_class, read_index
from condistill.teachers.locate import is_plain, teacher_warnings
from condistill.teachers.skeleton import Skeleton
from condistill.utils.distributed import on_main_process
from condistill.utils.format import byte_size
from condistill.utils.meta import parameters

_MOST_READ = 20_000
"""Prompts that are checked before the pool is built."""


def check_inputs(recipe: Recipe) -> type[Family]:
    """Return the family of the teacher, after a look at every file that a run reads. Nothing is loaded.

    Raises:
        CondistillError: the teacher, a file of prompts, their column, a held-out word, a network of the evaluation or
            its reference images cannot be used.
    """
    _, index = read_index(recipe.teacher)
    settings = recipe.prompts
    has_word("", settings.unseen_words)  # reports a word that shows nothing
    check_column(settings.every_file, settings.column)
    for name in settings.every_file:
        next(iter(read_prompts(name, column=settings.column)), None)
    check_prompt_files(recipe.evaluate)
    check_evaluation_files(recipe.evaluate, download=False)
    return family_class(recipe.teacher, index)


_WRITTEN = ("prompts", "cache", "distill", "evaluation", PROTOCOLS, "pipelines")


def check_places(recipe: Recipe, out: Path) -> None:
    """Check that no input lies in a folder of the run directory that the run writes, and that `--update` may move.

    Raises:
        CondistillError: names the setting and the file.
    """
    teacher, out = recipe.teacher, out.resolve()
    written = [*_WRITTEN, *([] if is_plain(teacher) else [TEACHER])]
    named = {f"teacher.{name}": getattr(teacher, name) for name in ("pipeline", "config", "vae", "scheduler")}
    named |= {f"teacher.loras[{number}].path": lora.path for number, lora in enumerate(teacher.loras)}
    named |= {f"evaluate.networks.{name}": source for name, source in sources_of(recipe.evaluate.networks).items()}
    named["evaluate.reference"] = recipe.evaluate.reference
    inputs = [*named.items(), *(("prompts", file) for file in recipe.prompts.every_file)]
    inputs += [("evaluate.prompt_files", file) for file in recipe.evaluate.prompt_files]
    for setting, name in inputs:
        file = os.path.expanduser(name or "")  # noqa: PTH111 - never raises
        path = Path(file).resolve() if file and os.path.exists(file) else None  # noqa: PTH110 - false for any bad name
        for folder in (out / each for each in written):
            if path is not None and path.is_relative_to(folder):
                raise CondistillError(
                    f"{setting}: {path} lies in {folder}, which this run writes; choose another --out, or copy it to "
                    "another place"
                )


def preflight(recipe: Recipe, skeleton: Skeleton, *, on_refusal: OnRefusal = refuse) -> dict[str, Student]:
    """Return the student of every variant, on the meta device, after all checks that need no weights.

    `condistill validate`, `plan` and `run` call this, so they refuse the same recipes.

    Args:
        skeleton: the teacher on the meta device.
        on_refusal: called with a variant's name and the error where a run would refuse a variant whose shapes can be
            derived; by default the error is raised.

    Raises:
        CondistillError: names the variant that cannot be made of this teacher, or the setting of cache or evaluation
            that does not fit it.
    """
    students = derive_variants(recipe, skeleton.family, on_refusal=on_refusal)
    for name in recipe.variants:
        try:
            active_terms(recipe.variant(name)[1].loss)
        except CondistillError as error:
            on_refusal(name, error)
    _check_sampling(recipe, skeleton.family)
    _check_classifier(recipe, skeleton.family)
    _check_reference(recipe, skeleton.family)
    return students


def check_first_prompts(files: Sequence[str], column: str | None, family: Family) -> None:
    """Check that the teacher can use the first prompts, without its weights; most families read any text.

    Raises:
        CondistillError: names a prompt that cannot be encoded.
    """
    texts = chain.from_iterable(read_prompts(file, column=column) for file in files)  # read only where it matters
    family.check_prompts(clean_prompt(text)[0] for text in islice(texts, _MOST_READ))


@dataclass(frozen=True)
class Findings:
    """What `condistill validate` and `plan` report about a recipe."""

    students: dict[str, Student]
    """By name of the variant, on the meta device."""
    refused: tuple[str, ...]
    """A line for each variant that a run refuses, although its shapes can be derived."""
    warnings: tuple[str, ...]
    """A line for each setting that has no effect, or will not do what its name says."""


def examine(recipe: Recipe, skeleton: Skeleton) -> Findings:
    """Return the students of a recipe, and everything about it that a run would refuse or warn of.

    Raises:
        CondistillError: a student has no shapes, or the teacher does not fit the cache or the evaluation.
    """
    refused: list[str] = []

    def note(name: str, error: CondistillError) -> None:
        refused.append(f"{name}: `condistill run` will refuse this: {error}")

    students = preflight(recipe, skeleton, on_refusal=note)
    check_first_prompts(recipe.prompts.every_file, recipe.prompts.column, skeleton.family)
    downloads = download_lines(locate_networks(recipe.evaluate.networks, download=False))
    return Findings(students, tuple(refused), (*recipe_warnings(recipe), *_tracker_warnings(recipe), *downloads))


def recipe_warnings(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each setting that has no effect, or less than its value says, and one for LoRAs without use."""
    yield from teacher_warnings(recipe.teacher)
    if recipe.cache_is_idle:
        yield "no student learns from a cached latent; set cache.size: 0 to skip the cache"
    settings = recipe.evaluate
    if "grid" in settings.model_fields_set and settings.grid > settings.prompts_per_split:
        yield (
            f"evaluate.grid is {settings.grid}, and evaluate.prompts_per_split is {settings.prompts_per_split}, so the "
            "report shows fewer images; lower the one or raise the other"
        )
    for name in recipe.variants:
        distill = recipe.variant(name)[1]
        if distill.optimizer.warmup_steps >= distill.steps:
            yield (
                f"{name}: distill.optimizer.warmup_steps is {distill.optimizer.warmup_steps} and distill.steps is "
                f"{distill.steps}, so the learning rate is never reached; lower the one or raise the other"
            )


def _tracker_warnings(recipe: Recipe) -> Iterator[str]:
    trackers = {recipe.variant(name)[1].logging.tracker for name in recipe.variants} - {"none"}
    for tracker in sorted(trackers):
        if importlib.util.find_spec(tracker) is None:
            extra = {"tensorboard": "track"}.get(tracker, tracker)
            yield (
                f"distill.logging.tracker is {tracker!r}, which is not installed here; a run needs it: "
                f"pip install 'condistill[{extra}]'"
            )


def check_processes(recipe: Recipe, processes: int) -> None:
    """Check that the batch of every variant can be cut evenly into processes and micro-batches.

    Raises:
        CondistillError: names the variant and the nearest sizes.
    """
    for name in recipe.variants:
        settings = recipe.variant(name)[1]
        share, rest = divmod(settings.batch_size, processes)
        if rest or (settings.micro_batch_size and share % settings.micro_batch_size):
            micro = f" and micro-batches of {settings.micro_batch_size}" if settings.micro_batch_size else ""
            raise CondistillError(
                f"{name}: distill.batch_size {settings.batch_size} cannot be cut evenly into {processes} "
                f"processes{micro}; make it a multiple of {processes * (settings.micro_batch_size or 1)}"
            )


def _check_sampling(recipe: Recipe, family: Family) -> None:
    """Check that the teacher's scheduler has the steps that the cache and the evaluation sample with."""
    chosen = {"cache": recipe.cache.num_inference_steps if recipe.cache.size else None}
    chosen["evaluate"] = recipe.evaluate.num_inference_steps or recipe.cache.num_inference_steps
    for section, steps in chosen.items():
        if steps is not None:
            try:
                family.check_sampling(steps)
            except CondistillError as error:
                raise CondistillError(
                    f"{section}.num_inference_steps is {steps}, and the teacher's {error}; lower it"
                ) from error


def _check_classifier(recipe: Recipe, family: Family) -> None:
    """Check that images of the teacher have the size that the classifier needs."""
    if recipe.evaluate.classifier != MINIATURE:
        return
    from condistill.miniature.world import IMAGE_SIZE

    if family.image_size != (IMAGE_SIZE, IMAGE_SIZE):
        raise CondistillError(
            f"evaluate.classifier is 'miniature', which classifies images of {IMAGE_SIZE}x{IMAGE_SIZE} pixels, and the "
            f"teacher's have {'x'.join(map(str, family.image_size))}; set it to 'none', or teacher.resolution to "
            f"{IMAGE_SIZE}"
        )


def _check_reference(recipe: Recipe, family: Family) -> None:
    """Check that reference images which keep their size have that of the teacher's images."""
    settings = recipe.evaluate
    if settings.reference is not None and settings.resize is None:
        check_reference(ReferenceImages.open(settings.reference, settings), settings, family.image_size)


def check_space(run: Run, students: Mapping[str, Student], skeleton: Skeleton) -> None:
    """Check that the cache, all checkpoints that are kept and all pipelines fit on the disk.

    The estimate is a lower bound: what it refuses cannot fit. The latents alone are checked by the cache stage.

    Raises:
        CondistillError: they do not; nothing was generated yet.
    """
    recipe = run.recipe
    latents = (
        recipe.cache.size * math.prod(skeleton.family.latent_shape) * (2 if recipe.cache.dtype == "float16" else 4)
    )
    sizes = {name: parameters(student.denoiser) for name, student in students.items()}
    settings = {name: recipe.variant(name)[1] for name in sizes}
    checkpoints = sum(
        checkpoints_kept(settings[name]) * checkpoint_bytes(settings[name], sizes[name]) for name in sizes
    )
    others = sum(skeleton.components.values()) - skeleton.components[skeleton.family.denoiser_name]
    pipelines = sum(2 * (size + others) for size in sizes.values())
    existing = sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file() and not file.is_symlink())
    place = next(folder for folder in (run.path, *run.path.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    needed = latents + checkpoints + pipelines - existing
    if latents <= free + existing and needed > free:
        raise CondistillError(
            f"the run needs at least {byte_size(needed)} more in {run.path} ({byte_size(latents)} for latents, "
            f"{byte_size(checkpoints)} for checkpoints, {byte_size(pipelines)} for pipelines) and "
            f"{byte_size(free)} are free; free some space, choose another --out, or lower cache.size or "
            "distill.logging.keep_checkpoints"
        )


def check_prompts(run: Run) -> None:
    """Check, before anything is generated or trained, that the teacher can use every prompt.

    Nothing is checked, and no teacher is loaded, where every student is trained already.

    Raises:
        CondistillError: a prompt cannot be encoded, blended or classified, or guidance does not fit the teacher.
    """

    def check() -> None:
        if distill_stage.is_done(run):
            return
        recipe, family, prompts = run.recipe, run.family, prompts_stage.open(run)
        family.check_prompts(prompts.pool)
        if family.prompt_reader and (warning := long_prompts(prompts.pool, *family.prompt_reader)):
            run.say(f"warning: {warning}", style="yellow")
        check_guidance(recipe, family.denoiser)
        for name in recipe.variants:
            choice = recipe.variant(name)[1].conditioning.prompt_choice
            if choice and choice.interpolate:
                _check_blend(name, family)
        _check_clusters(recipe, len(prompts.pool))
        evaluated = open_prompt_set(run)
        if isinstance(evaluated, FilePrompts):
            family.check_prompts(evaluated)
        rounds = choose_rounds(recipe.evaluate, evaluated.choose, evaluated.splits)
        _check_rounds(run, rounds)
        choose_classifier(recipe.evaluate.classifier, [prompt for each in rounds for prompt in each.prompts])

    on_main_process(run.accelerator, check)


def _check_clusters(recipe: Recipe, prompts: int) -> None:
    """Check that the pool has a prompt for every cluster, and two prompts that can differ."""
    for name in recipe.variants:
        choice = recipe.variant(name)[1].conditioning.prompt_choice
        if choice is None:
            continue
        key = f"{name}: distill.conditioning.prompt_choice"
        if choice.disagreement and choice.clusters > prompts:
            raise CondistillError(f"{key}.clusters is {choice.clusters}, and the pool has {prompts} prompts; lower it")
        if choice.distance and prompts < 2:
            raise CondistillError(f"{key}.distance needs prompts that differ, and the pool has one; set it to 0")


def _check_rounds(run: Run, rounds: Sequence[Round]) -> None:
    """Check that there are images enough for every metric, and warn of splits that are smaller than the setting."""
    settings = run.recipe.evaluate
    for split in rounds[0].parts:
        count = rounds[0].count(split)
        if settings.classifier != "none" and sum(each.count(split) for each in rounds) < FEWEST_CLASSIFIED:
            raise CondistillError(
                f"evaluate.classifier {settings.classifier!r} needs {FEWEST_CLASSIFIED} images of every split, and "
                f"{split} has {count} prompt; give more prompts or evaluate.seeds, or set it to 'none'"
            )
        if count < settings.prompts_per_split:
            run.say(
                f"warning: evaluate.prompts_per_split is {settings.prompts_per_split}, and the split {split} has "
                f"{count} prompts, which are all evaluated",
                style="yellow",
            )


def _check_blend(name: str, family: Family) -> None:
    """Check that conditions of the family can be interpolated."""
    condition = family.encode([""])
    try:
        condition.lerp(condition, torch.zeros(1))
    except CondistillError as error:
        raise cannot_be_made(name, error) from error
