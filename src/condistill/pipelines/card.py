"""The model card: a README.md for the hub. It names no folder of the machine that made it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import PureWindowsPath
from typing import Any

import yaml

from condistill.config.recipe import QUICK_LABEL, Recipe
from condistill.config.sections import MINIATURE, TeacherSettings
from condistill.errors import CondistillError, nearest
from condistill.pipelines.lineage import Lineage, hub_name, teacher_name
from condistill.pipelines.provenance import (
    CardFacts,
    Delivery,
    cost_section,
    delivery_section,
    front_matter_fields,
    licence_section,
    lineage_section,
    prompts_section,
)
from condistill.pipelines.record import StudentRecord
from condistill.pipelines.sampling import planned_sampling
from condistill.teachers.files import PipelineFiles
from condistill.teachers.registry import family_of_pipeline
from condistill.utils.format import byte_size, percent, quantity, si_quantity
from condistill.utils.markdown import escape, table
from condistill.utils.text import printable

_OPTIONAL = ("text_encoder", "tokenizer")
_EXAMPLE_LABEL = "golden retriever"
_EXAMPLE = {MINIATURE: "a large red star at the left on snow"}


@dataclass(frozen=True)
class ScoreRow:
    """One metric on one split, with a formatted score for every column."""

    label: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class ScoreTable:
    """The formatted scores of a student and of the models it is compared with."""

    columns: tuple[str, ...]
    rows: tuple[ScoreRow, ...]
    notes: tuple[str, ...]
    """Sentences on how the scores are to be read."""


@dataclass(frozen=True)
class PipelineParts:
    """What a model card says about the diffusers pipeline of teacher and student."""

    class_name: str
    absent: tuple[str, ...] = ()
    """Components that pipelines of this class may have and this one does not; loading it needs them set to None."""
    dtype: str = "float32"
    """The dtype of the denoiser's weights on disk; transformers loads the other models in the dtype of their own files
    unless the call names one, and models of different dtypes do not work together."""
    label: str | None = None
    """A label of a pipeline that is conditioned on classes; None: it takes prompts."""

    @classmethod
    def of(cls, pipeline: PipelineFiles, *, dtype: str | None = None) -> PipelineParts:
        """Read the index of a student's pipeline, or of its teacher's, which its students share.

        Args:
            dtype: of the student's weights; None: that of the denoiser of the pipeline.
        """
        optional = {name: part for name, part in pipeline.index.items() if name.startswith(_OPTIONAL)}
        class_name = pipeline.index["_class_name"]
        return cls(
            class_name,
            tuple(name for name, part in optional.items() if part and part[0] is None),
            dtype or pipeline.dtype(family_of_pipeline(class_name).denoiser_name),
            _label(pipeline.index.get("id2label")),
        )


def _label(names: Any) -> str | None:
    """Return a label of a pipeline's classes for an example; None where it has none."""
    if not isinstance(names, Mapping) or not names:
        return None
    known = [name.strip() for each in names.values() for name in str(each).split(",")]
    return _EXAMPLE_LABEL if _EXAMPLE_LABEL in known else known[0]


