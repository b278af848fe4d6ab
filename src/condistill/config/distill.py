"""How a student learns: the `distill` section of a recipe. Defaults are the paper's, or a comment says otherwise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from condistill.config.sections import Probability, Settings


class Exponential(Settings):
    """p(u) = exp(-lambda (1 - u)): the paper's choice."""

    schedule: Literal["exponential"] = "exponential"
    lambda_: Annotated[float, Field(ge=0, alias="lambda")] = 5.0


class Sigmoid(Settings):
    """p(u) = 1 / (1 + exp(-slope (u - midpoint)))."""

    schedule: Literal["sigmoid"]
    slope: float = 20.0
    midpoint: Probability = 0.7


class Constant(Settings):
    """p(u) = probability."""

    schedule: Literal["constant"]
    probability: Probability = 1.0


class Never(Settings):
    """p(u) = 0: plain distillation."""

    schedule: Literal["none"]


RandomConditioningSettings = Annotated[Exponential | Sigmoid | Constant | Never, Field(discriminator="schedule")]


class PromptChoiceSettings(Settings):
    """Which random prompt a sample is re-paired with; with the defaults any of the pool, as in the paper."""

    model_config = ConfigDict(allow_inf_nan=False)

    source_weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """How often each file of the pool is drawn from, by its name; empty: every prompt is equally likely."""
    candidates: PositiveInt = 1
    """Prompts drawn for a sample; one is kept, in proportion to distance**novelty * loss**disagreement."""
    novelty: Annotated[float, Field(ge=0)] = 0.0
    """Power of the distance (1 - cosine) to the nearest cached prompt."""
    disagreement: Annotated[float, Field(ge=0)] = 0.0
    """Power of the running loss of the prompt's cluster, relative to other prompts at its noise level."""
    clusters: Annotated[int, Field(ge=2)] = 64
    """Clusters of prompts that `disagreement` keeps a loss of."""
    distance: Annotated[float, Field(ge=0)] = 0.0
    """How much p(u) depends on the distance d of own and random prompt: u' = 1 - (1 - u) (d / mean d)**distance."""
    interpolate: Probability = 0.0
    """How often a re-paired sample is told a blend of two random prompts."""

    @model_validator(mode="after")
    def _choice(self) -> PromptChoiceSettings:
        if self.source_weights is not None and not any(self.source_weights.values()):
            raise ValueError("source_weights has no weight above 0; give one to a file of the prompt pool")
        powers = self.novelty or self.disagreement
        if powers and self.candidates == 1:
            raise ValueError(
                "novelty and disagreement choose among candidates, and there is 1; set candidates to 2 or more"
            )
        if self.candidates > 1 and not powers:
            raise ValueError(
                f"candidates is {self.candidates}, and nothing tells them apart; set novelty or disagreement above 0, "
                "or candidates to 1"
            )
        if self.disagreement and self.interpolate == 1:
            raise ValueError("disagreement learns from prompts that are not blended; set interpolate below 1")
        if self.clusters != PromptChoiceSettings.model_fields["clusters"].default and not self.disagreement:
            raise ValueError(f"clusters is {self.clusters} and serves disagreement, which is 0; leave it out")
        return self


class PathSettings(Settings):
    """Multi-step noise matching: a sample moves along a denoising path and is matched at every state it visits."""

    start: Literal["cache", "noise"] = "cache"
    """Where a path begins: at a noised cached latent, or at pure noise with a prompt of the pool, which needs no
    image at all (a rolling trajectory)."""
    steps: PositiveInt | None = None
    """States visited before a new start; empty: to the end of the path."""
    follow: Literal["teacher", "student", "moving"] = "teacher"
    """Whose prediction moves the states; `moving` goes from the teacher's to the student's over the training."""
    guidance_scale: Annotated[float, Field(ge=0)] = 1.0
    """Guidance along the path; 1 is unguided, anything else costs a forward more of the model that is followed."""
    num_inference_steps: PositiveInt = 25
    """Solver steps from pure noise to the end."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a batch that is on paths; the rest are isolated noised latents, as in the paper."""
    buffer: PositiveInt = 1
    """Batches of states in flight; they take turns."""


