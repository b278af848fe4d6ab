"""The model card: a README.md for the hub that names no folder of the machine it was made on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from condistill.config.recipe import SPLITS, TEACHER, Recipe
from condistill.config.sections import MINIATURE
from condistill.errors import CondistillError, nearest
from condistill.evaluate.record import look, models, splits
from condistill.pipelines.sampling import planned_sampling
from condistill.report.verdict import BASELINE, PROMPTS
from condistill.teachers.registry import family_of_pipeline
from condistill.utils.format import BYTE_UNITS, SI_UNITS, percent, quantity, significant

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|<>&~$-])")
_SCORES = {"all_correct": "All right", "frechet_classifier": "Fréchet distance", "latent_rmse": "Latent RMSE"}
_EXAMPLE = {MINIATURE: "a large red star at the left on snow"}


def escape(text: str) -> str:
    """Text as Markdown that shows it and does nothing else: one line, no markup, no HTML, no table cells."""
    return _MARKDOWN.sub(r"\\\1", " ".join(str(text).split()))


def hub_name(pipeline: str) -> str | None:
    """The teacher's name on the hub; None for the miniature and for a folder."""
    on_hub = _HUB_NAME.fullmatch(pipeline) and pipeline != MINIATURE and not Path(pipeline).exists()
    return pipeline if on_hub else None


def teacher_name(pipeline: str) -> str:
    """What a teacher is called in public: its hub name, or the last part of its folder."""
    if pipeline == MINIATURE:
        return "the miniature of condistill"
    return hub_name(pipeline) or PureWindowsPath(pipeline).name or "a local pipeline"


def model_card(
    *,
    name: str,
    recipe: Recipe,
    kept: Sequence[str],
    sizes: Mapping[str, Mapping[str, int]],
    metrics: Mapping[str, Any] | None,
    pipeline_class: str,
    absent: Sequence[str] = (),
) -> str:
    """README.md of a student.

    Args:
        name: the variant of the recipe.
        kept: lines on what was kept of the teacher.
        sizes: of `teacher` and `student`: `parameters`, `macs` and, where known, `bytes`.
        absent: parts that pipelines of the class may have and this one has not, which its loader must be told.

    Raises:
        CondistillError: the recipe has no variant of this name.
    """
    if name not in recipe.variants:
        raise CondistillError(f"the recipe has no student {name!r}{nearest(name, recipe.variants)}")
    teacher = teacher_name(recipe.teacher.pipeline)
    parts = [
        _front_matter(recipe),
        f"# {escape(name)}, distilled from {escape(teacher)}",
        f"A cheaper `{pipeline_class}` that was taught to draw what {escape(teacher)} draws. "
        "No training image was used: "
        + ("the teacher drew latents for some prompts, and " if recipe.cache.size else "")
        + "the student learnt from its teacher's own predictions.",
        _size_section(sizes),
        _kept_section(kept),
        _score_section(name, metrics),
        _loading(name, recipe, pipeline_class, absent),
        _settings_section(name, recipe),
        "## Limits and licence\n\n"
        "The student can draw at most what its teacher can, and has its teacher's biases. "
        "It inherits the teacher's licence: what holds for the teacher's weights holds for these.",
        f"Made with condistill {metadata.version('condistill')}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(recipe: Recipe) -> str:
    held: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": "other",
        "tags": ["condistill", "distillation", "compression", "text-to-image", "diffusers"],
    }
    if base := hub_name(recipe.teacher.pipeline):
        held["base_model"] = base
    return f"---\n{yaml.safe_dump(held, sort_keys=False, allow_unicode=True)}---"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _size_section(sizes: Mapping[str, Mapping[str, int]]) -> str:
    units = {
        "parameters": ("Parameters of the denoiser", ("", " K", " M", " B", " T")),
        "macs": ("Multiply-accumulates per denoising step", SI_UNITS),
        "bytes": ("Weights on disk", BYTE_UNITS),
    }
    rows = []
    for key, (label, unit) in units.items():
        teacher, student = look(sizes, TEACHER, key), look(sizes, "student", key)
        if teacher and student is not None:
            rows.append([label, quantity(teacher, unit), quantity(student, unit), percent(student / teacher)])
    return "## Size\n\n" + _table(["", "teacher", "student", "share"], rows) if rows else ""


