"""Write LoRAs of a teacher as they apply to its student: read, re-index, measure, record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from condistill.cache.latents import LatentCache
from condistill.config.recipe import Recipe
from condistill.config.sections import LoraSettings, TeacherSettings
from condistill.errors import CondistillError
from condistill.export.held import check_same, held_record
from condistill.export.lora.effect import EffectInputs, measure_effects
from condistill.export.lora.file import check_layout, write_lora
from condistill.export.lora.layers import StudentLayers, student_layers, teacher_settings
from condistill.export.lora.record import LORA_RECORD_NAME, LoraEffect, LoraExportRecord, ReindexedLora
from condistill.export.lora.reindex import Reindexed, reindex
from condistill.export.source import Source
from condistill.run.directory import RECIPE_NAME
from condistill.teachers.lora import LoraLayer, read_lora
from condistill.teachers.skeleton import teacher_skeleton
from condistill.utils.atomic import atomic_directory, discard_partial
from condistill.utils.format import percent, significant
from condistill.utils.hashing import hash_file, key_of
from condistill.utils.meta import build_on_meta
from condistill.utils.quiet import quiet_libraries

OPTION = "--lora"


@quiet_libraries()
def export_loras(
    source: Source,
    files: Sequence[Path],
    *,
    layout: str = "diffusers",
    out: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write LoRAs of a student's teacher as they apply to the student, and return the directory of the files.

    The directory is written completely or not at all. One that holds these very LoRAs already is left as it is.

    Args:
        source: the student, of a run.
        files: safetensors files of LoRAs in the naming of diffusers, peft or kohya.
        layout: `diffusers`, or `kohya` for students with a U-Net.
        out: None: `exports/NAME-lora` in the run directory.
        say: called with lines for the user.

    Raises:
        CondistillError: the pipeline is no student of a run, a file is no LoRA of its teacher, or the directory holds
            something else.
    """
    if source.run is None:
        raise CondistillError(
            f"{OPTION} needs the run directory of a student, which says where its layers are from, and "
            f"{source.directory} is a pipeline; give the run directory, and the student with --student"
        )
    check_layout(layout, list(source.files.index))
    _check_names([file.name for file in files])
    directory = out or source.run / "exports" / f"{source.name}-lora"
    recipe = Recipe.load(source.run / RECIPE_NAME)
    layers = student_layers(source.run, source.name)
    loras = _read(source, layers, files)
    key = _key(source, files, layout)
    if _holds(directory, key):
        say(f"{directory} holds these LoRAs already")
        return directory
    discard_partial(directory)
    for line in cautions(recipe, source.name, files):
        say(f"warning: {line}")
    moved = {name: reindex(lora, layers.layer_map, source.denoiser_name) for name, lora in loras.items()}
    for name, found in moved.items():
        _check_left(name, loras[name], found, source)
    effects = _effects(source, recipe, loras, moved, say)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(directory) as partial:
        written = {}
        for file in files:
            name, target = file.name, partial / file.name
            write_lora(target, moved[name].layers, layout, components=list(source.files.index))
            written[name] = _written(file, target, len(loras[name]), moved[name], effects[name])
        record = LoraExportRecord(
            version=metadata.version("condistill"), student=source.name, layout=layout, key=key, files=written
        )
        record.write(partial / LORA_RECORD_NAME)
    for line in described(record):
        say(line)
    return directory


