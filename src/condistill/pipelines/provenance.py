"""What a model card says about where a student comes from, what it cost, and where it loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from condistill.config.sections import TeacherSettings
from condistill.pipelines.licences import Licence
from condistill.pipelines.lineage import Lineage, denoiser_hashes, teacher_name
from condistill.utils.format import byte_size, duration, percent
from condistill.utils.markdown import escape, table


@dataclass(frozen=True)
class PromptFacts:
    """The prompts of a run."""

    files: Mapping[str, str | None]
    """SHA-256 of every file by its name without folders; None for the captions of the miniature."""
    pool: int
    unseen: int
    """Prompts of the pool that are never cached."""
    cached: int


@dataclass(frozen=True)
class TrainingFacts:
    """What making a student cost."""

    steps: int
    batch_size: int
    seconds: float | None
    """None where the time is not known."""
    devices: tuple[str, ...]
    """On which it was trained; empty where they are not known."""
    cached: int
    """Latents that its teacher generated."""
    cache_steps: int


@dataclass(frozen=True)
class CardFacts:
    """What the records of a run say about a student."""

    lineage: Lineage
    prompts: PromptFacts
    training: TrainingFacts


@dataclass(frozen=True)
class Program:
    """Whether a program loads a student once it is exported."""

    name: str
    loads: bool
    reason: str
    """Why not; or how it is exported."""
    source: str
    """Where the facts are from, and of when."""


@dataclass(frozen=True)
class ExportedFiles:
    """An export that exists, or a format that the student can be exported to."""

    title: str
    how_to_load: str
    """Markdown."""
    folder: str | None = None
    """Name of the folder of an export that exists."""
    files: Mapping[str, int] | None = None
    """Its files and their bytes."""


@dataclass(frozen=True)
class Delivery:
    """Where a student loads, and how."""

    programs: tuple[Program, ...] = ()
    """Programs whose loaders have limits on shapes."""
    formats: tuple[ExportedFiles, ...] = ()
    """Formats that it can be exported to, those that were exported with their files."""


def lineage_section(teacher: TeacherSettings, lineage: Lineage, pipeline_class: str) -> str:
    """Return where the weights come from: the teacher, its version, and what was added to it."""
    name = escape(teacher_name(teacher.pipeline))
    if lineage.hub:
        name = f"[{name}](https://huggingface.co/{lineage.hub})"
    lines = [f"- Teacher: {name}"]
    if lineage.commit:
        lines.append(f"- Commit of the teacher: `{lineage.commit}`")
    if lineage.base:
        lines.append(
            f"- The teacher's own card names its base model: "
            f"[{escape(lineage.base)}](https://huggingface.co/{lineage.base})"
        )
    for file, sha256 in denoiser_hashes(lineage, pipeline_class).items():
        lines.append(f"- SHA-256 of the teacher's {escape(file)}: `{sha256}`")
    return "## Lineage\n\n" + "\n".join(lines)


def licence_section(teacher: TeacherSettings, lineage: Lineage | None) -> str:
    """Return the limits of the student, and what is known of the licence of its teacher."""
    lines = ["## Limits and licence", "The student can generate at most what its teacher can, and has its biases."]
    licence = lineage.licence if lineage else None
    if licence is None or not licence.source:
        lines.append(
            "The licence of the teacher is unknown: no file of the teacher that could be read names it. The terms of "
            "the teacher's weights apply to these weights; find them before you pass the student on."
        )
    else:
        title = f"[{escape(licence.title)}]({licence.url})" if _is_link(licence.url) else escape(licence.title)
        lines.append(
            f"The terms of the teacher's weights apply to these weights: {title} (named by {escape(licence.source)})."
        )
        unread = "What it demands of a distilled model was not read; read it before you pass the student on."
        lines.append(licence.known.obligations if licence.known else unread)
    if lineage and lineage.licence_files:
        lines.append(f"Its text is in {', '.join(map(escape, lineage.licence_files))}.")
    if parts := _added_parts(teacher):
        lines.append(f"{parts}: their licences were not read, and apply too.")
    return lines[0] + "\n\n" + " ".join(lines[1:])


def _is_link(url: str | None) -> bool:
    """Return whether a link can be put into Markdown as it is: of the web, or of a file of the same folder."""
    return url is not None and not set(url) & set(" ()<>\"'`\\") and (url.startswith("https://") or ":" not in url)


def _added_parts(teacher: TeacherSettings) -> str:
    count = len(teacher.loras)
    parts = [f"{count} LoRA" if count == 1 else f"{count} LoRAs"] if count else []
    parts += ["another autoencoder"] if teacher.vae else []
    return f"The teacher has {' and '.join(parts)} of other origin" if parts else ""


def prompts_section(prompts: PromptFacts) -> str:
    """Return where the prompts come from, and how many were seen and never seen."""
    rows = [[escape(name), f"`{sha256}`" if sha256 else "part of condistill"] for name, sha256 in prompts.files.items()]
    seen = f"the teacher generated latents for {prompts.cached:,} of them"
    if prompts.unseen:
        share = percent(prompts.unseen / prompts.pool)
        seen = f"{prompts.unseen:,} ({share}) were held out, and {seen.replace('of them', 'of the others')}"
    head = f"{prompts.pool:,} prompts without images: {seen}."
    return "\n\n".join(["## Prompts", head, table(["file", "SHA-256"], rows)])


def cost_section(training: TrainingFacts) -> str:
    """Return what making the student cost."""
    devices = f" on {escape(' and '.join(training.devices))}" if training.devices else ""
    time = f", in {duration(training.seconds)}{devices}" if training.seconds else devices
    samples = training.steps * training.batch_size
    lines = [
        f"- Training: {training.steps:,} steps of {training.batch_size:,} samples ({samples:,} samples){time}",
        f"- Cache: {training.cached:,} latents of the teacher, {training.cache_steps:,} steps each"
        if training.cached
        else "- Cache: none",
    ]
    return "## Cost\n\n" + "\n".join(lines)


def delivery_section(delivery: Delivery) -> str:
    """Return where the student loads, with reasons, and how it is loaded in each format."""
    loading = ["diffusers", *(each.name for each in delivery.programs if each.loads)]
    lines = [f"- Loads in: {', '.join(map(escape, loading))}"]
    lines += [f"- Not in {escape(each.name)}: {escape(each.reason)}" for each in delivery.programs if not each.loads]
    if delivery.programs:
        sources = "; ".join(f"{escape(each.name)}: {escape(each.source)}" for each in delivery.programs)
        lines.append(f"- By their sources: {sources}")
    parts = ["## Where it loads", "\n".join(lines), *map(_format, delivery.formats)]
    return "\n\n".join(parts)


def _format(exported: ExportedFiles) -> str:
    lines = [f"### {escape(exported.title)}"]
    if exported.files is not None:
        files = ", ".join(f"{escape(name)} ({byte_size(size)})" for name, size in exported.files.items())
        lines.append(f"Exported: {escape(exported.folder or '')}: {files}.")
    return "\n\n".join([*lines, exported.how_to_load.strip()])


def front_matter_fields(
    teacher: str | None, lineage: Lineage | None, *, task: str, tags: Sequence[str], is_usable: bool
) -> dict[str, object]:
    """Return the metadata of a card for the hub.

    Args:
        teacher: hub name of the teacher.
        task: of the pipeline, as the hub's `pipeline_tag`.
        tags: further tags.
        is_usable: whether the hub may offer to generate images with the student.
    """
    licence = (lineage.licence if lineage else Licence()).metadata()
    fields: dict[str, object] = {
        "library_name": "diffusers",
        "pipeline_tag": task,
        **licence,
        "tags": ["condistill", "distillation", "compression", *tags, "diffusers"],
        "inference": is_usable,
    }
    if base := teacher or (lineage.base if lineage else None):
        fields |= {"base_model": base, "base_model_relation": "finetune"}
    return fields
