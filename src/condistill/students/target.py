"""Choose a width or a depth: the largest student within shares of its teacher's parameters, MACs or latency."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from diffusers import ModelMixin

from condistill.config.sections import StudentSettings, TargetSettings
from condistill.errors import CondistillError
from condistill.profiling.macs import macs
from condistill.students.depth import layer_lists
from condistill.students.derive import derive_student, student_shapes
from condistill.teachers.registry import family_of
from condistill.utils.format import significant
from condistill.utils.meta import build_on_meta, parameters, plain_config

STEPS = 64
"""How many widths are tried: 1/64 of the teacher's channels, 2/64, ..."""


def meet_target(
    teacher: ModelMixin,
    settings: StudentSettings,
    *,
    size: tuple[int, int],
    text_length: int,
    sec_per_forward: Callable[[ModelMixin], float] | None = None,
) -> StudentSettings:
    """Return the settings with a width (of a U-Net) or a depth (of a transformer) in place of their target.

    Args:
        teacher: on any device; only its shapes are read.
        size: (h, w) of the latents.
        text_length: tokens of the prompt.
        sec_per_forward: times a denoiser that is given on the meta device; without it, a target of latency is a target
            of MACs.

    Raises:
        CondistillError: no student meets the target, or `importance` is set and the target is met by depth.
    """
    if settings.target is None:
        return settings
    if settings.importance != "weight_norm" and not family_of(teacher).can_cut_width:
        raise CondistillError(
            f"student.importance {settings.importance!r} chooses the channels of a width, and the target of a "
            f"{type(teacher).__name__} is met by depth; leave it out"
        )
    shapes = build_on_meta(type(teacher), plain_config(teacher))
    costs = _Costs(shapes, settings.target, size, text_length, sec_per_forward)
    candidates = list(_candidates(shapes, settings))
    first = bisect_left(candidates, True, key=lambda candidate: costs.fit(student_shapes(shapes, candidate)))
    for candidate in candidates[first:]:  # from the largest that fits to the smallest
        if _can_be_derived(shapes, candidate):
            return candidate
    target = ", ".join(f"{name} {share:g}" for name, share in costs.target.items())
    smallest = costs.shares(student_shapes(shapes, candidates[-1])) if candidates else {}
    least = ", ".join(f"{name} {significant(share)}" for name, share in smallest.items())
    raise CondistillError(
        f"no student that can be derived from this teacher meets student.target ({target}); the smallest shape has "
        f"{least}"
    )


def _can_be_derived(teacher: ModelMixin, settings: StudentSettings) -> bool:
    """Return whether the teacher's weights can be cut to these settings."""
    try:
        derive_student(teacher, settings, may_be_as_large=True)
    except CondistillError:
        return False
    return True


def _candidates(teacher: ModelMixin, settings: StudentSettings) -> Iterator[StudentSettings]:
    """Yield the settings with every width or depth in place of the target, from the largest student to the smallest."""
    settings = settings.model_copy(update={"target": None})
    if not family_of(teacher).can_cut_width:
        layers = max(layer_lists(teacher).values())
        yield from (settings.model_copy(update={"depth": count / layers}) for count in range(layers - 1, 0, -1))
        return
    seen: set[tuple[int, ...]] = set()
    groups = teacher.config.norm_num_groups or 1
    for step in range(STEPS, 0, -1):
        widths = _widths(teacher.config.block_out_channels, step, groups)
        if widths not in seen:
            seen.add(widths)
            yield settings.model_copy(update={"width": widths})


def _widths(channels: Sequence[int], step: int, groups: int) -> tuple[int, ...]:
    """Return `step / STEPS` of the channels of every stage, rounded down to whole groups."""
    return tuple(max(count * step // STEPS // groups, 1) * groups for count in channels)


class _Costs:
    """The costs of students, as shares of their teacher's."""

    def __init__(
        self,
        teacher: ModelMixin,
        target: TargetSettings,
        size: tuple[int, int],
        text_length: int,
        sec_per_forward: Callable[[ModelMixin], float] | None,
    ) -> None:
        self.target: dict[str, float] = target.model_dump(exclude_none=True)
        self._size, self._text_length, self._sec_per_forward = size, text_length, sec_per_forward
        self._teacher = self._measure(teacher)

    def _measure(self, denoiser: ModelMixin) -> dict[str, float]:
        def forward_macs(_: ModelMixin) -> float:
            return macs(denoiser, size=self._size, text_length=self._text_length)

        measures = {"params": parameters, "macs": forward_macs, "latency": self._sec_per_forward or forward_macs}
        return {name: measures[name](denoiser) for name in self.target}

    def shares(self, denoiser: ModelMixin) -> dict[str, float]:
        return {name: cost / self._teacher[name] for name, cost in self._measure(denoiser).items()}

    def fit(self, denoiser: ModelMixin) -> bool:
        """Return whether a student costs no more than the target."""
        return all(share <= self.target[name] for name, share in self.shares(denoiser).items())
