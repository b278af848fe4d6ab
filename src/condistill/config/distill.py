"""How a student is trained: the `distill` section of a recipe.

Defaults are the paper's (arXiv 2504.02011), or a comment says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from condistill.config.conditioning import ConditioningSettings, PromptChoiceSettings
from condistill.config.sections import Amount, Batch, Count, Probability, Settings, SolverSteps

Weight = Annotated[float, Field(ge=0)]


class PathSettings(Settings):
    """Multi-step noise matching: states move along a denoising path, and the models are compared at each state."""

    start: Literal["cache", "noise"] = "cache"
    """Where a path starts: at a noised cached latent, or at pure noise with a prompt of the pool, which needs no
    image at all (a rolling trajectory)."""
    steps: SolverSteps | None = None
    """States visited before a new path starts; empty: to the end of the path."""
    follow: Literal["teacher", "student", "moving"] = "teacher"
    """Whose prediction moves the states; `moving` shifts from the teacher's to the student's during training."""
    guidance_scale: Annotated[float, Field(ge=0)] = 1.0
    """Guidance along the path; 1 is unguided, any other scale costs one more forward of the followed model."""
    num_inference_steps: SolverSteps = 25
    """Solver steps from pure noise to the end."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a batch that is on paths; the rest are isolated noised latents, as in the paper."""
    buffer: Batch = 1
    """Batches of states kept at once; they are trained on in turn."""


class ProgressiveSettings(Settings):
    """One step of the student replaces several of the teacher (Salimans & Ho, ICLR 2022, arXiv 2202.00512)."""

    method: Literal["progressive"] = "progressive"
    num_inference_steps: SolverSteps
    """Solver steps of the student from pure noise to the end, in training and in sampling."""
    teacher_steps: SolverSteps = 2
    """Teacher steps that one student step replaces; each costs one forward of the teacher."""

    @property
    def grid_steps(self) -> int:
        """Number of timesteps that the student is trained at."""
        return self.num_inference_steps

    @property
    def teacher_solver_steps(self) -> int:
        """Solver steps of the teacher from pure noise to the end."""
        return self.num_inference_steps * self.teacher_steps


class ConsistencySettings(Settings):
    """The student predicts a path's end from any state (latent consistency models, Luo et al., arXiv 2310.04378)."""

    method: Literal["consistency"]
    num_inference_steps: SolverSteps
    """Sampling steps that the student is meant for; it can also sample with any number up to `solver_steps`."""
    solver_steps: SolverSteps = 50  # that paper's skipping step of 20 among 1,000 timesteps
    """Solver steps of the teacher from pure noise to the end; the student is trained at their timesteps."""

    @model_validator(mode="after")
    def _check_steps(self) -> ConsistencySettings:
        if self.num_inference_steps > self.solver_steps:
            raise ValueError(
                f"num_inference_steps {self.num_inference_steps} is more than the student is trained at: "
                f"solver_steps {self.solver_steps}; lower the one or raise the other"
            )
        return self

    @property
    def grid_steps(self) -> int:
        """Number of timesteps that the student is trained at."""
        return self.solver_steps

    @property
    def teacher_solver_steps(self) -> int:
        """Solver steps of the teacher from pure noise to the end."""
        return self.solver_steps


FewStepSettings = Annotated[ProgressiveSettings | ConsistencySettings, Field(discriminator="method")]


FeatureKind = Literal["stages", "cross_attention", "self_attention", "attention_maps"]


class LossSettings(Settings):
    """The terms of the loss and their weights."""

    output_weight: Weight = 1.0
    """Of the MSE between the predictions of student and teacher."""
    feature_weight: Weight = 1.0
    """Of the MSE between the features of student and teacher; 0 records no features."""
    task_weight: Weight = 0.0
    """Of the MSE to the true noise, on samples that kept their prompt; off in the image-free setting."""
    guidance_weight: Weight = 0.0
    """Of the MSE between the guidance directions: conditional minus unconditional prediction. Doubles the forwards of
    both models."""
    output_weighting: Literal["native", "epsilon", "x0", "v", "min_snr"] = "native"
    """Space that the output loss is measured in: `native`, the teacher's own, as in the paper; `x0` favours high
    noise levels."""
    x0_clip: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)] | None = None
    """Smallest and largest weight of `output_weighting: x0`; empty: 0.1 and 10."""
    features: FeatureKind = "stages"
    """The features that the feature loss compares: the outputs of all stages, as in the paper; the outputs of all
    attentions of one kind; or the attention of each position to each token of the prompt."""
    feature_layer_weights: dict[str, Weight] | None = None
    """Factors of single layers' feature losses, by the teacher's name of the layer or of a block that holds it;
    1 for all others."""
    feature_normalization: Literal["none", "teacher"] = "none"
    """`teacher` divides each layer's feature loss by the mean square of the teacher's feature map, so that no layer
    outweighs the others; `none` is the paper."""
    feature_weighting: Literal["uniform", "output"] = "uniform"
    """`output` weights the feature loss over noise levels as `output_weighting` does the output loss."""
    extra: dict[str, Weight] = Field(default_factory=dict)
    """Weights of registered loss terms, by name; see `condistill.distill.loss_terms.register_loss_term`."""

    @model_validator(mode="after")
    def _check_loss(self) -> LossSettings:
        if self.x0_clip is not None and (self.output_weighting != "x0" or self.x0_clip[0] > self.x0_clip[1]):
            raise ValueError("x0_clip is [smallest, largest] and needs output_weighting 'x0'")
        changed = (self.features, self.feature_normalization, self.feature_weighting, self.feature_layer_weights)
        if self.feature_weight == 0 and changed != ("stages", "none", "uniform", None):
            raise ValueError(
                "features, feature_normalization, feature_weighting and feature_layer_weights need a feature_weight "
                "above 0"
            )
        weights = (self.output_weight, self.feature_weight, self.task_weight, self.guidance_weight)
        if not any((*weights, *self.extra.values())):
            raise ValueError("every loss weight is 0, so nothing would be learned; set one above 0")
        return self


