"""What would fail only after hours of drawing is told before: students, and prompts that are of no use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from condistill.config.distill import DistillSettings
from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.evaluate.generate import rounds
from condistill.evaluate.stage import choose_classifier
from condistill.students.derive import student_of
from condistill.students.features import layer_weights
from condistill.students.guidance import guidance_kind, guidance_learnt
from condistill.students.target import settle
from condistill.teachers.family import Family
from condistill.utils.meta import build_on_meta, plain_config

if TYPE_CHECKING:
    from condistill.workflow.compress import Prompts


def check_what_follows(recipe: Recipe, family: Family, prompts: Prompts) -> None:
    """Derive every student without weights, look at every prompt, and choose what will be evaluated on.

    Raises:
        CondistillError: a student cannot be made of this teacher, or a prompt cannot be encoded or classified.
    """
    denoiser, evaluation = family.denoiser, recipe.evaluate
    family.check_prompts(prompts.pool)
    shapes: dict[str | None, Any] = {None: build_on_meta(type(denoiser), plain_config(denoiser))}
    guidance: dict[str | None, Any] = {None: guidance_kind(denoiser)}
    for name, variant in recipe.variants.items():
        student, settings = recipe.variant(name)
        try:
            check_steps(family, settings)
            if settings.prompt_choice and settings.prompt_choice.interpolate:
                nothing = family.encode([""])
                nothing.lerp(nothing, torch.zeros(1))
            guidance[name] = guidance_learnt(guidance[variant.teacher], denoiser, settings)
            student = settle(
                shapes[variant.teacher], student, size=family.latent_shape[1:], text_length=family.text_length
            )
            derived = student_of(
                shapes[variant.teacher], student, may_be_as_large=settings.draws_cheaper, features=settings.features
            )
            layer_weights(settings.feature_layer_weights, derived.pairs)
        except CondistillError as error:
            raise CondistillError(f"the student {name!r} cannot be made: {error}") from error
        shapes[name] = derived.denoiser
    choose_classifier(evaluation.classifier, rounds(evaluation, prompts.choose, prompts.splits))


def check_steps(family: Family, settings: DistillSettings) -> None:
    """Whether the teacher has the timesteps that paths and few steps ask for, and can be followed along a path.

    Raises:
        CondistillError: says which numbers of steps it can be cut into.
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
