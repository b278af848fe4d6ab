"""The terms of the loss. A plugin can add one; a recipe switches it on by name in `distill.loss.extra`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from condistill.config.distill import LossSettings
from condistill.distill import random_conditioning as rc
from condistill.distill.states import Sample
from condistill.errors import CondistillError, nearest
from condistill.teachers.noise.schedule import NoiseSchedule
from condistill.utils.registry import Registry
from condistill.utils.transfer import on_device


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The outputs of both models for the same B samples. All tensors are on the device."""

    settings: LossSettings
    teacher: Tensor
    """The prediction that the student must match, `[B, C, h, w]`, without gradients."""
    student: Tensor
    """The student's prediction, `[B, C, h, w]`."""
    teacher_unconditional: Tensor | None = None
    """Prediction for the empty prompt; None unless `distill.loss.guidance_weight` is above 0."""
    student_unconditional: Tensor | None = None
    teacher_features: Sequence[Tensor] = ()
    """One `[B, ...]` per pair of layers; none if `distill.loss.feature_weight` is 0."""
    student_features: Sequence[Tensor] = ()
    """Of the same shapes as the teacher's."""
    layer_weights: Sequence[float] = ()
    """One per pair of layers, from `distill.loss.feature_layer_weights`."""


@dataclass(frozen=True, kw_only=True)
class Comparison(Predictions):
    """Both models at the same B states: the input of a loss term."""

    sample: Sample
    """The states."""
    noise: NoiseSchedule
    """The teacher's."""

    @cached_property
    def timesteps(self) -> Tensor:
        """As the denoiser takes them, `[B]`."""
        return on_device(self.sample.timesteps, self.student.device)

    @cached_property
    def alpha_bar(self) -> Tensor:
        """The share of signal variance in x_t, `[B]`."""
        return self.noise.alpha_bar(self.timesteps)

    @cached_property
    def true_target(self) -> Tensor:
        """The true noise (or velocity), `[B, C, h, w]`; of no meaning where `replaced` is true."""
        return self.noise.target(self.sample.x_0, self.sample.noise, self.timesteps)

    @cached_property
    def replaced(self) -> Tensor:
        """Which states have no true target, bool `[B]`."""
        return on_device(self.sample.replaced, self.student.device)


LossTerm = Callable[[Comparison], Tensor]
"""A term of the loss: from a comparison to one value per sample, `[B]`."""


def output(predictions: Predictions) -> Tensor:
    """Return the MSE between the predictions, `[B]`."""
    return rc.mse(predictions.student, predictions.teacher)


def feature(predictions: Predictions) -> Tensor:
    """Return the loss between the features, `[B]`; 0 for a student that shares no layer with its teacher."""
    if not predictions.student_features:
        return predictions.student.new_zeros(len(predictions.student))
    return rc.feature_loss(
        predictions.student_features,
        predictions.teacher_features,
        weights=predictions.layer_weights,
        normalized=predictions.settings.feature_normalization == "teacher",
    )


def task(comparison: Comparison) -> Tensor:
    """Return the MSE to the true noise or velocity, `[B]`; 0 for states without a true target."""
    return rc.task_loss(comparison.student, comparison.true_target, comparison.replaced)


def guidance(predictions: Predictions) -> Tensor:
    """Return the MSE between the guidance directions, `[B]`."""
    assert predictions.student_unconditional is not None
    assert predictions.teacher_unconditional is not None
    return rc.guidance_loss(
        predictions.student,
        predictions.student_unconditional,
        predictions.teacher,
        predictions.teacher_unconditional,
    )


PREDICTION_TERMS: dict[str, Callable[[Predictions], Tensor]] = {
    "output": output,
    "feature": feature,
    "guidance": guidance,
}
"""Those that need no states."""
BUILT_IN: dict[str, LossTerm] = {"output": output, "feature": feature, "task": task, "guidance": guidance}
"""Their weights are `distill.loss.<name>_weight`."""
LOSS_TERMS: Registry[LossTerm] = Registry("loss term", BUILT_IN)


def register_loss_term(name: str, term: LossTerm) -> None:
    """Add a loss term, so that a recipe can give it a weight: `distill.loss.extra: {name: 0.1}`.

    Raises:
        CondistillError: another term has this name.
    """
    LOSS_TERMS.register(name, term)


@dataclass(frozen=True)
class WeightedTerm:
    """A term of a training's loss."""

    name: str
    term: LossTerm
    weight: float
    output_weighting: bool = False
    """Whether `distill.loss.output_weighting` applies to the term."""


def weighted_sum(terms: Sequence[WeightedTerm], values: Mapping[str, Tensor], output_weight: Tensor) -> Tensor:
    """Return the weighted sum of the terms, `[B]`.

    Args:
        values: of every term, `[B]` by name.
        output_weight: `[B]`, from `distill.loss.output_weighting`.
    """
    total = torch.zeros_like(output_weight)
    for term in terms:
        weight = term.weight * output_weight if term.output_weighting else term.weight
        total = total + weight * values[term.name]
    return total


def active_terms(settings: LossSettings) -> list[WeightedTerm]:
    """Return the terms of a training's loss. The output loss is always among them, since the history reports it.

    Raises:
        CondistillError: `distill.loss.extra` names a built-in term, or none that is registered.
    """
    terms = [
        WeightedTerm("output", output, settings.output_weight, output_weighting=True),
        WeightedTerm(
            "feature", feature, settings.feature_weight, output_weighting=settings.feature_weighting == "output"
        ),
        WeightedTerm("task", task, settings.task_weight),
        WeightedTerm("guidance", guidance, settings.guidance_weight, output_weighting=True),
    ]
    registered = [name for name in LOSS_TERMS if name not in BUILT_IN]
    for name, weight in settings.extra.items():
        if name in BUILT_IN:
            raise CondistillError(
                f"distill.loss.extra names the built-in term {name!r}; set distill.loss.{name}_weight"
            )
        if name not in LOSS_TERMS:
            suggestion = nearest(name, registered) if registered else "; install the plugin that adds it"
            raise CondistillError(f"distill.loss.extra names {name!r}, and no such loss term is registered{suggestion}")
        terms.append(WeightedTerm(name, LOSS_TERMS[name], weight))
    return [term for term in terms if term.weight > 0 or term.name == "output"]