class OptimizerSettings(Settings):
    """AdamW, its learning rate over training, and the average of the weights."""

    learning_rate: PositiveFloat = 5e-5
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    warmup_steps: Amount = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    max_grad_norm: PositiveFloat = 1.0
    ema_decay: Probability = 0.9999
    """Of the exponential moving average of the weights, which is the student that is saved; 0 saves the last
    weights."""

    @model_validator(mode="after")
    def _check_warmup(self) -> OptimizerSettings:
        if self.warmup_steps and self.lr_scheduler == "constant":
            raise ValueError("lr_scheduler 'constant' has no warm-up; use 'constant_with_warmup'")
        return self


class LoggingSettings(Settings):
    """Logs and checkpoints of a training; they do not change the student."""

    log_every: Count = 50
    """Optimiser steps between records in `history.jsonl`."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    checkpoint_every: Count = 500
    """Optimiser steps between checkpoints: the most that an interruption can cost."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints that are kept."""


class DistillSettings(Settings):
    """How a student is trained."""

    steps: Count = 400_000
    batch_size: Batch = 256
    """Samples per optimiser step, over all processes and accumulation."""
    micro_batch_size: Batch | None = None
    """Samples per forward on one device; empty: the device's whole share at once."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    save_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Of the student's weights on disk; `auto`: that of the teacher's denoiser on disk, or float32 if
    a weight is too large for it."""
    gradient_checkpointing: bool = False
    conditioning: ConditioningSettings = Field(default_factory=ConditioningSettings)
    loss: LossSettings = Field(default_factory=LossSettings)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    logging: LoggingSettings = Field(default_factory=LoggingSettings)
    preview_every: Amount | None = None
    """Optimiser steps between previews, grids of student and teacher from the same noise; empty: a tenth of `steps`;
    0: no previews."""
    path: PathSettings | None = None
    """Compare the models along denoising paths; empty: at isolated noised latents, as in the paper."""
    few_steps: FewStepSettings | None = None
    """Distil for fewer sampling steps as well; empty: the student needs as many as the teacher."""
    guidance_distillation: float | Annotated[tuple[float, float], Field(strict=False)] | None = None
    """Guidance scale of the teacher's prediction that the student learns (Meng et al., CVPR 2023, arXiv 2210.03142),
    so that sampling needs one forward instead of two. Costs one more forward of the teacher. `[low, high]`: the
    student takes the scale as an input, random in this range for every sample, and can sample with any of them."""

    @field_validator("few_steps", mode="before")
    @classmethod
    def _add_default_method(cls, value: Any) -> Any:
        return {"method": "progressive", **value} if isinstance(value, Mapping) else value

    @field_validator("guidance_distillation", mode="before")
    @classmethod
    def _check_scale_or_range(cls, value: Any) -> Any:
        ends = list(value) if isinstance(value, list | tuple) else [value]
        numbers = all(isinstance(end, float | int) and not isinstance(end, bool) and math.isfinite(end) for end in ends)
        right_count = len(ends) == (2 if isinstance(value, list | tuple) else 1)
        if value is not None and not (numbers and right_count and ends[0] > 1 and ends == sorted(set(ends))):
            raise ValueError(
                "a guidance scale to distil is above 1, and a range of scales is [low, high] with 1 < low < high; "
                "correct it, or set it to null"
            )
        return value

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """Lowest and highest guidance scale that the student takes as an input; None if it takes no scale."""
        return self.guidance_distillation if isinstance(self.guidance_distillation, tuple) else None

    def nearest_guidance(self, scale: float) -> float:
        """Return the guidance scale nearest to `scale` that the student can sample with."""
        distilled = self.guidance_distillation
        low, high = distilled if isinstance(distilled, tuple) else (distilled or scale, distilled or scale)
        return min(max(scale, low), high)

    @property
    def needs_fewer_evaluations(self) -> bool:
        """Whether the student needs fewer denoiser evaluations per image than its teacher, so it may be as large."""
        return self.guidance_distillation is not None or self.few_steps is not None

    @property
    def uses_cache(self) -> bool:
        """Whether any sample is a cached latent; none is if the whole batch is on paths from pure noise."""
        return self.path is None or self.path.start == "cache" or self.path.share < 1

    @model_validator(mode="after")
    def _check_combinations(self) -> DistillSettings:
        loss = self.loss
        if self.guidance_distillation and loss.guidance_weight:
            raise ValueError(
                "distill.loss.guidance_weight compares predictions before guidance and distill.guidance_distillation "
                "compares them after; choose one"
            )
        if self.path:
            self._check_path(self.path)
        if self.conditioning.prompt_choice:
            self._check_prompt_choice(self.conditioning.prompt_choice)
        if self.few_steps and (loss.task_weight or loss.guidance_weight):
            raise ValueError(
                "distill.few_steps has its own targets; set distill.loss.task_weight and distill.loss.guidance_weight "
                "to 0"
            )
        if loss.task_weight and not self.uses_cache:
            raise ValueError(
                "distill.loss.task_weight needs cached latents, since a path from pure noise has no true target; set "
                "it to 0"
            )
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"distill.batch_size {self.batch_size} is not a multiple of distill.micro_batch_size "
                f"{self.micro_batch_size}; change one of the two"
            )
        if loss.features == "attention_maps" and self.gradient_checkpointing:
            raise ValueError(
                "distill.loss.features 'attention_maps' cannot be recorded with distill.gradient_checkpointing; "
                "choose one of the two"
            )
        return self

    def _check_prompt_choice(self, choice: PromptChoiceSettings) -> None:
        """Check that there are samples for every part of the prompt choice."""
        schedule, path = self.conditioning.probability, self.path
        isolated = path is None or path.share < 1
        key = "distill.conditioning.prompt_choice"
        if not schedule.replaces_prompts and not (path and path.start == "noise"):
            raise ValueError(f"{key} chooses random prompts, but no sample gets a random prompt; set it to null")
        if choice.distance and not (schedule.depends_on_noise_level and self.uses_cache):
            raise ValueError(
                f"{key}.distance changes how p(u) depends on the noise level of cached latents; use it with cached "
                "latents and a schedule that depends on the noise level, such as 'exponential' or 'sigmoid', or set "
                "it to 0"
            )
        for name in ("disagreement", "interpolate"):
            if getattr(choice, name) and not (schedule.replaces_prompts and isolated):
                raise ValueError(
                    f"{key}.{name} applies to re-paired samples that are not on a path, and there are none; set it to "
                    "0, or distill.path.share below 1 with a schedule other than 'none'"
                )
        if choice.novelty and not self.uses_cache:
            raise ValueError(f"{key}.novelty is the distance to cached prompts, and none is used; set it to 0")

    def _check_path(self, path: PathSettings) -> None:
        if isinstance(self.few_steps, ConsistencySettings):
            raise ValueError(
                "distill.few_steps.method 'consistency' learns at isolated samples; set distill.path to null, or use "
                "the method 'progressive'"
            )
        on_path = self.batch_size * path.share
        if abs(on_path - round(on_path)) > 1e-6 or round(on_path) < 1:
            raise ValueError(
                f"distill.path.share {path.share} of distill.batch_size {self.batch_size} is {on_path:g} samples; "
                "choose a share that gives a whole number of samples"
            )
        if path.steps and path.steps > path.num_inference_steps:
            raise ValueError(
                f"distill.path.steps {path.steps} is more than distill.path.num_inference_steps "
                f"{path.num_inference_steps}; lower the one or raise the other"
            )
        if self.conditioning.timestep_bias and not self.uses_cache:
            raise ValueError(
                "distill.conditioning.timestep_bias applies to isolated samples, and all are on paths from pure noise; "
                "leave it out"
            )
        if path.guidance_scale != 1 and (self.guidance_distillation or self.few_steps):
            raise ValueError(
                "distill.guidance_distillation guides paths as well, and distill.few_steps needs it for that; leave "
                "out distill.path.guidance_scale"
            )
        if self.few_steps and path.num_inference_steps != self.few_steps.num_inference_steps:
            raise ValueError(
                f"distill.path.num_inference_steps is {path.num_inference_steps} and "
                f"distill.few_steps.num_inference_steps is {self.few_steps.num_inference_steps}; a path moves in the "
                "student's steps, so they must be equal"
            )
