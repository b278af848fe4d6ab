"""Checks before anything is generated or trained: inputs, students, prompts.

What a run would refuse hours later is refused at once. `check_inputs` needs the files, `preflight` the configs of the
teacher, `check_prompts` the text pool and the teacher.
"""

from __future__ import annotations

import torch

from condistill.config.recipe import Recipe
from condistill.distill import stage as distill_stage
from condistill.distill.loss_terms import active_terms
from condistill.errors import CondistillError
from condistill.evaluate.generate import choose_rounds
from condistill.evaluate.metrics.classifier import choose_classifier
from condistill.prompts import stage as prompts_stage
from condistill.prompts.readers import read_prompts
from condistill.run.context import Run
from condistill.students.derive import Student
from condistill.students.variants import OnRefusal, cannot_be_made, check_guidance, derive_variants, refuse
from condistill.teachers.family import Family
from condistill.teachers.load import family_class, read_index
from condistill.teachers.skeleton import Skeleton
from condistill.utils.distributed import on_main_process


def check_inputs(recipe: Recipe) -> type[Family]:
    """Return the family of the teacher, after a look at every file that a run reads. Nothing is loaded.

    Raises:
        CondistillError: the teacher or a file of prompts cannot be used.
    """
    _, index = read_index(recipe.teacher)
    settings = recipe.prompts
    for name in settings.every_file:
        next(iter(read_prompts(name, column=settings.column)), None)
    return family_class(recipe.teacher, index)


def preflight(recipe: Recipe, skeleton: Skeleton, *, on_refusal: OnRefusal = refuse) -> dict[str, Student]:
    """Return the student of every variant, on the meta device, after all checks that need no weights.

    `condistill validate`, `plan` and `run` call this, so they refuse the same recipes.

    Args:
        skeleton: the teacher on the meta device.
        on_refusal: called with a variant's name and the error where a run would refuse a variant whose shapes can be
            derived; by default the error is raised.

    Raises:
        CondistillError: names the variant that cannot be made of this teacher.
    """
    students = derive_variants(recipe, skeleton.family, on_refusal=on_refusal)
    for name in recipe.variants:
        try:
            active_terms(recipe.variant(name)[1].loss)
        except CondistillError as error:
            on_refusal(name, error)
    return students


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
        check_guidance(recipe, family.denoiser)
        for name in recipe.variants:
            choice = recipe.variant(name)[1].conditioning.prompt_choice
            if choice and choice.interpolate:
                _check_blend(name, family)
        rounds = choose_rounds(recipe.evaluate, prompts.choose, prompts.splits)
        choose_classifier(recipe.evaluate.classifier, [prompt for each in rounds for prompt in each.prompts])

    on_main_process(run.accelerator, check)


def _check_blend(name: str, family: Family) -> None:
    """Check that conditions of the family can be interpolated."""
    condition = family.encode([""])
    try:
        condition.lerp(condition, torch.zeros(1))
    except CondistillError as error:
        raise cannot_be_made(name, error) from error
