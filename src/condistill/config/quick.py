"""A quick recipe: the same run with sizes that only test the set-up.

The teacher, its resolution, the prompts, the student, the losses and the kinds of training stay as they are; sizes
become so small that a teacher as large as Stable Diffusion 1.4 takes minutes on two CPU cores, where one evaluation of
its denoiser takes about six seconds. Few-step settings stay too, since a student may teach another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from condistill.config.recipe import Recipe
from condistill.config.sections import FEWEST_CLASSIFIED
from condistill.config.yaml_tree import flow, merge, split_change

CACHED = 2
"""Cached latents."""
SAMPLING_STEPS = 4
"""Of the cache, the evaluation and paths."""
TRAINING_STEPS = 3
BATCH_SIZE = 2
"""Samples per step and process."""


def quick_recipe(recipe: Recipe, *, processes: int = 1) -> Recipe:
    """Return a recipe whose run takes minutes, and whose `quick` is true. No size grows, except to divide evenly.

    Args:
        processes: processes that share a batch.
    """
    data = recipe.model_dump(by_alias=True)
    cache, evaluate = data["cache"], data["evaluate"]
    cache |= _at_most(cache, size=CACHED, num_inference_steps=SAMPLING_STEPS, batch_size=BATCH_SIZE)
    evaluate |= _at_most(evaluate, num_inference_steps=SAMPLING_STEPS, batch_size=BATCH_SIZE, grid=1)
    evaluate["seeds"] = evaluate["seeds"][:1]
    fewest = 1 if evaluate["classifier"] == "none" else FEWEST_CLASSIFIED
    evaluate |= _at_most(evaluate, prompts_per_split=fewest)
    data["distill"] |= _quick_training(data["distill"], processes)
    for name, variant in data["variants"].items():
        quick = _quick_training(recipe.variant(name)[1].model_dump(by_alias=True), processes)
        variant["distill"] = merge(variant["distill"], _difference(merge(data["distill"], variant["distill"]), quick))
    return Recipe.from_dict({**data, "quick": True}, source="the quick recipe")


def without_effect(overrides: Sequence[str], recipe: Recipe, quick: Recipe) -> Iterator[str]:
    """Yield a line for every override of a recipe, `key=value`, that its quick recipe replaced."""
    given, used = recipe.model_dump(by_alias=True), quick.model_dump(by_alias=True)
    for change in overrides:
        key, _ = split_change(change, "an override")
        before, after = _setting(given, key), _setting(used, key)
        if key != "quick" and before != after and after is not None:
            shown = flow(_difference(before, after) if isinstance(before, Mapping) else after)
            yield f"{change}: a quick run uses {shown} instead"


def _setting(data: Any, key: str) -> Any:
    """Return the setting with a dotted key, or nothing."""
    for part in key.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None
    return data


def _at_most(settings: Mapping[str, Any], **limits: int) -> dict[str, Any]:
    """Return settings that are numbers, each at most its limit; empty ones stay empty."""
    return {key: settings[key] and min(settings[key], limit) for key, limit in limits.items()}


def _quick_training(distill: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """Return the settings of a quick training; settings that are not sizes are left out."""
    path, few_steps = distill["path"], distill["few_steps"]
    batch = _batch_size(distill["batch_size"], path["share"] if path else 1.0, processes)
    quick: dict[str, Any] = {
        **_at_most(distill, steps=TRAINING_STEPS),
        "batch_size": batch,
        "micro_batch_size": distill["micro_batch_size"] and _divisor(batch // processes, distill["micro_batch_size"]),
        "optimizer": {**distill["optimizer"], **_at_most(distill["optimizer"], warmup_steps=1)},
        "logging": {**distill["logging"], "log_every": 1},
        "preview_every": distill["preview_every"] if distill["preview_every"] == 0 else TRAINING_STEPS,
    }
    if path:
        steps = path["num_inference_steps"] if few_steps else min(path["num_inference_steps"], SAMPLING_STEPS)
        sizes = {"num_inference_steps": steps, "buffer": 1, "steps": path["steps"] and min(path["steps"], steps)}
        quick["path"] = {**path, **sizes}
    return quick


def _batch_size(batch_size: int, share: float, processes: int) -> int:
    """Return the smallest batch of which `share` is a whole number of samples, from `BATCH_SIZE` per process on."""
    smallest = min(BATCH_SIZE * processes, batch_size)
    for size in range(smallest, batch_size, 1):
        if size % processes == 0 and abs(size * share - round(size * share)) < 1e-6 and round(size * share) >= 1:
            return size
    return batch_size


def _divisor(number: int, limit: int) -> int:
    """Return the largest divisor of a number that is at most `limit`."""
    return max(size for size in range(1, min(number, limit) + 1) if number % size == 0)


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `after` that are not the same in `before`, in nested mappings."""
    changed: dict[str, Any] = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if inner := _difference(old, value):
                changed[key] = inner
        elif old != value:
            changed[key] = value
    return changed