class ProgressiveSettings(Settings):
    """One step of the student does what several of the teacher's do (Salimans & Ho, ICLR 2022, arXiv 2202.00512)."""

    method: Literal["progressive"] = "progressive"
    num_inference_steps: PositiveInt
    """Solver steps of the student from pure noise to the end: what it is trained for, and drawn with."""
    teacher_steps: PositiveInt = 2
    """Steps of the teacher that one of the student's replaces; each costs a forward of the teacher."""

    @property
    def grid_steps(self) -> int:
        """Timesteps the student is trained at."""
        return self.num_inference_steps

    @property
    def asked_of_teacher(self) -> int:
        """Solver steps the teacher takes from pure noise to the end."""
        return self.num_inference_steps * self.teacher_steps


class ConsistencySettings(Settings):
    """From anywhere on a path the student finds its end (latent consistency models, Luo et al., arXiv 2310.04378)."""

    method: Literal["consistency"]
    num_inference_steps: PositiveInt
    """Steps the student is meant to be drawn with; any number up to `solver_steps` can be."""
    solver_steps: PositiveInt = 50  # that paper's skipping step of 20 among 1,000 timesteps
    """Solver steps of the teacher from pure noise to the end: the timesteps the student is trained at."""

    @model_validator(mode="after")
    def _on_the_grid(self) -> ConsistencySettings:
        if self.num_inference_steps > self.solver_steps:
            raise ValueError(
                f"num_inference_steps {self.num_inference_steps} is more than the student is trained at: "
                f"solver_steps {self.solver_steps}; lower the one or raise the other"
            )
        return self

    @property
    def grid_steps(self) -> int:
        """Timesteps the student is trained at."""
        return self.solver_steps

    @property
    def asked_of_teacher(self) -> int:
        """Solver steps the teacher takes from pure noise to the end."""
        return self.solver_steps


FewStepSettings = Annotated[ProgressiveSettings | ConsistencySettings, Field(discriminator="method")]


