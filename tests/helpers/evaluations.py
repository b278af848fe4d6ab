"""Evaluations made by hand, for tests of everything that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from condistill.evaluate.metrics import Score
from condistill.evaluate.record import (
    Comparison,
    ComputeRecord,
    Evaluation,
    ModelRecord,
    ReferenceRecord,
    SamplingRecord,
    SizeRecord,
    SpeedRecord,
)

Scores = Mapping[str, Mapping[str, float | tuple[float, float] | Score]]
"""By split and metric, a value, a value with its spread, or a whole score."""


def build_model(scores: Scores, *, share: float = 0.27, train_sec: float | None = 12.5) -> ModelRecord:
    """Return the record of a model that costs this share of its teacher in every respect.

    Args:
        train_sec: None for a model that was not trained.
    """
    compute = None
    if train_sec is not None:
        compute = ComputeRecord(
            teacher_forwards=3200.0, student_forwards=1600.0, cache_forwards=0.0, train_sec=train_sec
        )
    on_disk = {"weight_bytes": int(27e6 * share), "pipeline_bytes": int(5e6 + 27e6 * share)}
    return ModelRecord(
        scores={split: {name: _score(score) for name, score in of_split.items()} for split, of_split in scores.items()},
        sampling=SamplingRecord(num_inference_steps=25, guidance_scale=3.0, denoiser_evaluations=50),
        size=SizeRecord(parameters=int(6978372 * share), macs=int(123e6 * share), **on_disk),
        speed=SpeedRecord(
            sec_per_image=0.2 * share,
            median_sec_per_image=0.21 * share,
            rounds=7,
            relative_time=share,
            peak_memory_bytes=int(7_500_000 * share),
        ),
        compute=compute,
    )


def _score(given: float | tuple[float, float] | Score) -> Score:
    if isinstance(given, Score):
        return given
    return Score(value=given[0], spread=given[1]) if isinstance(given, tuple) else Score(value=given)


def build_evaluation(scores: Mapping[str, Scores], **changes: Any) -> Evaluation:
    """Return the evaluation of a teacher, which needs no scores, and of the other models.

    A model with the name `plain` is the baseline.
    """
    scores = {"teacher": {}, **scores}
    models = {
        name: build_model(of_model, share=1.0, train_sec=None) if name == "teacher" else build_model(of_model)
        for name, of_model in scores.items()
    }
    fields: dict[str, Any] = {
        "classifier": "miniature",
        "baseline": "plain" if "plain" in scores else None,
        "seeds": (3,),
        "images_per_split": {"seen": 100, "unseen": 100, "all": 200},
        "num_inference_steps": 25,
        "guidance_scale": 3.0,
        "device": "a CPU, 2 threads",
        "dtype": "float32",
        "torch": "2.13.0",
        "models": models,
    }
    return Evaluation(**{**fields, **changes})


def build_references(split: str = "unseen", *, other_seed: float | None, **untrained: float) -> ReferenceRecord:
    """Return the distances of the references on one split: of the teacher from other noise, and by student."""

    def scores(value: float | None) -> dict[str, dict[str, Score]]:
        return {} if value is None else {split: {"latent_rmse": Score(value=value)}}

    return ReferenceRecord(
        images_per_split={split: 16, "all": 16},
        other_seed=scores(other_seed),
        untrained={name: scores(value) for name, value in untrained.items()},
    )


def build_comparison(
    metric: str, one: str, other: str, *, difference: float, half: float, split: str = "all", images: int = 200
) -> Comparison:
    """Return a difference of two models, `one` minus `other`, whose 95 % interval is `half` wide on both sides."""
    ends = {"low": difference - half, "high": difference + half}
    return Comparison(metric=metric, split=split, one=one, other=other, difference=difference, images=images, **ends)
