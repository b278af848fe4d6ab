"""What would fail only after hours of drawing is told before: students, and prompts that are of no use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from condistill.config.recipe import Recipe
from condistill.distill.solver import check_steps
from condistill.errors import CondistillError
from condistill.evaluate.run import rounds
from condistill.evaluate.stage import choose_judge
from condistill.students.derive import student_of
from condistill.students.features import layer_weights
from condistill.students.guidance import guidance_kind, guidance_learnt
from condistill.students.target import settle
from condistill.teachers.family import Family
from condistill.utils.meta import build_on_meta, plain_config

if TYPE_CHECKING:
    from condistill.compression import Prompts


def check_what_follows(recipe: Recipe, family: Family, prompts: Prompts) -> None:
    """Derive every student without weights, look at every prompt, and choose what will be evaluated on.

    Raises:
        CondistillError: a student cannot be made of this teacher, or a prompt cannot be encoded or its picture judged.
    """
    denoiser, evaluation = family.denoiser, recipe.evaluate
    family.check_prompts(prompts.pool)
    shapes: dict[str | None, Any] = {None: build_on_meta(type(denoiser), plain_config(denoiser))}
    guidance: dict[str | None, Any] = {None: guidance_kind(denoiser)}
    for name, variant in recipe.variants.items():
        student, settings = recipe.variant(name)
        try:
            check_steps(family, settings)
            if settings.random_text and settings.random_text.interpolate:
                nothing = family.null_condition(1)
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
    choose_judge(evaluation.judge, rounds(evaluation, prompts.choose, prompts.splits))
