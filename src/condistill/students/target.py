"""In place of a width or a depth: the largest student within shares of its teacher's size, work or time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from condistill.config.sections import StudentSettings, TargetSettings
from condistill.errors import CondistillError
from condistill.profiling.macs import macs
from condistill.profiling.timing import forward_timer
from condistill.students.depth import layer_lists
from condistill.students.derive import student_of, student_shapes
from condistill.students.scores.calibration import kept
from condistill.teachers.family import Family
from condistill.teachers.registry import family_of
from condistill.utils.meta import build_on_meta, parameters, plain_config

CHOICE_NAME = "student_settings.json"
STEPS = 64
"""Into how many widths a teacher is cut."""


def settle(
    teacher: ModelMixin,
    settings: StudentSettings,
    *,
    size: tuple[int, int],
    text_length: int,
    sec_per_forward: Callable[[ModelMixin], float] | None = None,
) -> StudentSettings:
    """The settings with a width (of a U-Net) or a depth (of a transformer) in place of their target.

    Args:
        teacher: on any device; only its shapes are looked at.
        size: (h, w) of the latents.
        text_length: tokens of the prompt.
        sec_per_forward: times a denoiser that is given on the meta device; without it, a share of latency is taken for
            one of multiply-accumulates.

    Raises:
        CondistillError: no student costs so little, or an importance is given where there is no width.
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
    candidates = [settings.model_copy(update={"target": None, **change}) for change in _changes(shapes)]
    fitting = bisect_left(candidates, True, key=lambda candidate: costs.fit(student_shapes(shapes, candidate)))
    for candidate in candidates[fitting:]:  # they become smaller: the first that fits is the largest
        if _can_be_made(shapes, candidate):
            return candidate
    wanted = ", ".join(f"{name} {share:g}" for name, share in costs.wanted.items())
    smallest = costs.shares(student_shapes(shapes, candidates[-1])) if candidates else {}
    least = ", ".join(f"{name} {share:.3f}" for name, share in smallest.items())
    raise CondistillError(
        f"no student that can be made of this teacher is within student.target ({wanted}); the smallest shape has "
        f"{least}"
    )


def _can_be_made(teacher: ModelMixin, settings: StudentSettings) -> bool:
    """Whether the teacher's weights can be cut to these settings."""
    try:
        student_of(teacher, settings, may_be_as_large=True)
    except CondistillError:
        return False
    return True


def _changes(teacher: ModelMixin) -> Iterator[dict[str, Any]]:
    """What is set in place of the target, from the largest student to the smallest."""
    if not family_of(teacher).can_cut_width:
        layers = max(layer_lists(teacher).values())
        yield from ({"depth": count / layers} for count in range(layers - 1, 0, -1))
        return
    seen: set[tuple[int, ...]] = set()
    groups = teacher.config.norm_num_groups or 1
    for step in range(STEPS, 0, -1):
        widths = _widths(teacher.config.block_out_channels, step, groups)
        if widths not in seen:
            seen.add(widths)
            yield {"width": widths}


def _widths(channels: Sequence[int], step: int, groups: int) -> tuple[int, ...]:
    """So many parts of the channels of every stage, in whole groups."""
    return tuple(max(count * step // STEPS // groups, 1) * groups for count in channels)


class _Costs:
    """What a student costs, as shares of its teacher."""

    def __init__(
        self,
        teacher: ModelMixin,
        target: TargetSettings,
        size: tuple[int, int],
        text_length: int,
        sec_per_forward: Callable[[ModelMixin], float] | None,
    ) -> None:
        self.wanted: dict[str, float] = target.model_dump(exclude_none=True)
        self._size, self._text_length, self._sec_per_forward = size, text_length, sec_per_forward
        self._teacher = self._measure(teacher)

    def _measure(self, denoiser: ModelMixin) -> dict[str, float]:
        def work(_: ModelMixin) -> float:
            return macs(denoiser, size=self._size, text_length=self._text_length)

        measures = {"params": parameters, "macs": work, "latency": self._sec_per_forward or work}
        return {name: measures[name](denoiser) for name in self.wanted}

    def shares(self, denoiser: ModelMixin) -> dict[str, float]:
        return {name: cost / self._teacher[name] for name, cost in self._measure(denoiser).items()}

    def fit(self, denoiser: ModelMixin) -> bool:
        """Whether a student costs no more than is wanted."""
        return all(share <= self.wanted[name] for name, share in self.shares(denoiser).items())


def settled(family: Family, settings: StudentSettings, directory: Path, accelerator: Any) -> StudentSettings:
    """`settle` for a run: what was chosen is kept in `directory`, so that a run that goes on makes the same student.

    Raises:
        CondistillError: no student costs so little.
        CorruptError: the file is not what was written.
    """
    if settings.target is None:
        return settings
    timed = settings.target.latency is not None

    def choose(file: Path) -> None:
        timer = forward_timer(family) if timed else None
        size, text_length = family.latent_shape[1:], family.text_length
        chosen = settle(family.denoiser, settings, size=size, text_length=text_length, sec_per_forward=timer)
        file.write_text(chosen.model_dump_json() + "\n", encoding="utf-8")

    def read(file: Path) -> StudentSettings:
        return StudentSettings.model_validate_json(file.read_text(encoding="utf-8"))

    return kept(directory / CHOICE_NAME, accelerator, choose, read, how="chosen")