def _kept_section(kept: Sequence[str]) -> str:
    return "## What was kept of the teacher\n\n" + "\n".join(f"- {escape(line)}" for line in kept) if kept else ""


def _score_section(name: str, metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return ""
    shown = {TEACHER: "teacher", BASELINE: "plain distillation", name: "this student"}
    columns = [model for model in (TEACHER, *dict.fromkeys((BASELINE, name))) if model in models(metrics)]
    rows = []
    for split in [split for split in SPLITS if split in splits(metrics)]:
        for key, label in _SCORES.items():
            values = [look(metrics, "models", model, split, key) for model in columns]
            write = percent if key == "all_correct" else significant
            if any(value is not None for value in values):
                cells = ["–" if value is None else write(value) for value in values]
                rows.append([f"{label}, {'all prompts' if split == 'all' else PROMPTS[split]}", *cells])
    if not rows:
        return ""
    images = look(metrics, "images_per_split", "all") or look(metrics, "images_per_split", "seen")
    notes = ["A latent RMSE is the distance to the teacher's latents from the same noise."]
    notes += [f"Measured on {images:.0f} images in all."] if images else []
    if metrics.get("classifier") == "miniature":
        notes.insert(0, "Miniature figures, given by a small classifier of drawn scenes: not FID on MS-COCO.")
    return "## Scores\n\n" + _table(["", *[shown[model] for model in columns]], rows) + "\n\n" + " ".join(notes)


def _loading(name: str, recipe: Recipe, pipeline_class: str, absent: Sequence[str]) -> str:
    how = planned_sampling(recipe, name)
    prompt = json.dumps(_EXAMPLE.get(recipe.teacher.pipeline, "a lighthouse at dusk, oil painting"))
    example = family_of_pipeline(pipeline_class).call_example
    arguments = example.arguments.format(prompt=prompt)
    if how.resolution is not None and example.takes_size:
        arguments += f", height={how.resolution}, width={how.resolution}"
    arguments += f", num_inference_steps={how.num_inference_steps}, guidance_scale={how.guidance_scale}"
    without = "".join(f", {part}=None" for part in absent)
    return f"""## How to load it

```python
from diffusers import DiffusionPipeline
{example.imports}
pipeline = DiffusionPipeline.from_pretrained("path/to/{name}"{without})
image = pipeline({arguments}).images[0]
```

It is an ordinary diffusers pipeline; condistill is not needed to use it."""


def _settings_section(name: str, recipe: Recipe) -> str:
    student, distill = recipe.variant(name)
    dumped = {
        "teacher": {"pipeline": teacher_name(recipe.teacher.pipeline), "revision": recipe.teacher.revision},
        "cache": recipe.cache.model_dump(mode="json", include={"size", "num_inference_steps", "guidance_scale"}),
        "student": student.model_dump(mode="json", by_alias=True),
        "distill": distill.model_dump(mode="json", by_alias=True, exclude={"logging": {"tracker", "log_every"}}),
        "prompts": {
            "files": [PureWindowsPath(file).name for file in recipe.prompts.files],
            "unseen_words": list(recipe.prompts.unseen_words),
        },
    }
    rows = [["seed", str(recipe.seed)]]
    for group, settings in dumped.items():
        rows += [[escape(f"{group}.{key}"), escape(_written(value))] for key, value in settings.items() if value != []]
    return "## Settings\n\n" + _table(["setting", "value"], [row for row in rows if row[1] != "none given"])


def _written(value: Any) -> str:
    if value is None:
        return "none given"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_written(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        shown = ", ".join(_written(item) for item in value[:12])
        return f"{shown} and {len(value) - 12} more" if len(value) > 12 else shown
    return str(value).lower() if isinstance(value, bool) else str(value)