def _check_names(names: Sequence[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CondistillError(f"{OPTION}: two files are called {twice[0]}; rename one, or use one command for each")


def _written(file: Path, target: Path, layers: int, found: Reindexed, effect: LoraEffect | None) -> ReindexedLora:
    """Return the record of a LoRA that was written.

    Args:
        file: of the teacher.
        target: the file that was written.
        layers: their number in `file`.
        found: what was written.
        effect: as measured.
    """
    return ReindexedLora(
        source=file.name,
        source_sha256=hash_file(file),
        bytes=target.stat().st_size,
        sha256=hash_file(target),
        layers=layers,
        dropped=dict(found.dropped),
        norm_kept=found.norm_kept,
        effect=effect,
    )


def described(record: LoraExportRecord) -> list[str]:
    """Return the lines for the user: what fits, what was dropped, and the effect."""
    lines = []
    for name, lora in record.files.items():
        left = lora.layers - sum(lora.dropped.values())
        lines.append(f"{name}: {left} of {lora.layers} layers fit {record.student}")
        lines += [f"{name}: dropped {text}" for text in dropped_lines(lora.dropped)]
        if lora.norm_kept is not None:
            lines.append(f"{name}: {percent(lora.norm_kept)} of the norm of what it adds to the denoiser is left")
        if (effect := lora.effect) is not None:
            inputs = "noised latents of the cache" if effect.origin == "cache" else "random latents"
            lines.append(
                f"{name}: effect on {effect.inputs} {inputs}, compared with that on the teacher: "
                f"cosine {_spread(effect.direction)}, size {_spread(effect.size)}"
            )
    return lines


def dropped_lines(dropped: Mapping[str, int]) -> list[str]:
    """Return a line for each part, or each list of parts, that the student has not."""
    lists: dict[str, list[str]] = {}
    for path in dropped:
        parent, _, last = path.rpartition(".")
        lists.setdefault(parent if last.isdigit() else path, []).append(last if last.isdigit() else "")
    lines = []
    for parent, numbers in lists.items():
        count = sum(dropped[f"{parent}.{number}" if number else parent] for number in numbers)
        what = parent if numbers == [""] else f"{parent} {', '.join(sorted(filter(None, numbers), key=int))}"
        lines.append(f"{count} {'layer' if count == 1 else 'layers'} of {what}, which the student has not")
    return lines


def cautions(recipe: Recipe, name: str, files: Sequence[Path]) -> list[str]:
    """Return a line for each reason to expect another effect than on the teacher."""
    settings, lines = recipe.variant(name)[1], []
    if settings.few_steps or settings.guidance_distillation:
        what = "few steps" if settings.few_steps else "one evaluation per step"
        lines.append(
            f"{name} was distilled to {what}, and a LoRA that was trained without that can undo it: images may blur; "
            "lower its weight, or add it to the teacher (teacher.loras) and distill again"
        )
    hashes = {hash_file(Path(lora.path)) for lora in recipe.teacher.loras if Path(lora.path).is_file()}
    lines += [
        f"{file} is among teacher.loras of the run, so the student has learnt it already; with this it is added twice"
        for file in files
        if hash_file(file) in hashes
    ]
    return lines


def _spread(spread: Any) -> str:
    return f"{significant(spread.mean, 2)} ({significant(spread.lowest, 2)} to {significant(spread.highest, 2)})"


def _read(source: Source, layers: StudentLayers, files: Sequence[Path]) -> dict[str, list[LoraLayer]]:
    """Return the layers of every LoRA, each of which fits the teacher."""
    skeleton = teacher_skeleton(TeacherSettings(pipeline=str(source.directory)), only_sampled=True)
    kind = type(skeleton.denoiser)
    components = {
        **skeleton.family.pipeline.components,
        source.denoiser_name: build_on_meta(kind, dict(layers.teacher)),
    }
    pipeline = type(skeleton.family.pipeline)
    return {file.name: read_lora(pipeline, LoraSettings(path=str(file)), components, given_as=OPTION) for file in files}


def _check_left(name: str, lora: Sequence[LoraLayer], found: Reindexed, source: Source) -> None:
    of_denoiser = [layer for layer in lora if layer.component == source.denoiser_name]
    if of_denoiser and sum(found.dropped.values()) == len(of_denoiser):
        raise CondistillError(
            f"{OPTION}: none of the {len(of_denoiser)} layers that {name} changes in the denoiser is left in "
            f"{source.name}: {'; '.join(dropped_lines(found.dropped))}; distill a student that keeps them"
        )


def _effects(
    source: Source,
    recipe: Recipe,
    loras: Mapping[str, Sequence[LoraLayer]],
    moved: Mapping[str, Reindexed],
    say: Callable[[str], None],
) -> dict[str, LoraEffect | None]:
    """Return the measured effect of each LoRA; None for all where the teacher cannot be loaded."""
    assert source.run is not None, "checked before"
    try:
        cache = LatentCache.open(source.run / "cache")
    except CondistillError:
        cache = None
    inputs = EffectInputs(cache, recipe.seed, recipe.variant(source.name)[1].guidance_range)
    pairs = [(lora, moved[name].layers) for name, lora in loras.items()]
    student = source.directory / source.denoiser_name
    say(f"measuring the effect on the teacher and on {source.name}")
    try:
        effects = measure_effects(teacher_settings(source.run, recipe), student, pairs, inputs)
    except CondistillError as error:
        say(f"the effect was not measured: {error}")
        return dict.fromkeys(loras)
    for name, effect in zip(loras, effects, strict=True):
        if effect is None:
            say(f"{name}: it changes no prediction of the teacher or of the student, so its effect was not measured")
    return dict(zip(loras, effects, strict=True))


def _key(source: Source, files: Sequence[Path], layout: str) -> str:
    weights = source.files.by_component[source.denoiser_name]
    hashes = {file.relative_to(source.directory).as_posix(): hash_file(file) for file in weights}
    return key_of("lora", layout, hashes, {file.name: hash_file(file) for file in files})


def _holds(directory: Path, key: str) -> bool:
    """Return whether a directory holds these LoRAs.

    Raises:
        CondistillError: it holds something else.
    """
    record = held_record(directory, LoraExportRecord, file=LORA_RECORD_NAME, lacking=f"holds no LoRAs of {OPTION}")
    if record is None:
        return False
    check_same(
        directory,
        {name: lora.bytes for name, lora in record.files.items()},
        same_key=record.key == key,
        other="LoRAs of other files or options",
        damaged="LoRAs that are not complete",
    )
    return True
