"""Which prompt a training sample gets: the `distill.conditioning` section of a recipe.

Schedules of the re-pairing probability p(u) are registered by name, so that a plugin can add one; see
`condistill.distill.schedules.register_schedule`, which also binds the settings to their function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    PlainValidator,
    SerializeAsAny,
    Strict,
    model_validator,
)

from condistill.config.sections import Batch, Clusters, Probability, Settings
from condistill.utils.registry import Registry


class ScheduleSettings(Settings):
    """Settings of one schedule of p(u); a subclass has a field `schedule: Literal["its name"]`."""

    depends_on_noise_level: ClassVar[bool] = True
    """Whether p(u) differs between noise levels."""

    @property
    def replaces_prompts(self) -> bool:
        """Whether any prompt can be replaced."""
        return True


class Exponential(ScheduleSettings):
    """p(u) = exp(-lambda (1 - u)): the paper's choice."""

    schedule: Literal["exponential"] = "exponential"
    lambda_: Annotated[float, Field(ge=0, alias="lambda")] = 5.0


class Sigmoid(ScheduleSettings):
    """p(u) = 1 / (1 + exp(-slope (u - midpoint)))."""

    schedule: Literal["sigmoid"]
    slope: float = 20.0
    midpoint: Probability = 0.7


class Constant(ScheduleSettings):
    """p(u) = probability."""

    depends_on_noise_level = False
    schedule: Literal["constant"]
    probability: Probability = 1.0

    @property
    def replaces_prompts(self) -> bool:
        """Whether any prompt can be replaced."""
        return self.probability > 0


class Never(ScheduleSettings):
    """p(u) = 0: plain distillation."""

    depends_on_noise_level = False
    schedule: Literal["none"]

    @property
    def replaces_prompts(self) -> bool:
        """Whether any prompt can be replaced."""
        return False


def schedule_name(settings_class: type[ScheduleSettings]) -> str:
    """Return the name that a recipe gives as `schedule` for these settings."""
    (name,) = get_args(settings_class.model_fields["schedule"].annotation)
    return str(name)


SCHEDULES: Registry[type[ScheduleSettings]] = Registry(
    "schedule", {schedule_name(known): known for known in (Exponential, Sigmoid, Constant, Never)}
)
"""Settings of every schedule of p(u), by name."""
DEFAULT_SCHEDULE = schedule_name(Exponential)


def schedule_class(value: Any) -> type[ScheduleSettings] | None:
    """Return the settings class that a mapping's `schedule` names; None if the value names no known schedule."""
    name = value.get("schedule", DEFAULT_SCHEDULE) if isinstance(value, Mapping) else None
    return SCHEDULES[name] if isinstance(name, str) and name in SCHEDULES else None


def _check_schedule_name(name: str) -> str:
    if name not in SCHEDULES:
        raise ValueError(f"{name!r} is unknown; use {', '.join(map(repr, SCHEDULES))}")
    return name


class _Named(BaseModel):
    """The part that all settings of schedules share."""

    schedule: Annotated[str, Strict(), AfterValidator(_check_schedule_name)] = DEFAULT_SCHEDULE


def _validate_schedule(value: Any) -> ScheduleSettings:
    if isinstance(value, ScheduleSettings):
        return value
    name = _Named.model_validate(value).schedule
    return SCHEDULES[name].model_validate({"schedule": name, **value})


Schedule = SerializeAsAny[Annotated[ScheduleSettings, PlainValidator(_validate_schedule)]]


class PromptChoiceSettings(Settings):
    """Which random prompt a sample is re-paired with; with the defaults any of the pool, as in the paper."""

    source_weights: dict[str, Annotated[float, Field(ge=0, le=10**6)]] | None = None
    """How often prompts come from each file of the pool, by file name; empty: every prompt is equally likely."""
    candidates: Batch = 1
    """Random prompts per sample, of which one is kept, in proportion to distance**novelty * loss**disagreement."""
    novelty: Annotated[float, Field(ge=0)] = 0.0
    """Power of the distance (1 - cosine) to the nearest cached prompt."""
    disagreement: Annotated[float, Field(ge=0)] = 0.0
    """Power of the running loss of the prompt's cluster, relative to other prompts at its noise level."""
    clusters: Clusters = 64
    """Clusters of prompts whose running losses `disagreement` uses."""
    distance: Annotated[float, Field(ge=0)] = 0.0
    """How much p(u) depends on the distance d between the sample's prompt and the random prompt:
    u' = 1 - (1 - u) (d / mean d)**distance."""
    interpolate: Probability = 0.0
    """Share of re-paired samples whose condition is a blend of two random prompts."""

    @model_validator(mode="after")
    def _check_choice(self) -> PromptChoiceSettings:
        if self.source_weights is not None and not any(self.source_weights.values()):
            raise ValueError("source_weights has no weight above 0; give one to a file of the prompt pool")
        powers = self.novelty or self.disagreement
        if powers and self.candidates == 1:
            raise ValueError(
                "novelty and disagreement choose among candidates, and candidates is 1; set candidates to 2 or more"
            )
        if self.candidates > 1 and not powers:
            raise ValueError(
                f"candidates is {self.candidates}, but nothing ranks them; set novelty or disagreement above 0, "
                "or candidates to 1"
            )
        if self.disagreement and self.interpolate == 1:
            raise ValueError("disagreement learns from prompts that are not blended; set interpolate below 1")
        if self.clusters != PromptChoiceSettings.model_fields["clusters"].default and not self.disagreement:
            raise ValueError(f"clusters is {self.clusters} but is used only if disagreement is above 0; leave it out")
        return self


class ConditioningSettings(Settings):
    """Random conditioning: which prompt a training sample gets."""

    probability: Schedule = Field(default_factory=Exponential)
    """p(u), the re-pairing probability at noise level u."""
    empty_prompt_probability: Probability = 0.1
    """Share of samples whose prompt becomes "", so that classifier-free guidance keeps working."""
    prompt_choice: PromptChoiceSettings | None = None
    """How the random prompt is chosen; empty: uniformly from the pool, as in the paper."""
    timestep_bias: Annotated[float, Field(ge=0)] = 0.0
    """b of the density u^b of isolated samples over the noise level u; 0 is uniform, as in the paper."""