def model_card(
    *,
    name: str,
    recipe: Recipe,
    student: StudentRecord,
    parts: PipelineParts,
    facts: CardFacts | None = None,
    scores: ScoreTable | None = None,
    on_disk: Mapping[str, tuple[int, int]] | None = None,
    delivery: Delivery | None = None,
) -> str:
    """Return the README.md of a student.

    Args:
        name: the variant of the recipe.
        facts: from the records of the run; None: they are not known.
        scores: None before the evaluation.
        on_disk: bytes of the teacher's and the student's files by label; None before the evaluation.
        delivery: where it loads besides diffusers; None before the report.

    Raises:
        CondistillError: the recipe has no variant of this name.
    """
    if name not in recipe.variants:
        raise CondistillError(f"the recipe has no student {name!r}{nearest(name, recipe.variants)}")
    teacher = escape(teacher_name(recipe.teacher.pipeline))
    latents = "the teacher generated latents for some prompts, and " if recipe.cache.size else ""
    sections = [
        _front_matter(recipe, parts, facts.lineage if facts else None),
        f"# {escape(name)}, distilled from {teacher}",
        f"**{QUICK_LABEL[:1].upper()}{QUICK_LABEL[1:]}.**" if recipe.quick else "",
        f"A smaller or faster `{parts.class_name}`, trained to generate the same images as {teacher}"
        f"{_teacher_changes(recipe.teacher)}. "
        f"No training image was used: {latents}the student learnt from its teacher's own predictions.",
        lineage_section(recipe.teacher, facts.lineage, parts.class_name) if facts else "",
        _size_section(student, on_disk or {}),
        "## Layers and channels kept from the teacher\n\n" + "\n".join(f"- {escape(line)}" for line in student.kept),
        _score_section(scores) if scores else "",
        _loading(name, recipe, parts),
        delivery_section(delivery) if delivery else "",
        prompts_section(facts.prompts) if facts else "",
        cost_section(facts.training) if facts else "",
        _settings_section(name, recipe),
        licence_section(recipe.teacher, facts.lineage if facts else None),
        f"Made with condistill {metadata.version('condistill')}.",
    ]
    return _signed(printable("\n\n".join(section for section in sections if section) + "\n"))


_SIGNATURE = re.compile(r"\n<!-- condistill ([0-9a-f]{16}) -->\n\Z")


def _signed(card: str) -> str:
    """Return a card with a comment by which an edited card differs from one that condistill wrote."""
    return f"{card}\n<!-- condistill {_digest(card)} -->\n"


def is_edited(card: str) -> bool:
    """Return whether a card is not as condistill wrote it."""
    found = _SIGNATURE.search(card)
    return found is None or found.group(1) != _digest(card[: found.start()])


