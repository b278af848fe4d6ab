"""Where students load, before they are trained: the exporters' checks of the pipelines that they will be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from diffusers import ModelMixin

from condistill.config.recipe import Recipe
from condistill.export import LoadsIn, Shape, loads_in
from condistill.pipelines.sampling import Sampling, planned_sampling
from condistill.plan.record import LoadingPlan
from condistill.teachers.skeleton import Skeleton
from condistill.utils.meta import plain_config


def student_shape(skeleton: Skeleton, denoiser: ModelMixin, sampling: Sampling) -> Shape:
    """Return what exporters check of the pipeline that a student will be, without tokenizers."""
    family, pipeline = skeleton.family, skeleton.family.pipeline
    parts: dict[str, Any] = {**pipeline.components, family.denoiser_name: denoiser}
    parts["scheduler"] = sampling.scheduler(family) or parts.get("scheduler")
    configs = {name: config for name, part in parts.items() if (config := _config(part)) is not None}
    return Shape(
        type(pipeline).__name__,
        type(denoiser).__name__,
        configs[family.denoiser_name],
        _config(skeleton.denoiser),
        configs,
        {name: (type(parts[name]).__module__.partition(".")[0], type(parts[name]).__name__) for name in configs},
        json.loads(sampling.to_json()),
    )


def _config(part: Any) -> Mapping[str, Any] | None:
    """Return the config of a model or a scheduler as its file has it; None for anything else."""
    config = getattr(part, "config", None)
    if config is None:
        return None
    if hasattr(config, "to_dict"):  # of transformers
        found: dict[str, Any] = config.to_dict()
        return found
    return {"_class_name": type(part).__name__, **plain_config(part)}


def student_loading(recipe: Recipe, skeleton: Skeleton, denoiser: ModelMixin, name: str | None) -> tuple[LoadsIn, ...]:
    """Return where a student will load.

    Args:
        name: the variant of the recipe; None: a student that the recipe does not have.
    """
    return loads_in(student_shape(skeleton, denoiser, planned_sampling(recipe, name)))


def lines_by_student(students: Mapping[str, Iterable[LoadingPlan | LoadsIn]]) -> list[str]:
    """Return lines for the user: the programs that load each student, why others do not, and how that is known.

    Args:
        students: what is known of every student, by its name.
    """
    known = {name: list(found) for name, found in students.items()}
    loading: dict[str, list[str]] = {}
    refused: dict[tuple[str, str], list[str]] = {}
    for name, found in known.items():
        programs = ", ".join(["diffusers", *(each.application for each in found if each.loads)])
        loading.setdefault(programs, []).append(name)
        for each in (each for each in found if not each.loads):
            refused.setdefault((each.application, each.reason), []).append(name)
    lines = [f"- {', '.join(names)}: {programs}" for programs, names in loading.items()]
    lines += [f"- not {program}: {', '.join(names)}: {reason}" for (program, reason), names in refused.items()]
    sources = {each.application: each.source for found in known.values() for each in found}
    if sources:
        lines.append(f"- by their sources: {'; '.join(f'{name}: {source}' for name, source in sources.items())}")
    return lines
