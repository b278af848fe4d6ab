"""Measure the cost of a training step in addition to the teacher's forward and the student's forward and backward.

    python benchmarks/step.py                               # the miniature
    python benchmarks/step.py --shape sd14 --students b-base,b-tiny --batch-sizes 4,16 --precision bf16   # on a GPU

The parts are timed in turns, so that other load on the machine affects all of them alike. Steps in a row are those of a
training: a thread makes the next batch, and nothing waits for the device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator
from trainers import recipe_of, synchronize, teacher_of, trainer_of

from condistill.config.recipe import Recipe
from condistill.distill.batches import prefetch
from condistill.distill.trainer import Trainer
from condistill.profiling.memory import GIB
from condistill.teachers.family import Family
from condistill.utils.hardware import device_name
from condistill.utils.quiet import quiet_libraries

WARM_UP = 2
TEACHER, STUDENT = "teacher forward", "student forward and backward"
PARTS = (TEACHER, STUDENT, "prompts", "update", "one step")
HEADINGS = ("student", "micro-batch", *PARTS, "steps in a row", "range", "beyond the two models", "samples/s", "memory")


def main(
    *,
    shape: Annotated[
        str, typer.Option(help="miniature, or a teacher of tests/data, such as sd14 or sdxl.")
    ] = "miniature",
    students: Annotated[str, typer.Option(help="Presets, widths or depths, such as b-base,0.5,depth=0.5.")] = "0.5",
    batch_sizes: Annotated[str, typer.Option(help="Samples per micro-batch, such as 4,16.")] = "16",
    accumulate: Annotated[int, typer.Option(help="Micro-batches per step.")] = 1,
    precision: Annotated[str, typer.Option(help="Mixed precision: no, fp16 or bf16.")] = "no",
    checkpointing: Annotated[bool, typer.Option(help="Use gradient checkpointing.")] = False,
    rounds: Annotated[int, typer.Option(help="How often each part is timed.")] = 30,
) -> None:
    """Compare the time of a whole training step with that of its two models."""
    accelerator = Accelerator(mixed_precision=precision)
    rows: list[list[str]] = []
    with quiet_libraries():
        family = teacher_of(recipe_of(shape, student_of(students.split(",")[0])), accelerator.device)
        for student in students.split(","):
            for batch_size in map(int, batch_sizes.split(",")):
                settings: dict[str, Any] = {"batch_size": batch_size * accumulate, "micro_batch_size": batch_size}
                settings |= {"mixed_precision": precision, "gradient_checkpointing": checkpointing}
                recipe = recipe_of(shape, student_of(student), **settings)
                rows.append([student, str(batch_size), *measure(recipe, family, accelerator, rounds)])
                typer.echo(" | ".join(rows[-1]))
                accelerator.free_memory()
    options = f"--shape {shape} --students {students} --batch-sizes {batch_sizes} --precision {precision}"
    options += f" --accumulate {accumulate} --rounds {rounds}" + (" --checkpointing" if checkpointing else "")
    table = [HEADINGS, ["---"] * len(HEADINGS), *rows]
    text = (
        f"Command: `python benchmarks/step.py {options}`. Machine: {device_name()}, torch "
        f"{torch.__version__}. Milliseconds, medians of {rounds}; the range is that of single steps in a row.\n\n"
        + "".join(f"| {' | '.join(cells)} |\n" for cells in table)
    )
    typer.echo(text)


def student_of(text: str) -> dict[str, object]:
    """Return the section of a recipe for a preset, a width, or a depth such as `depth=0.5`."""
    if text.startswith("depth="):
        return {"depth": float(text.removeprefix("depth="))}
    try:
        return {"width": float(text)}
    except ValueError:
        return {"preset": text}


def measure(recipe: Recipe, family: Family, accelerator: Accelerator, rounds: int) -> list[str]:
    """Return the cells of a row: milliseconds of the parts and of a step in a row, and what that means."""
    with trainer_of(recipe, family, accelerator) as trainer:
        return times_of(trainer, rounds)


def times_of(trainer: Trainer, rounds: int) -> list[str]:
    """Return the cells of a row."""
    device, batch_size = trainer.family.device, trainer.source.micro_batch_size
    accumulate = trainer.source.batch_size // batch_size
    parts = parts_of(trainer, batch_size)
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    for turn in range(rounds + WARM_UP):
        for name, part in parts.items():
            synchronize(device)
            started = time.perf_counter()
            part()
            synchronize(device)
            if turn >= WARM_UP:
                times[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in times.items()}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    steps = in_a_row(trainer, rounds)
    memory = f"{torch.cuda.max_memory_allocated(device) / GIB:.1f} GiB" if device.type == "cuda" else ""
    step, models = statistics.median(steps), accumulate * (median[TEACHER] + median[STUDENT])
    return [
        *(f"{1000 * median[name]:.1f}" for name in PARTS),
        f"{1000 * step:.1f}",
        f"{1000 * min(steps):.1f} - {1000 * max(steps):.1f}",
        f"{step / models - 1:+.1%}",
        f"{batch_size * accumulate / step:.1f}",
        memory,
    ]


def in_a_row(trainer: Trainer, rounds: int) -> list[float]:
    """Return the seconds of the steps of a training, in which nothing waits for the device but its own checks."""
    device, first, times = trainer.family.device, trainer.step, []
    synchronize(device)
    batches = prefetch(trainer.source, range(first, first + rounds + WARM_UP))
    for number, batch in enumerate(batches):
        if number == WARM_UP:
            synchronize(device)
            started = time.perf_counter()
        trainer.train_step(batch)
        if number >= WARM_UP:
            times.append(time.perf_counter())
    synchronize(device)
    whole = time.perf_counter() - started
    single = [later - earlier for earlier, later in zip([started, *times], times, strict=False)]
    # the steps that are queued when the last returns are a part of the whole
    return [second * whole / sum(single) for second in single]


def parts_of(trainer: Trainer, batch_size: int) -> dict[str, Callable[[], object]]:
    """Return the parts of a step, as functions."""
    family, device = trainer.family, trainer.family.device
    x_t = torch.randn(batch_size, *family.latent_shape, device=device)
    timesteps = family.noise.timesteps(torch.rand(batch_size)).to(device)
    prompts = [f"a small red circle number {number} at the left on snow" for number in range(batch_size)]
    condition = family.encode(prompts)

    def teacher() -> None:
        with torch.no_grad():
            family.predict(family.denoiser, x_t, timesteps, condition)

    def student() -> None:
        prediction, features = trainer.model(x_t, timesteps, condition)
        (prediction.square().mean() + sum(f.square().mean() for f in features)).backward()

    def step() -> None:
        trainer.train_step(trainer.source(trainer.step))

    parts = (teacher, student, lambda: family.encode(prompts), trainer._update, step)
    return dict(zip(PARTS, parts, strict=True))


if __name__ == "__main__":
    typer.run(main)
