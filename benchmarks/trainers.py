"""Teachers with random weights, and trainers of their students: they take as long as those with trained weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from condistill.cache.fill import finish_cache
from condistill.cache.latents import shard_name, write_shard
from condistill.config.recipe import Recipe
from condistill.distill.batches import batch_source
from condistill.distill.deriving import prepared
from condistill.distill.trainer import Trainer
from condistill.miniature import build
from condistill.miniature.world import all_captions
from condistill.prompts.pool import PromptPool
from condistill.students.derive import derive_student
from condistill.teachers.family import Family
from condistill.teachers.load import choose_dtype, load_teacher
from condistill.teachers.skeleton import teacher_skeleton

DATA = Path(__file__).parents[1] / "tests" / "data"
MINIATURE = "miniature"
STEPS = 10**6
"""Steps of the trainings that are measured: their learning rate does not change meanwhile."""


def recipe_of(shape: str, student: dict[str, Any], **distill: Any) -> Recipe:
    """Return a recipe of a training.

    Args:
        shape: miniature, or a teacher of tests/data, such as sd14.
        student: the recipe's section.
        distill: settings of the recipe's section.
    """
    return Recipe.model_validate(
        {
            "teacher": {"pipeline": shape if shape == MINIATURE else str(DATA / shape)},
            "prompts": {"files": [MINIATURE]},
            "student": student,
            "distill": {"steps": STEPS, **distill},
        }
    )


def teacher_of(recipe: Recipe, device: torch.device, *, dtype: torch.dtype | None = None) -> Family:
    """Return the miniature, or a pipeline with random weights on the device and the miniature's tokenizer.

    Args:
        dtype: of the random weights; None: the dtype of a teacher on this device.
    """
    if recipe.teacher.pipeline == MINIATURE:
        return load_teacher(recipe.teacher, device=device)
    skeleton = teacher_skeleton(recipe.teacher)
    pipeline = skeleton.family.pipeline
    torch.manual_seed(0)
    for name, part in pipeline.components.items():
        if name.startswith("tokenizer"):
            tokenizer = build.build_tokenizer()
            tokenizer.model_max_length = part.model_max_length
            setattr(pipeline, name, tokenizer)
        elif isinstance(part, torch.nn.Module):
            with torch.device(device):
                kind: Any = type(part)
                made = kind.from_config(part.config) if hasattr(kind, "from_config") else kind(part.config)
            setattr(pipeline, name, made.to(dtype or choose_dtype("auto", device)))
    family = type(skeleton.family)(pipeline, resolution=recipe.teacher.resolution)
    prepared(family, family.denoiser)
    return family


@contextmanager
def trainer_of(recipe: Recipe, family: Family, accelerator: Accelerator) -> Iterator[Trainer]:
    """Yield a trainer with a cache of random latents, the captions of the miniature, and a student of the teacher."""
    student = derive_student(family.denoiser, recipe.student)
    student.denoiser.to(family.device)
    prepared(family, student.denoiser)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        captions = all_captions()[:64]
        pool = PromptPool.from_prompts(captions, directory / "pool.arrow")
        latents = np.random.default_rng(0).standard_normal((64, *family.latent_shape)).astype(np.float16)
        (directory / "cache").mkdir()
        write_shard(directory / "cache" / shard_name(0), latents, captions)
        cache = finish_cache(directory / "cache", family, recipe.cache, seed=0, teacher="random")
        source = batch_source(cache, pool, recipe.distill, seed=0, accelerator=accelerator)
        trainer = Trainer(family, student, source, recipe.distill, directory=directory / "run", accelerator=accelerator)
        with closing(trainer):
            yield trainer
    accelerator.free_memory()  # it holds the student and the optimiser


def synchronize(device: torch.device) -> None:
    """Wait for the work of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
