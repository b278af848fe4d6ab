"""The stages in order: prompts, cache, distill, evaluate, report. Each does only what is missing."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from condistill.cache.fill import Texts, fill_cache, finish_cache
from condistill.cache.latents import MANIFEST_NAME, LatentCache, shard_name, verify_left
from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.pipelines.sampling import Sampling, planned_sampling
from condistill.prompts.pool import PromptPool
from condistill.prompts.readers import is_tabular, read_prompts
from condistill.prompts.sources import check_pool
from condistill.prompts.split import has_word, split_indices
from condistill.run.directory import RunDir, Stage
from condistill.teachers.family import Family
from condistill.teachers.load import family_class, load_teacher, read_index, teacher_key
from condistill.utils.atomic import write_text
from condistill.utils.hashing import hash_file, key_of
from condistill.utils.progress import track
from condistill.utils.quiet import quiet_libraries
from condistill.utils.randomness import Stream, generator

StageName = Literal["prompts", "cache", "distill", "evaluate", "report"]
STAGES: tuple[StageName, ...] = ("prompts", "cache", "distill", "evaluate", "report")
_RUN_ONLY = {"checkpoint_every", "keep_checkpoints", "log_every", "tracker"}
"""Settings of distillation that do not change its result."""


@dataclass(frozen=True)
class Prompts:
    """What the first stage leaves: the pool, what may be cached, and what is cached."""

    pool: PromptPool
    cached: Texts
    seen: np.ndarray[Any, np.dtype[np.int64]]
    unseen: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def splits(self) -> list[str]:
        """`seen` and `unseen`, or neither where nothing is held out."""
        return ["seen", "unseen"] if len(self.unseen) else ["all"]

    def choose(self, split: str, n: int, rng: np.random.Generator) -> list[str]:
        """Up to n distinct prompts of a split."""
        indices = {"seen": self.seen, "unseen": self.unseen, "all": np.arange(len(self.pool))}[split]
        return self.pool.take(rng.choice(indices, min(n, len(indices)), replace=False).tolist())


def compress(
    recipe: Recipe,
    out: str | Path,
    *,
    until: StageName = "report",
    update: bool = False,
    console: Console | None = None,
) -> Path:
    """Turn a teacher and prompts into students, as the recipe says; what is done already is not done again.

    Args:
        out: the run's directory; the students are in `<out>/pipelines/<name>`.
        until: the last stage to run.
        update: take over a directory whose recipe differs, and redo what depends on the difference.

    Returns:
        `out`, which then holds `report.html` and `metrics.json`.

    Raises:
        CondistillError: says what was given, what is allowed and what to do.
    """
    with quiet_libraries():
        return Compression(recipe, Path(out), update=update, console=console or Console(stderr=True)).run(until)


def check_inputs(recipe: Recipe) -> type[Family]:
    """Look at all that a run reads, and load nothing; the family of the teacher.

    Raises:
        CondistillError: the teacher or a file of prompts cannot be used.
    """
    _, index = read_index(recipe.teacher)
    settings = recipe.prompts
    for name in settings.every_file:
        next(iter(read_prompts(name, column=settings.column)), None)
    return family_class(recipe.teacher, index)


class Compression:
    """One run: what the stages share is loaded when it is first needed."""

    def __init__(self, recipe: Recipe, out: Path, *, update: bool, console: Console) -> None:
        self.recipe = recipe
        self.console = console
        check_inputs(recipe)  # what cannot be used is told before anything is written
        self.run_dir = RunDir(out)
        if self.accelerator.is_main_process:
            RunDir.open(out, recipe, update=update)
        self.accelerator.wait_for_everyone()
        self.teacher_key = teacher_key(recipe.teacher)

    def run(self, until: StageName) -> Path:
        last = STAGES.index(until)
        self.say(f"condistill {self.run_dir.path}", style="bold")
        prompts = self.prompts()
        if last >= 1:
            self._check_students(prompts)
            self.cache(prompts)
        if last >= 2:
            for name in self.recipe.variants:
                self.distill(name, prompts)
        if last >= 3:
            self.evaluate(prompts)
        if last >= 4:
            self.report()
        return self.run_dir.path

    def say(self, text: str, *, style: str = "") -> None:
        """Print a line on the main process as it is: no markup, and not wrapped, so that paths can be copied."""
        if self.accelerator.is_main_process:
            self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    @cached_property
    def accelerator(self) -> Any:
        from accelerate import Accelerator

        settings = [self.recipe.variant(name)[1] for name in self.recipe.variants]
        if len({(s.mixed_precision, s.tracker) for s in settings}) > 1:
            raise CondistillError("all variants of a run share distill.mixed_precision and distill.tracker")
        tracker, precision = settings[0].tracker, settings[0].mixed_precision
        if tracker != "none" and importlib.util.find_spec(tracker) is None:
            raise CondistillError(f"distill.tracker is {tracker!r}, which is not installed: pip install {tracker}")
        try:
            return Accelerator(
                mixed_precision=precision,
                log_with=None if tracker == "none" else tracker,
                project_dir=str(self.run_dir.path / "tracker"),
            )
        except ValueError as error:
            raise CondistillError(f"distill.mixed_precision {precision!r} cannot be used here: {error}") from error

    @cached_property
    def family(self) -> Family:
        """The teacher, loaded when it is first needed."""
        self.say(f"teacher: loading {self.recipe.teacher.pipeline}")
        family = load_teacher(self.recipe.teacher, device=self.accelerator.device)
        if family.device.type == "cpu":
            family.denoiser.to(memory_format=torch.channels_last)
        return family

    def _stage(self, name: str, *inputs: Any) -> Stage:
        return self.run_dir.stage(name, key_of(name, *inputs))

    # prompts

    @cached_property
    def _prompt_stage(self) -> Stage:
        settings = self.recipe.prompts
        hashes = {name: hash_file(Path(name)) for name in settings.every_file if Path(name).is_file()}
        return self._stage("prompts", settings.model_dump(), hashes, self.recipe.seed, self.recipe.cache.size)

    def prompts(self) -> Prompts:
        """Build the pool, split it, and choose what is cached."""
        settings, stage, folder = self.recipe.prompts, self._prompt_stage, self._prompt_stage.path
        files = {"cached.arrow": self.recipe.cache.size > 0, "unseen.arrow": bool(settings.unseen_files)}
        if not stage.is_done("pool.arrow", *(name for name, wanted in files.items() if wanted)):
            if self.accelerator.is_main_process:
                stage.begin()
                self._build_prompts(folder)
                stage.finish()
            self.accelerator.wait_for_everyone()
        pool = PromptPool.open(folder / "pool.arrow")
        held_out = PromptPool.open(folder / "unseen.arrow") if settings.unseen_files else None
        seen, unseen = split_indices(pool, unseen_words=settings.unseen_words, unseen_prompts=held_out)
        self._check_words(pool, unseen)
        for name in self.recipe.variants:
            check_pool(pool, self.recipe.variant(name)[1].prompt_choice)
        cached: Texts = PromptPool.open(folder / "cached.arrow") if self.recipe.cache.size else []
        prompts = Prompts(pool, cached, seen, unseen)
        self.say(
            f"prompts: {len(pool):,} in the pool ({pool.counts.duplicates:,} duplicates and {pool.counts.empty:,} "
            f"empty lines dropped), {len(unseen):,} of them never cached; {len(prompts.cached):,} to cache"
        )
        if self.recipe.cache_is_idle:
            self.say(
                "warning: no student learns from a cached latent; cache.size: 0 saves drawing them", style="yellow"
            )
        return prompts

    def _check_words(self, pool: PromptPool, unseen: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """No word of `unseen_words` is passed over in silence: one that no prompt has is told."""
        words = self.recipe.prompts.unseen_words
        idle = [word for word in words if not any(has_word(pool[i], (word,)) for i in unseen.tolist())]
        if not idle:
            return
        told = f"no prompt of the pool has {' or '.join(map(repr, idle))} of prompts.unseen_words"
        if len(idle) == len(words):
            raise CondistillError(f"{told}, so nothing would be held out; correct the words or leave them out")
        self.say(f"warning: {told}", style="yellow")

    def _build_prompts(self, folder: Path) -> None:
        settings, size = self.recipe.prompts, self.recipe.cache.size
        pool = PromptPool.build(settings.every_file, folder / "pool.arrow", column=settings.column)

        def build(files: Sequence[str], name: str) -> PromptPool:
            column = settings.column if any(map(is_tabular, files)) else None
            return PromptPool.build(files, folder / name, column=column)

        held_out = build(settings.unseen_files, "unseen.arrow") if settings.unseen_files else None
        if not size:
            return
        source = build(settings.cached_files, "candidates.arrow") if settings.cached_files else pool
        seen, _ = split_indices(source, unseen_words=settings.unseen_words, unseen_prompts=held_out)
        if len(seen) < size:
            raise CondistillError(
                f"cache.size is {size:,} and only {len(seen):,} prompts may be cached; lower cache.size or give more"
            )
        rng = generator(self.recipe.seed, Stream.CACHE_PROMPTS)
        chosen = rng.choice(seen, size, replace=False).tolist()
        PromptPool.from_prompts(source.take(chosen), folder / "cached.arrow")

    def _check_students(self, prompts: Prompts) -> None:
        """Before anything is drawn or trained: whether all that is still to be trained can be."""
        from condistill.workflow.preflight import check_what_follows

        if self.accelerator.is_main_process and not all(map(self._is_distilled, self.recipe.variants)):
            check_what_follows(self.recipe, self.family, prompts)
        self.accelerator.wait_for_everyone()

    # cache

    def _cache_stage(self) -> Stage:
        settings = self.recipe.cache
        keyed = settings.model_dump(exclude={"batch_size"})
        return self._stage("cache", self._prompt_stage.key, self.teacher_key, keyed, self.recipe.teacher.dtype)

    def cache(self, prompts: Prompts) -> LatentCache:
        """Let the teacher draw what is missing."""
        settings, stage = self.recipe.cache, self._cache_stage()
        shards = [shard_name(i) for i in range(-(-len(prompts.cached) // settings.shard_size))]
        if not stage.is_done(MANIFEST_NAME, *shards):
            accelerator, seed = self.accelerator, self.recipe.seed
            if accelerator.is_main_process:
                verify_left(stage.begin())
                check_space(stage.path, len(prompts.cached), self.family.latent_shape, settings.dtype)
            accelerator.wait_for_everyone()
            part = (accelerator.process_index, accelerator.num_processes)
            mine = len(prompts.cached) // accelerator.num_processes
            with track(self.console, "cache", mine, unit="images", quiet=part[0] > 0) as advance:
                fill_cache(stage.path, self.family, prompts.cached, settings, seed=seed, part=part, on_images=advance)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                finish_cache(stage.path, self.family, settings, seed=seed, teacher=self.teacher_key)
                stage.finish()
            accelerator.wait_for_everyone()
        cache = LatentCache.open(stage.path)
        self.say(f"cache: {len(cache):,} latents of {'x'.join(map(str, cache.latent_shape))}")
        return cache

    # distill

    def _distill_stage(self, name: str) -> Stage:
        student, settings = self.recipe.variant(name)
        keyed = settings.model_dump(exclude=_RUN_ONLY)
        teacher = self.recipe.variants[name].teacher
        taught_by = self._distill_stage(teacher).key if teacher else self._cache_stage().key
        return self._stage(f"distill/{name}", taught_by, student.model_dump(), keyed)

    def _is_distilled(self, name: str) -> bool:
        from condistill.distill.stage import STUDENT_NAME

        return self._distill_stage(name).is_done(STUDENT_NAME) and self.pipeline_path(name).is_dir()

    def pipeline_path(self, name: str) -> Path:
        """Where the finished pipeline of a variant lies."""
        return self.run_dir.path / "pipelines" / name

    def distill_path(self, name: str) -> Path:
        """Where the training of a variant lies."""
        return self._distill_stage(name).path

    def distill(self, name: str, prompts: Prompts) -> None:
        """Derive and train one student, and save its pipeline."""
        from condistill.distill.stage import distill_variant
        from condistill.evaluate.stage import load_student

        stage = self._distill_stage(name)
        if self._is_distilled(name):
            self.say(f"{name}: done already, {self.pipeline_path(name)}")
            return
        if self.accelerator.is_main_process:
            stage.begin()
        self.accelerator.wait_for_everyone()
        cache = LatentCache.open(self._cache_stage().path)
        cache.verify()
        teacher = self.recipe.variants[name].teacher
        with self.family.using(load_student(self, teacher) if teacher else self.family.denoiser):
            distill_variant(self, name, stage.path, cache, prompts.pool)
        if self.accelerator.is_main_process:
            stage.finish()
        self.accelerator.wait_for_everyone()

    def card(self, name: str, metrics: Mapping[str, Any] | None = None) -> str:
        """The model card of a variant, with scores once there are any."""
        from condistill.distill.stage import STUDENT_NAME
        from condistill.pipelines.card import model_card

        index = read_index(self.recipe.teacher)[1]
        parts = {name: part for name, part in index.items() if name.startswith(("text_encoder", "tokenizer"))}
        described = json.loads((self.distill_path(name) / STUDENT_NAME).read_text(encoding="utf-8"))
        return model_card(
            name=name,
            recipe=self.recipe,
            kept=described["kept"],
            sizes=described["sizes"],
            metrics=metrics,
            pipeline_class=index["_class_name"],
            absent=[name for name, part in parts.items() if part[0] is None],
        )

    # evaluate and report

    def _evaluate_stage(self) -> Stage:
        keys = [self._distill_stage(name).key for name in self.recipe.variants]
        names = list(self.recipe.variants)
        settings, cache = self.recipe.evaluate.model_dump(), self.recipe.cache
        return self._stage("evaluation", keys, names, settings, cache.num_inference_steps, cache.guidance_scale)

    def sampling(self, name: str | None = None) -> Sampling:
        """How the evaluation draws with the teacher, or with a variant."""
        return planned_sampling(self.recipe, name)

    def evaluate(self, prompts: Prompts) -> Mapping[str, Any]:
        """Measure teacher and students; on the main process."""
        from condistill.evaluate.stage import evaluate_models

        stage = self._evaluate_stage()
        if not stage.is_done("metrics.json", "grid.json") and self.accelerator.is_main_process:
            stage.begin()
            evaluate_models(self, stage.path, prompts)
            stage.finish()
        self.accelerator.wait_for_everyone()
        metrics: dict[str, Any] = json.loads((stage.path / "metrics.json").read_text(encoding="utf-8"))
        if self.accelerator.is_main_process:
            write_text(self.run_dir.path / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        return metrics

    def report(self) -> None:
        """Write `report.html` and the cards of the pipelines; cheap, so done every time."""
        from condistill.report.stage import write_run_report

        if self.accelerator.is_main_process:
            write_run_report(self, self._evaluate_stage().path)


def check_space(folder: Path, images: int, latent_shape: tuple[int, ...], dtype: str) -> None:
    """Whether the latents that are still to be drawn fit on the disk.

    Raises:
        CondistillError: they do not; nothing was drawn yet.
    """
    needed = images * int(np.prod(latent_shape)) * np.dtype(dtype).itemsize
    needed -= sum(file.stat().st_size for file in folder.glob("shard-*.arrow"))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CondistillError(
            f"the cache needs {needed / 2**30:,.2f} GiB more in {folder} and {free / 2**30:,.2f} GiB are free; free "
            "some space, choose another --out, or lower cache.size"
        )