class DistillSettings(Settings):
    steps: PositiveInt = 400_000
    batch_size: PositiveInt = 256
    """Samples per optimiser step, over all processes and accumulation."""
    micro_batch_size: PositiveInt | None = None
    """Samples per forward on one device; empty: the whole share of the device at once."""
    learning_rate: PositiveFloat = 5e-5
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: PositiveFloat = 1.0
    ema_decay: Probability = 0.9999
    """0 ships the last weights instead of their average."""
    random_conditioning: RandomConditioningSettings = Field(default_factory=Exponential)
    prompt_choice: PromptChoiceSettings | None = None
    """Which random prompt it is; empty: any of the pool, as in the paper."""
    empty_prompt_probability: Probability = 0.1
    timestep_bias: Annotated[float, Field(ge=0)] = 0.0
    """Isolated samples are drawn with a density of u^bias over the noise level u; 0 is uniform, as in the paper."""
    path: PathSettings | None = None
    """Match along denoising paths; empty: at isolated noised latents, as in the paper."""
    output_weight: Annotated[float, Field(ge=0)] = 1.0
    feature_weight: Annotated[float, Field(ge=0)] = 1.0
    task_weight: Annotated[float, Field(ge=0)] = 0.0
    """MSE to the true noise, on samples that kept their prompt; off in the image-free setting."""
    guidance_weight: Annotated[float, Field(ge=0)] = 0.0
    """MSE between the guidance directions: prediction with the prompt less prediction with the empty one. Doubles the
    forwards of both models."""
    features: Literal["stages", "cross_attention", "self_attention", "attention_maps"] = "stages"
    """What the feature loss compares: the end of every stage, as in the paper; every attention of one kind; or how
    much of a place's attention goes to each token of the prompt."""
    feature_layer_weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Factors of single layers' feature losses, by the teacher's name of the layer or of a block that holds it;
    1 for all others."""
    feature_normalization: Literal["none", "teacher"] = "none"
    """`teacher` divides each layer's feature loss by the teacher's mean square there, so that no layer drowns the
    rest; `none` is the paper."""
    feature_weighting: Literal["uniform", "output"] = "uniform"
    """`output` weights features over noise levels as `output_weighting` does the output."""
    output_weighting: Literal["native", "epsilon", "x0", "v", "min_snr"] = "native"
    """Space the output loss is measured in: `native`, the teacher's own, as in the paper; `x0` favours noisy steps."""
    x0_clip: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] | None = None
    """Smallest and largest weight of `output_weighting: x0`; empty: 0.1 and 10."""
    guidance_distillation: float | Annotated[tuple[float, float], Field(strict=False)] | None = None
    """Guidance scale to fold in (Meng et al., CVPR 2023, arXiv 2210.03142): the student learns the guided prediction,
    so that one forward replaces two when it draws. Costs another forward of the teacher. `[low, high]`: the student is
    told a scale between the two, drawn anew for every sample, and draws with any of them."""
    few_steps: FewStepSettings | None = None
    """Distil for fewer sampling steps as well; empty: as many as the teacher's."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    checkpoint_every: PositiveInt = 500
    """Optimiser steps between checkpoints: what a power cut can cost."""
    keep_checkpoints: PositiveInt = 2
    log_every: PositiveInt = 50
    tracker: Literal["none", "tensorboard", "wandb"] = "none"

    @field_validator("random_conditioning", mode="before")
    @classmethod
    def _default_schedule(cls, given: Any) -> Any:
        return {"schedule": "exponential", **given} if isinstance(given, Mapping) else given

    @field_validator("few_steps", mode="before")
    @classmethod
    def _default_method(cls, given: Any) -> Any:
        return {"method": "progressive", **given} if isinstance(given, Mapping) else given

    @field_validator("guidance_distillation", mode="before")
    @classmethod
    def _scale_or_range(cls, given: Any) -> Any:
        ends = list(given) if isinstance(given, list | tuple) else [given]
        numbers = all(isinstance(end, float | int) and not isinstance(end, bool) and math.isfinite(end) for end in ends)
        right_count = len(ends) == (2 if isinstance(given, list | tuple) else 1)
        if given is not None and not (numbers and right_count and ends[0] > 1 and ends == sorted(set(ends))):
            raise ValueError(
                "a guidance scale to fold in is above 1, a range of them is [low, high] with 1 < low < high"
            )
        return given

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """Lowest and highest guidance scale that the student is told; None where it is told none."""
        return self.guidance_distillation if isinstance(self.guidance_distillation, tuple) else None

    def nearest_guidance(self, scale: float) -> float:
        """Of the scales that the student draws with, the nearest; all, unless guidance is folded in."""
        fold = self.guidance_distillation
        low, high = fold if isinstance(fold, tuple) else (fold or scale, fold or scale)
        return min(max(scale, low), high)

    @property
    def draws_cheaper(self) -> bool:
        """Whether the student is asked less often per image than its teacher, so that it need not be smaller."""
        return self.guidance_distillation is not None or self.few_steps is not None

    @property
    def uses_cache(self) -> bool:
        """Whether any sample is a cached latent; none is where all of a batch is on paths from pure noise."""
        return self.path is None or self.path.start == "cache" or self.path.share < 1

    @model_validator(mode="after")
    def _consistent(self) -> DistillSettings:
        if self.guidance_distillation and self.guidance_weight:
            raise ValueError(
                "guidance_weight compares predictions before guidance and guidance_distillation after; choose one"
            )
        if self.path:
            self._check_path(self.path)
        if self.prompt_choice:
            self._check_prompt_choice(self.prompt_choice)
        if self.few_steps and (self.task_weight or self.guidance_weight):
            raise ValueError("few_steps has targets of its own; task_weight and guidance_weight must be 0")
        if self.task_weight and not self.uses_cache:
            raise ValueError("task_weight needs cached latents: on a path from pure noise there is no true target")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.warmup_steps and self.lr_scheduler == "constant":
            raise ValueError("lr_scheduler 'constant' has no warm-up; use 'constant_with_warmup'")
        if self.x0_clip is not None and (self.output_weighting != "x0" or self.x0_clip[0] > self.x0_clip[1]):
            raise ValueError("x0_clip is (smallest, largest) and goes with output_weighting 'x0' only")
        how = (self.features, self.feature_normalization, self.feature_weighting, self.feature_layer_weights)
        if self.feature_weight == 0 and how != ("stages", "none", "uniform", None):
            raise ValueError(
                "features, feature_normalization, feature_weighting and feature_layer_weights need a feature_weight "
                "above 0"
            )
        if self.features == "attention_maps" and self.gradient_checkpointing:
            raise ValueError(
                "features 'attention_maps' cannot be recorded under gradient_checkpointing; choose one of the two"
            )
        if self.output_weight == self.feature_weight == self.task_weight == self.guidance_weight == 0:
            raise ValueError("every loss weight is 0: nothing would be learned")
        return self

    def _check_prompt_choice(self, text: PromptChoiceSettings) -> None:
        """Whether there are samples that each part of it can change."""
        schedule, path = self.random_conditioning, self.path
        repairs = not isinstance(schedule, Never) and schedule != Constant(schedule="constant", probability=0.0)
        isolated = path is None or path.share < 1
        if not repairs and not (path and path.start == "noise"):
            raise ValueError("prompt_choice chooses random prompts, and no sample is given one; set it to null")
        if text.distance and (not isinstance(schedule, Exponential | Sigmoid) or not self.uses_cache):
            raise ValueError(
                "prompt_choice.distance changes a p(u) that depends on the noise level, of cached latents; use it with "
                "the schedules 'exponential' and 'sigmoid', or set it to 0"
            )
        for name in ("disagreement", "interpolate"):
            if getattr(text, name) and not (repairs and isolated):
                raise ValueError(
                    f"prompt_choice.{name} is of re-paired samples that are on no path, and there are none; "
                    f"set it to 0, "
                    "or path.share below 1 with a schedule other than 'none'"
                )
        if text.novelty and not self.uses_cache:
            raise ValueError("prompt_choice.novelty is the distance to cached prompts, and none is used; set it to 0")

    def _check_path(self, path: PathSettings) -> None:
        if isinstance(self.few_steps, ConsistencySettings):
            raise ValueError(
                "few_steps.method 'consistency' learns at isolated samples, with a step of the teacher's from each; "
                "set path to null, or use the method 'progressive'"
            )
        on_path = self.batch_size * path.share
        if abs(on_path - round(on_path)) > 1e-6 or round(on_path) < 1:
            raise ValueError(
                f"path.share {path.share} of batch_size {self.batch_size} is {on_path:g} samples; "
                "choose a share that makes a whole number of them"
            )
        if path.steps and path.steps > path.num_inference_steps:
            raise ValueError(f"path.steps {path.steps} is more than the path has: {path.num_inference_steps}")
        if self.timestep_bias and not self.uses_cache:
            raise ValueError("timestep_bias is of isolated samples, and all are on paths from pure noise; leave it out")
        if path.guidance_scale != 1 and (self.guidance_distillation or self.few_steps):
            raise ValueError(
                "guidance_distillation guides paths as well, and few_steps needs it for that; leave out "
                "path.guidance_scale"
            )
        if self.few_steps and path.num_inference_steps != self.few_steps.num_inference_steps:
            raise ValueError(
                f"path.num_inference_steps is {path.num_inference_steps} and few_steps.num_inference_steps "
                f"{self.few_steps.num_inference_steps}; a path is walked in the student's steps, so they must be equal"
            )
