"""Checks before anything is generated or trained: inputs, students, prompts.

What a run would refuse hours later is refused at once: `preflight` needs the configs of the teacher alone, and
`check_prompts` the text pool and the teacher.
"""

from __future__ import annotations

from typing import Any

import torch

from condistill.config.distill import DistillSettings
from condistill.config.recipe import Recipe
from condistill.distill import stage as distill_stage
from condistill.distill.loss_terms import active_terms
from condistill.errors import CondistillError
from condistill.evaluate.generate import choose_rounds
from condistill.evaluate.metrics.classifier import choose_classifier
from condistill.prompts import stage as prompts_stage
from condistill.prompts.readers import read_prompts
from condistill.run.context import Run
from condistill.students.derive import derive_student
from condistill.students.features import layer_weights
from condistill.students.guidance import GuidanceKind, guidance_kind, guidance_kind_of_config, guidance_learnt
from condistill.students.target import meet_target
from condistill.teachers.family import Family
from condistill.teachers.load import family_class, read_index
from condistill.teachers.skeleton import Skeleton, teacher_skeleton
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


def preflight(recipe: Recipe, skeleton: Skeleton | None = None) -> Skeleton:
    """Check everything that can be known without weights, and return the teacher on the meta device.

    Args:
        skeleton: the teacher on the meta device, if it was made already.

    Raises:
        CondistillError: an input cannot be used, or a student cannot be made of this teacher.
    """
    check_inputs(recipe)
    skeleton = skeleton or teacher_skeleton(recipe.teacher)
    check_students(recipe, skeleton.family)
    return skeleton


def check_students(recipe: Recipe, family: Family) -> None:
    """Derive every student on the meta device.

    Args:
        family: the teacher, on the meta device.

    Raises:
        CondistillError: names the student that cannot be made.
    """
    size, text_length = family.latent_shape[1:], family.text_length
    denoisers: dict[str | None, Any] = {None: family.denoiser}
    for name, variant in recipe.variants.items():
        student, settings = recipe.variant(name)
        teacher = denoisers[variant.teacher]
        try:
            check_steps(family, settings)
            student = meet_target(teacher, student, size=size, text_length=text_length)
            derived = derive_student(
                teacher, student, features=settings.loss.features, may_be_as_large=settings.draws_cheaper
            )
            layer_weights(settings.loss.feature_layer_weights, derived.pairs)
            active_terms(settings.loss)
        except CondistillError as error:
            raise _cannot_be_made(name, error) from error
        denoisers[name] = derived.denoiser
    if guidance_kind_of_config(family.denoiser) is not None:  # else `check_guidance` needs the weights
        check_guidance(recipe, family.denoiser)


def check_guidance(recipe: Recipe, denoiser: Any) -> None:
    """Check that every student's guidance fits its teacher's.

    Args:
        denoiser: the teacher's, with weights where its config alone does not say how it is guided.

    Raises:
        CondistillError: names the student that cannot be made.
    """
    kinds: dict[str | None, GuidanceKind] = {None: guidance_kind(denoiser)}
    for name, variant in recipe.variants.items():
        try:
            kinds[name] = guidance_learnt(kinds[variant.teacher], denoiser, recipe.variant(name)[1])
        except CondistillError as error:
            raise _cannot_be_made(name, error) from error


def _cannot_be_made(name: str, error: CondistillError) -> CondistillError:
    return CondistillError(f"the student {name!r} cannot be made: {error}")


def check_steps(family: Family, settings: DistillSettings) -> None:
    """Check that the teacher has the timesteps of `path` and `few_steps`, and that paths can follow it.

    Raises:
        CondistillError: says which numbers of steps its timesteps can be divided into.
    """
    total = family.noise.total_timesteps
    path, few = settings.path, settings.few_steps
    if path and family.has_image_condition:
        raise CondistillError(
            f"distill.path is not for a teacher of family {family.name}: the part of the image that is kept does not "
            "move along with a state; leave out distill.path"
        )
    if path and path.num_inference_steps > total:
        raise CondistillError(
            f"path.num_inference_steps is {path.num_inference_steps}; the teacher has {total} timesteps"
        )
    if few:
        family.noise.check_few_steps(few)


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
        raise _cannot_be_made(name, error) from error
