"""Forwards: how many an image, a training sample, a micro-batch and a whole training need.

Everything that compares methods at equal cost, plans a run or reports one counts with this module.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import ModelMixin

from condistill.config.distill import ConsistencySettings, DistillSettings, ProgressiveSettings
from condistill.config.sections import CacheSettings
from condistill.pipelines.sampling import Sampling
from condistill.teachers.registry import family_of


def evaluations_per_image(sampling: Sampling, denoiser: ModelMixin) -> int:
    """Return the denoiser evaluations (NFE) per image: classifier-free guidance needs two per step."""
    guided = sampling.guidance_scale > 1 and family_of(denoiser).guidance.mode(denoiser.config) == "cfg"
    return sampling.num_inference_steps * (2 if guided else 1)


@dataclass(frozen=True)
class SampleCost:
    """The forwards of each network for one training sample, and the prompts that are encoded for it.

    Numbers are means: over the samples of a batch, of which a share may be on paths, and over the training.
    """

    teacher: float
    student: float
    """Each with a backward. The second forward of consistency distillation and of paths that follow the student has
    none, and is counted as if it had."""
    prompts: int

    @classmethod
    def of(cls, settings: DistillSettings, *, teacher_takes_guidance: bool = False) -> SampleCost:
        """Return the cost of a sample.

        Args:
            teacher_takes_guidance: whether the guidance scale is an input of the teacher, whose guided prediction then
                needs one forward instead of two.
        """
        teacher, student = map(float, _conditions(settings, teacher_takes_guidance=teacher_takes_guidance))
        if isinstance(settings.few_steps, ProgressiveSettings):
            teacher *= settings.few_steps.teacher_steps
        elif isinstance(settings.few_steps, ConsistencySettings):
            student *= 2
        path = settings.path
        if path and path.guidance_scale != 1 and not settings.loss.guidance_weight:
            # each state on a path needs an unconditional prediction of the network that the path follows
            student_share = {"teacher": 0.0, "student": 1.0, "moving": 0.5}[path.follow]
            teacher += path.share * (1 - student_share)
            student += path.share * student_share
        return cls(teacher, student, _prompts(settings))

    @property
    def forwards(self) -> float:
        """Forwards of both networks together."""
        return self.teacher + self.student


@dataclass(frozen=True)
class MicroBatch:
    """How many samples of a micro-batch, and forwards of each network, are computed at once."""

    samples: int
    """Features are compared for one forward per sample: not for the unconditional ones."""
    teacher: int
    student: int

    @classmethod
    def of(cls, settings: DistillSettings, *, processes: int = 1, teacher_takes_guidance: bool = False) -> MicroBatch:
        """Return the micro-batch of one of several processes.

        Args:
            teacher_takes_guidance: see `SampleCost.of`.
        """
        samples = settings.micro_batch_size or -(-settings.batch_size // processes)
        teacher, student = _conditions(settings, teacher_takes_guidance=teacher_takes_guidance)
        return cls(samples, samples * teacher, samples * student)


@dataclass(frozen=True)
class TrainingForwards:
    """The forwards of a whole training."""

    teacher: float
    student: float
    cache: float
    """Forwards of the teacher that fill the cache; 0 where the training does not use it."""

    @classmethod
    def of(
        cls,
        settings: DistillSettings,
        cache: CacheSettings,
        *,
        evaluations_per_image: int,
        teacher_takes_guidance: bool = False,
    ) -> TrainingForwards:
        """Return the forwards of a training.

        Args:
            evaluations_per_image: denoiser evaluations of the teacher for one cached latent.
            teacher_takes_guidance: see `SampleCost.of`.
        """
        samples = settings.steps * settings.batch_size
        cost = SampleCost.of(settings, teacher_takes_guidance=teacher_takes_guidance)
        cached = float(cache.size * evaluations_per_image) if settings.uses_cache else 0.0
        return cls(samples * cost.teacher, samples * cost.student, cached)


def _conditions(settings: DistillSettings, *, teacher_takes_guidance: bool) -> tuple[int, int]:
    """Return how many conditions (teacher, student) predict for at each state of a sample.

    The guidance loss compares unconditional predictions too, and guidance distillation needs them of the teacher.
    """
    student = 2 if settings.loss.guidance_weight else 1
    guided = settings.guidance_distillation is not None and not teacher_takes_guidance
    return (2 * student if guided else student), student


def _prompts(settings: DistillSettings) -> int:
    """Return the prompts per sample: its own or the random one, the empty one, and the one it is blended with."""
    path = settings.path
    guided_path = path is not None and path.guidance_scale != 1
    guided = settings.loss.guidance_weight > 0 or settings.guidance_distillation is not None or guided_path
    choice = settings.conditioning.prompt_choice
    blended = choice is not None and choice.interpolate > 0
    return 1 + guided + blended
