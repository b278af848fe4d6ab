"""Run the whole workflow on a pipeline of the size of Stable Diffusion 1.4, and compare its memory with the plan.

    python benchmarks/real_size.py                 # 512 x 512 pixels
    python benchmarks/real_size.py --resolution 256 --preset b-tiny
    python benchmarks/real_size.py --shape sdxl --preset c-micro --dtype float16 --precision bf16     # on a GPU

The pipeline has random weights: a U-Net of 860 M parameters, CLIP's ViT-L text encoder and the autoencoder, from the
configs in tests/data. Everything else is tiny: two cached images, two sampling steps, two training steps, two evaluated
images. The peak of each part is the kernel's own figure (`VmHWM`), which is reset where the part begins, and on a GPU
that of torch's allocations too; files that are read are counted by a hook in the hash function.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from condistill.profiling.memory import reset_resident_peak, resident_bytes
from condistill.utils.hardware import default_device


@dataclass(frozen=True)
class Settings:
    """What differs between runs."""

    resolution: int
    preset: str
    precision: str
    micro_batch: int
    checkpoint_every: int


@dataclass
class Part:
    """A part of the run: how long it took, and the most memory that the process held meanwhile."""

    name: str
    seconds: float
    peak_bytes: int
    """Resident memory of the process, with the pages of files that it has mapped."""
    device_bytes: int = 0
    """Of torch on a GPU."""


@dataclass
class Log:
    """What was measured in the process of the run."""

    parts: list[Part] = field(default_factory=list)
    hashed: list[tuple[str, int, float]] = field(default_factory=list)
    """Files in the order in which they were hashed: name, bytes, seconds."""
    hashed_again: int = 0
    """Bytes that a second run of the same command hashed, which has nothing to do."""
    _open: list[Part] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure a part; the parts around it are measured without it, but their peak includes its own."""
        self._note_peak()
        part = Part(name, time.perf_counter(), 0)
        self._open.append(part)
        try:
            yield
        finally:
            self._note_peak()
            self._open.pop()
            part.seconds = time.perf_counter() - part.seconds
            self.parts.append(part)

    def _note_peak(self) -> None:
        """Add the peak since the last call to the innermost part, and start anew."""
        if self._open:
            part = self._open[-1]
            part.peak_bytes = max(part.peak_bytes, resident_bytes(peak=True))
            if torch.cuda.is_available():
                part.device_bytes = max(part.device_bytes, torch.cuda.max_memory_allocated())
        reset_resident_peak()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Measure every call of a function as a part."""
        function: Callable[..., Any] = getattr(owner, attribute)

        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        setattr(owner, attribute, measured)


def write_pipeline(directory: Path, shape: str, dtype: torch.dtype) -> None:
    """Write a pipeline of the shapes of a teacher of tests/data with random weights."""
    from trainers import recipe_of, teacher_of

    pipeline: Any = teacher_of(recipe_of(shape, {"width": 0.5}), default_device(), dtype=dtype).pipeline
    for name in ("safety_checker", "feature_extractor"):
        if name in pipeline.components:
            pipeline.register_modules(**{name: None})
    pipeline.save_pretrained(directory)


def recipe_of(pipeline: Path, prompts: Path, settings: Settings) -> Any:
    """Return the recipe: real sizes, and as few images and steps as possible."""
    from condistill.config.recipe import Recipe

    return Recipe.model_validate(
        {
            "teacher": {"pipeline": str(pipeline), "resolution": settings.resolution},
            "prompts": {"files": [str(prompts)]},
            "cache": {"size": 2, "num_inference_steps": 2, "batch_size": 1},
            "student": {"preset": settings.preset},
            "distill": {
                "steps": 2,
                "batch_size": 2 * settings.micro_batch,
                "micro_batch_size": settings.micro_batch,
                "mixed_precision": settings.precision,
                "preview_every": 2,
                "logging": {"checkpoint_every": settings.checkpoint_every, "log_every": 1, "keep_checkpoints": 1},
            },
            "evaluate": {"prompts_per_split": 1, "batch_size": 1, "grid": 1},
        }
    )


def run_measured(pipeline: Path, out: Path, settings: Settings) -> Log:
    """Run all stages in this process and measure their parts."""
    from rich.console import Console

    from condistill.cache import stage as cache_stage
    from condistill.distill import stage as distill_stage
    from condistill.distill.checkpoints import TrainingState
    from condistill.distill.previews import Previews
    from condistill.distill.trainer import Trainer
    from condistill.evaluate import engine as evaluate_engine
    from condistill.evaluate.costs import Speeds
    from condistill.evaluate.results import Measuring
    from condistill.run import context
    from condistill.utils import hashing
    from condistill.utils.malloc import keep_freed_memory
    from condistill.workflow.compress import compress

    keep_freed_memory()  # as the command does
    console = Console(stderr=True, width=160)
    log = Log()
    prompts = out.parent / "prompts.txt"
    prompts.write_text("a red circle\na blue square\na green star\na small heart\n", encoding="utf-8")
    log.wrap(context, "load_teacher", "load")
    log.wrap(context, "hold_weights", "load")
    log.wrap(Previews, "make", "previews")
    log.wrap(cache_stage, "fill_cache", "cache")
    log.wrap(distill_stage, "derive_variant", "derive the student")
    log.wrap(Trainer, "run", "training")
    log.wrap(TrainingState, "save", "checkpoint")
    log.wrap(distill_stage, "_save", "save the pipeline")
    log.wrap(distill_stage.DistilledVariant, "load", "load the student")
    log.wrap(evaluate_engine, "generate_latents", "evaluation: generate")
    log.wrap(Measuring, "results", "evaluation: measure and decode")
    log.wrap(Speeds, "of_student", "evaluation: time")
    digest = hashing.hash_file

    def hash_file(path: Path, *others: Any) -> str:
        started = time.perf_counter()
        result = digest(path, *others)
        log.hashed.append((str(path), path.stat().st_size, time.perf_counter() - started))
        return result

    for module in list(sys.modules.values()):
        if getattr(module, "hash_file", None) is digest:
            module.hash_file = hash_file
    with log.part("whole run, between the parts"):
        compress(recipe_of(pipeline, prompts, settings), out, console=console)
    before = len(log.hashed)
    compress(recipe_of(pipeline, prompts, settings), out, console=console)
    log.hashed_again = sum(size for _, size, _ in log.hashed[before:])
    log.hashed = log.hashed[:before]
    return log


STAGES = {
    "load": ("load",),
    "cache": ("cache",),
    "training": ("training", "previews"),
    "checkpoint": ("checkpoint",),
    "saving": ("save the pipeline",),
    "evaluation": ("load the student", "evaluation: generate", "evaluation: measure and decode", "evaluation: time"),
}
"""Stages of the plan, and the parts that belong to each."""


def report(found: dict[str, Any], recipe: Any, command: str) -> str:
    """Return a table of measured and planned memory, and of the files that were hashed.

    Args:
        found: the log of the run.
        command: that made it.
    """
    from condistill.plan import make_plan
    from condistill.utils.format import byte_size, duration
    from condistill.utils.hardware import device_name

    planned = make_plan(recipe).cost.memory
    lines = [f"Command: `{command}`. Machine: {device_name()}, torch {torch.__version__}.", ""]
    on_device = any(part["device_bytes"] for part in found["parts"])
    kinds = {"device_bytes": "device", "peak_bytes": "host"} if on_device else {"peak_bytes": "host"}
    columns = [f"{kind if on_device else 'peak'} | planned | difference" for kind in kinds.values()]
    lines += [f"| stage | {' | '.join(columns)} | time |", f"|---|{'---:|' * (3 * len(kinds) + 1)}"]
    for stage, names in STAGES.items():
        parts = [part for part in found["parts"] if part["name"] in names]
        seconds = sum(part["seconds"] for part in parts if part["name"] != "previews")  # they are in the training
        cells = [stage]
        for key, kind in kinds.items():
            peak, expected = max(part[key] for part in parts), getattr(getattr(planned, stage), kind)
            cells += [byte_size(peak), byte_size(expected), f"{expected / peak - 1:+.1%}"]
        cells.append(duration(seconds))
        lines.append(f"| {' | '.join(cells)} |")
    times = {part["name"]: 0.0 for part in found["parts"]}
    for part in found["parts"]:
        times[part["name"]] += part["seconds"]
    lines += ["", "| part | time |", "|---|---:|", *(f"| {name} | {duration(sec)} |" for name, sec in times.items())]
    large = [(name, size, sec) for name, size, sec in found["hashed"] if size > 10**6]
    names = [name for name, _, _ in large]
    lines += [
        "",
        f"Files above 1 MB that were read for a checksum: {len(large)}, each {max(map(names.count, names))} time(s), "
        f"{byte_size(sum(size for _, size, _ in large))} in {duration(sum(sec for _, _, sec in large))}. "
        f"A second run of the same command read {byte_size(found['hashed_again'])}.",
    ]
    return "\n".join(lines) + "\n"


def main(
    *,
    shape: Annotated[str, typer.Option(help="A teacher of tests/data with a U-Net.")] = "sd14",
    resolution: Annotated[int, typer.Option(help="Height and width of the images.")] = 512,
    preset: Annotated[str, typer.Option(help="The preset of the student.")] = "b-tiny",
    dtype: Annotated[str, typer.Option(help="Of the weights on disk: float32 or float16.")] = "float32",
    precision: Annotated[str, typer.Option(help="Mixed precision: no, fp16 or bf16.")] = "no",
    micro_batch: Annotated[int, typer.Option(help="Samples of a micro-batch; a step has two.")] = 1,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints: 1 or 2.")] = 1,
    folder: Annotated[Path | None, typer.Option(help="Where to keep the pipeline and the run.")] = None,
    log: Annotated[Path | None, typer.Option(help="For the child process: where to write the log.")] = None,
) -> None:
    """Write the pipeline, run everything in a process of its own, and print tables."""
    settings = Settings(resolution, preset, precision, micro_batch, checkpoint_every)
    if log is not None and folder is not None:
        measured = run_measured(folder / "pipeline", folder / "run", settings)
        parts = [asdict(part) for part in measured.parts]
        found = {"parts": parts, "hashed": measured.hashed, "hashed_again": measured.hashed_again}
        log.write_text(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        if not (place / "pipeline").exists():
            write_pipeline(place / "pipeline", shape, getattr(torch, dtype))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        options = ["--resolution", str(resolution), "--preset", preset, "--precision", precision]
        options += ["--micro-batch", str(micro_batch), "--checkpoint-every", str(checkpoint_every)]
        command = [sys.executable, __file__, "--folder", str(place), "--log", str(place / "log.json"), *options]
        subprocess.run(command, check=True, env=os.environ)
        recipe = recipe_of(place / "pipeline", place / "prompts.txt", settings)
        shown = f"python benchmarks/real_size.py --shape {shape} {' '.join(options)} --dtype {dtype}"
        typer.echo(report(json.loads((place / "log.json").read_text()), recipe, shown))


if __name__ == "__main__":
    typer.run(main)