def _digest(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()[:16]


def _teacher_changes(teacher: TeacherSettings) -> str:
    """Return what was added to the teacher or replaced in it, as the end of a sentence."""
    changes = [f"the LoRA {escape(PureWindowsPath(lora.path).name)} (scale {lora.scale:g})" for lora in teacher.loras]
    changes += ["another autoencoder"] if teacher.vae else []
    changes += ["another scheduler"] if teacher.scheduler else []
    if not changes:
        return ""
    *first, last = changes
    return f" with {', '.join(first)}{' and ' if first else ''}{last}"


def _front_matter(recipe: Recipe, parts: PipelineParts, lineage: Lineage | None) -> str:
    family = family_of_pipeline(parts.class_name)
    fields = front_matter_fields(
        hub_name(recipe.teacher.pipeline),
        lineage,
        task=family.hub_task,
        tags=tuple(dict.fromkeys((*family.hub_tags, family.hub_task))),
        is_usable=not recipe.quick,
    )
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _size_section(student: StudentRecord, on_disk: Mapping[str, tuple[int, int]]) -> str:
    teacher, of_student = student.teacher_size, student.student_size
    figures: list[tuple[str, Callable[[float], str], float, float]] = [
        ("Parameters of the denoiser", quantity, teacher.parameters, of_student.parameters),
        ("Multiply-accumulates per denoising step", si_quantity, teacher.macs, of_student.macs),
        *((label, byte_size, *sizes) for label, sizes in on_disk.items()),
    ]
    rows = [[label, write(before), write(after), percent(after / before)] for label, write, before, after in figures]
    return "## Size\n\n" + table(["", "teacher", "student", "share"], rows)


def _score_section(scores: ScoreTable) -> str:
    rows = [[row.label, *row.cells] for row in scores.rows]
    if not rows:
        return ""
    return "## Scores\n\n" + table(["", *scores.columns], rows) + "\n\n" + " ".join(scores.notes)


_WHERE = "Run the example in the folder that contains `{name}`, or give the pipeline's whole path. "


def _place(name: str) -> str:
    """Return the Python literal by which the loading example names the pipeline: a folder next to Python."""
    return json.dumps(f"./{name}")


def for_hub(card: str, name: str, repository: str) -> str:
    """Return a card whose example loads from a repository on the hub; a card without the example stays as it is.

    Args:
        name: of the pipeline.
    """
    card = card.replace(f"from_pretrained({_place(name)}", f"from_pretrained({json.dumps(repository)}")
    return card.replace(_WHERE.format(name=name), "")


def _loading(name: str, recipe: Recipe, parts: PipelineParts) -> str:
    sampling, family = planned_sampling(recipe, name), family_of_pipeline(parts.class_name)
    example = family.call_example
    prompt = parts.label or _EXAMPLE.get(recipe.teacher.pipeline, "a lighthouse at dusk, oil painting")
    arguments = example.arguments.format(prompt=json.dumps(prompt, ensure_ascii=False))
    if sampling.resolution is not None and example.takes_size:
        arguments += f", height={sampling.resolution}, width={sampling.resolution}"
    arguments += "".join(f", {key}={value!r}" for key, value in family.call_arguments.items())
    arguments += f", num_inference_steps={sampling.num_inference_steps}, guidance_scale={sampling.guidance_scale}"
    without = "".join(f", {part}=None" for part in parts.absent)
    return f"""## How to load it

```python
import torch
from diffusers import DiffusionPipeline
{example.imports}
pipeline = DiffusionPipeline.from_pretrained({_place(name)}, torch_dtype=torch.{parts.dtype}{without})
image = pipeline({arguments}).images[0]
```

It is an ordinary diffusers pipeline; condistill is not needed to use it. {_WHERE.format(name=name)}\
The denoiser's weights are {parts.dtype}; \
with another `torch_dtype`, every model of the pipeline is converted when it is loaded. On a GPU, call \
`pipeline.to("cuda")` first."""


def _settings_section(name: str, recipe: Recipe) -> str:
    student, distill = recipe.variant(name)
    dumped = {
        "teacher": _teacher_settings(recipe.teacher),
        "cache": recipe.cache.model_dump(mode="json", include={"size", "num_inference_steps", "guidance_scale"}),
        "student": student.model_dump(mode="json", by_alias=True),
        "distill": distill.model_dump(mode="json", by_alias=True, exclude={"logging": {"tracker", "log_every"}}),
        "prompts": {
            "files": [PureWindowsPath(file).name for file in recipe.prompts.files],
            "unseen_words": list(recipe.prompts.unseen_words),
        },
    }
    leaves = {"seed": recipe.seed, **_flat(dumped)}
    rows = [[escape(key), escape(_written(value))] for key, value in leaves.items() if value not in (None, [])]
    return "## Settings\n\n" + table(["setting", "value"], rows)


def _teacher_settings(teacher: TeacherSettings) -> dict[str, Any]:
    """Return the teacher's settings with the names of its files, without their folders."""
    parts = {"config": teacher.config, "vae": teacher.vae, "scheduler": teacher.scheduler}
    return {
        "pipeline": teacher_name(teacher.pipeline),
        "revision": teacher.revision,
        "variant": teacher.variant,
        "loras": [f"{PureWindowsPath(lora.path).name} (scale {lora.scale:g})" for lora in teacher.loras],
        **{name: None if path is None else PureWindowsPath(path).name for name, path in parts.items()},
    }


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in settings.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def _written(value: Any) -> str:
    """Return the value of a setting as text: short, in one line, with YAML's spelling of booleans."""
    if isinstance(value, list):
        shown = ", ".join(map(_written, value[:12]))
        return f"{shown} and {len(value) - 12} more" if len(value) > 12 else shown
    return str(value).lower() if isinstance(value, bool) else str(value)
