"""What a training asks of the two networks, so that methods are compared at equal cost."""

from __future__ import annotations

from dataclasses import dataclass

from condistill.config.distill import ConsistencySettings, DistillSettings, ProgressiveSettings
from condistill.config.sections import CacheSettings


def forwards_per_step(settings: DistillSettings, *, teacher_takes_guidance: bool = False) -> tuple[float, float]:
    """Samples that pass forward through (teacher, student) in a step; the student's come with a backward.

    A guided path costs one forward more of the model that is followed, for every state on the path, unless the
    guidance loss has asked for the unconditional prediction already; folded guidance and progressive few steps ask
    the teacher more often, consistency the student once more. Of `follow: moving` it is the mean over the training.
    The student's extra forward has no backward, and is counted as if it had.

    Args:
        teacher_takes_guidance: the teacher takes the guidance scale as an input, and is asked once for what is guided.
    """
    teacher = student = float(settings.batch_size * (2 if settings.loss.guidance_weight else 1))
    if settings.guidance_distillation and not teacher_takes_guidance:
        teacher *= 2
    if isinstance(settings.few_steps, ProgressiveSettings):
        teacher *= settings.few_steps.teacher_steps
    elif isinstance(settings.few_steps, ConsistencySettings):
        student *= 2
    path = settings.path
    if path and path.guidance_scale != 1 and not settings.loss.guidance_weight:
        by_student = {"teacher": 0.0, "student": 1.0, "moving": 0.5}[path.follow]
        teacher += settings.batch_size * path.share * (1 - by_student)
        student += settings.batch_size * path.share * by_student
    return teacher, student


def compute(
    settings: DistillSettings,
    cache: CacheSettings,
    *,
    teacher_takes_guidance: bool = False,
    cache_is_guided: bool = True,
) -> dict[str, float]:
    """Samples that pass forward through the networks in a whole training.

    Beside the two of the loop, `cache_forwards`: of the teacher, to draw the latents the training uses, if it does.

    Args:
        teacher_takes_guidance: as `forwards_per_step` has it.
        cache_is_guided: guidance is not folded into what drew the cache, and asked it twice.
    """
    teacher, student = forwards_per_step(settings, teacher_takes_guidance=teacher_takes_guidance)
    per_image = cache.num_inference_steps * (2 if cache_is_guided and cache.guidance_scale > 1 else 1)
    return {
        "teacher_forwards": settings.steps * teacher,
        "student_forwards": settings.steps * student,
        "cache_forwards": float(cache.size * per_image) if settings.uses_cache else 0.0,
    }


@dataclass(frozen=True)
class Load:
    """How much a step asks of each network at once."""

    teacher_batch: int
    student_batch: int
    compared: int
    """Samples whose features are compared: the unguided half of a batch is not."""

    @classmethod
    def of(cls, settings: DistillSettings, *, processes: int, teacher_takes_guidance: bool) -> Load:
        """Of one forward of a micro-batch."""
        count = settings.micro_batch_size or -(-settings.batch_size // processes)
        doubled = count * (2 if settings.loss.guidance_weight else 1)
        guided = settings.guidance_distillation is not None and not teacher_takes_guidance
        return cls(doubled * 2 if guided else doubled, doubled, count)


def prompts_per_sample(settings: DistillSettings) -> int:
    """Prompts that are encoded for a sample: its own or a random one, the empty one, and what it is blended with."""
    guided = (
        settings.loss.guidance_weight
        or settings.guidance_distillation
        or (settings.path and settings.path.guidance_scale != 1)
    )
    choice = settings.conditioning.prompt_choice
    blended = choice is not None and choice.interpolate > 0
    return 1 + bool(guided) + blended
