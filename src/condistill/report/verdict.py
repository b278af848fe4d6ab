"""The figures in one honest sentence: computed, never chosen to please."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from condistill.config.recipe import TEACHER
from condistill.evaluate.record import look, ratio, splits, students
from condistill.utils.format import percent, significant

BASELINE = "plain"
SUBJECT = "random_conditioning"
PROMPTS = {"seen": "seen prompts", "unseen": "unseen prompts", "all": "prompts"}
_RIGHT = "all_correct"


def gap_closed(plain: float, student: float, teacher: float) -> float | None:
    """Share of the way from plain distillation to the teacher that a student goes; None where there is no gap.

    Below 0 the student is worse than plain, above 1 better than its teacher. Higher scores are better.
    """
    return None if teacher <= plain else (student - plain) / (teacher - plain)


def subject(metrics: Mapping[str, Any]) -> str | None:
    """The student the verdict is about: `random_conditioning`, or else the best one on the hardest split."""
    names = students(metrics)
    if SUBJECT in names or not names:
        return SUBJECT if names else None
    split = hardest_split(metrics)
    rest = [name for name in names if name != BASELINE] or names

    def rank(name: str) -> tuple[float, float]:
        right = look(metrics, "models", name, split, _RIGHT)
        rmse = look(metrics, "models", name, split, "latent_rmse")
        return (-math.inf if right is None else right, -math.inf if rmse is None else -rmse)

    return max(rest, key=rank)


def hardest_split(metrics: Mapping[str, Any]) -> str:
    """Unseen prompts where there are any, or else all."""
    found = splits(metrics)
    return next((split for split in ("unseen", "all", "seen") if split in found), "all")


def verdict(metrics: Mapping[str, Any]) -> tuple[str, str]:
    """One sentence on what came out, and a short second line (empty where there is nothing to add)."""
    name = subject(metrics)
    if name is None:
        return "No student has been measured yet.", ""
    split = hardest_split(metrics)
    if look(metrics, "models", name, split, _RIGHT) is None:
        return _unclassified(metrics, name, split), _second_line(metrics, name, "", classified=False)
    other = "seen" if split == "unseen" and "seen" in splits(metrics) else ""
    return _classified(metrics, name, split), _second_line(metrics, name, other, classified=True)


def _classified(metrics: Mapping[str, Any], name: str, split: str) -> str:
    student = look(metrics, "models", name, split, _RIGHT)
    teacher = look(metrics, "models", TEACHER, split, _RIGHT)
    plain = look(metrics, "models", BASELINE, split, _RIGHT) if name != BASELINE else None
    assert student is not None
    head = f"{name} draws {percent(student)} of {PROMPTS[split]} all right{_against(plain, teacher)}"
    parameters = ratio(metrics, name, "size", "parameters")
    size = "" if parameters is None else f", at {percent(parameters)} of the parameters"
    if plain is not None and abs(student - plain) <= _noise(metrics, split, name, BASELINE):
        return f"{head}: too close to plain to call{size}."
    if plain is not None and student < plain:
        head = head.replace(f"{name} draws", f"{name} does worse than plain: it draws", 1)
        return f"{head}{size}."
    outcome = _outcome(plain, student, teacher)
    return f"{head}: {outcome}{size}." if outcome else f"{head}{size}."


def _outcome(plain: float | None, student: float, teacher: float | None) -> str:
    if teacher is None:
        return ""
    if plain is None:
        if student > teacher:
            return "more than its teacher"
        return "as many as its teacher" if student == teacher else f"it keeps {percent(student / teacher)} of that"
    closed = gap_closed(plain, student, teacher)
    if closed is None:
        return "plain already reaches the teacher, so there was no gap to close"
    if closed > 1:
        return "it closes the whole gap and does better than its teacher"
    return f"it closes {percent(closed)} of the gap"


def _against(plain: float | None, teacher: float | None) -> str:
    others = [f"{percent(plain)} for {BASELINE}"] if plain is not None else []
    others += [f"{percent(teacher)} for the teacher"] if teacher is not None else []
    return f", against {' and '.join(others)}" if others else ""


def _noise(metrics: Mapping[str, Any], split: str, *names: str) -> float:
    """Two standard errors of a difference of shares: from the number of images, or from the spread if that is larger.

    The spread is over seeds of the evaluation, so the error of their mean is less by the root of their number.
    """
    shares = [look(metrics, "models", name, split, _RIGHT) or 0.0 for name in names]
    images = look(metrics, "images_per_split", split)
    sampling = math.sqrt(sum(p * (1 - p) for p in shares) / images) if images else 0.0
    spread = math.hypot(*(look(metrics, "models", n, "spread", split, _RIGHT) or 0.0 for n in names))
    seeds = len(metrics.get("seeds") or ()) or 1
    return 2 * max(sampling, spread / math.sqrt(seeds))


def _unclassified(metrics: Mapping[str, Any], name: str, split: str) -> str:
    parts = []
    parameters = ratio(metrics, name, "size", "parameters")
    if parameters is not None:
        parts.append(f"has {percent(parameters)} of the teacher's parameters")
    time = look(metrics, "models", name, "speed", "relative_time")
    if time is not None:
        parts.append(f"draws an image in {percent(time)} of its time" if parts else _in_time(time))
    told = f"{name} {' and '.join(parts)}" if parts else ""
    rmse = look(metrics, "models", name, split, "latent_rmse")
    if rmse is None:
        return f"{told}." if told else f"{name} has been distilled; nothing has been measured yet."
    where = "" if split == "all" else f" on {PROMPTS[split]}"
    sentence = f"latents are {significant(rmse)} (RMSE) away from the teacher's{where}"
    plain = look(metrics, "models", BASELINE, split, "latent_rmse") if name != BASELINE else None
    if plain is not None:
        sentence += f", against {significant(plain)} for {BASELINE}"
        sentence += ", which is nearer" if plain < rmse else ""
    return f"{told}; its {sentence}." if told else f"{name}'s {sentence}."


def _in_time(time: float) -> str:
    return f"draws an image in {percent(time)} of the teacher's time"


def _second_line(metrics: Mapping[str, Any], name: str, split: str, *, classified: bool) -> str:
    lines = []
    share = look(metrics, "models", name, split, _RIGHT) if split else None
    if share is not None:
        plain = look(metrics, "models", BASELINE, split, _RIGHT) if name != BASELINE else None
        teacher = look(metrics, "models", TEACHER, split, _RIGHT)
        lines.append(f"On {PROMPTS[split]}: {percent(share)}{_against(plain, teacher)}.")
    mine = look(metrics, "models", name, "speed", "sec_per_image")
    teachers = look(metrics, "models", TEACHER, "speed", "sec_per_image")
    if mine is not None and teachers is not None:
        lines.append(f"An image takes {significant(mine, 2)} s instead of {significant(teachers, 2)} s.")
    if not classified and any(look(metrics, "models", name, s, "latent_rmse") is not None for s in splits(metrics)):
        lines.append("No classifier looked at the images: the distance says how near the student stays to its teacher.")
    return " ".join(lines)
