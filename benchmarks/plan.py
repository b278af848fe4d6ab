"""Compare a plan with the training that it plans: memory and time, planned and measured on this machine's device.

    python benchmarks/plan.py                                # the miniature: writes benchmarks/plan.md
    python benchmarks/plan.py --shape sd14 --micro-batch-sizes 8,32 --precision bf16      # random weights, on a GPU

A real `Trainer` is measured, with its cache, prompts and text encoder. Its time is planned from an assumed efficiency
and from `--measure`, its memory on the meta device. On a CPU, the measured memory is that of all weights and of the
tensors alive at the worst moment of a step. On a GPU, it is the peak of torch's allocations.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from accelerate import Accelerator
from trainers import recipe_of, synchronize, teacher_of, trainer_of

from condistill.config.recipe import Recipe
from condistill.plan import make_plan
from condistill.profiling.memory import GIB, MemoryMeter
from condistill.utils.hardware import device_name
from condistill.utils.quiet import quiet_libraries

HEADINGS = (
    "micro-batch",
    "memory",
    "planned",
    "difference",
    "s per step",
    "planned",
    "difference",
    "planned with --measure",
    "difference",
    "share of peak rate",
)


def main(
    *,
    shape: Annotated[
        str, typer.Option(help="miniature, or a teacher of tests/data, such as sd14 or sdxl.")
    ] = "miniature",
    preset: Annotated[str, typer.Option(help="The preset of the student.")] = "b-base",
    micro_batch_sizes: Annotated[str, typer.Option(help="Sizes of micro-batches, such as 8,32.")] = "4,16",
    accumulate: Annotated[int, typer.Option(help="Micro-batches per step.")] = 1,
    precision: Annotated[str, typer.Option(help="Mixed precision: no, fp16 or bf16.")] = "no",
    checkpointing: Annotated[bool, typer.Option(help="Use gradient checkpointing.")] = False,
    steps: Annotated[int, typer.Option(help="Number of steps to time.")] = 8,
) -> None:
    """Plan a training, run it for a few steps, and write both results to benchmarks/plan.md."""
    rows = []
    for micro in map(int, micro_batch_sizes.split(",")):
        recipe = recipe_of(
            shape,
            {"preset": preset},
            batch_size=micro * accumulate,
            micro_batch_size=micro,
            mixed_precision=precision,
            gradient_checkpointing=checkpointing,
        )
        with quiet_libraries():
            seconds, memory = measure(recipe, steps)
        rows.append([str(micro), *compare(recipe, seconds, memory)])
        typer.echo(" | ".join(rows[-1]))
    options = f"--shape {shape} --preset {preset} --micro-batch-sizes {micro_batch_sizes} --precision {precision}"
    options += f" --accumulate {accumulate}" + (" --checkpointing" if checkpointing else "")
    table = [HEADINGS, ["---"] * len(HEADINGS), *rows]
    text = (
        f"## {shape}, {preset}\n\nCommand: `python benchmarks/plan.py {options}`. "
        f"Machine: {device_name()}, torch {torch.__version__}. Medians of {steps} steps.\n\n"
        + "".join(f"| {' | '.join(cells)} |\n" for cells in table)
    )
    file = Path(__file__).with_suffix(".md")
    known = file.read_text(encoding="utf-8") if file.is_file() else "# Plans against trainings\n"
    sections = [part for part in known.split("\n## ") if not part.startswith(f"{shape}, {preset}\n")]
    file.write_text("\n## ".join(sections).rstrip() + "\n\n" + text, encoding="utf-8")


def compare(recipe: Recipe, seconds: float, memory: int) -> list[str]:
    """Return the cells of a row: measured and planned memory and time, and their differences.

    Args:
        seconds: of a step, measured.
        memory: in bytes, measured.
    """
    planned = make_plan(recipe).cost
    (training,) = planned.training.values()
    (timed,) = make_plan(recipe, measure=True).cost.training.values()
    expected = training.memory_bytes.total - training.memory_bytes.process
    peaks = planned.device.peak_flops
    peak = peaks.float32 if recipe.distill.mixed_precision == "no" else peaks.half
    reached = training.flops_per_sample * recipe.distill.batch_size / seconds / peak
    return [
        f"{memory / GIB:.3f} GiB",
        f"{expected / GIB:.3f} GiB",
        f"{expected / memory - 1:+.0%}",
        f"{seconds:.3f}",
        f"{training.sec_per_step:.3f}",
        f"{training.sec_per_step / seconds - 1:+.0%}",
        f"{timed.sec_per_step:.3f}",
        f"{timed.sec_per_step / seconds - 1:+.0%}",
        f"{reached:.0%}",
    ]


def measure(recipe: Recipe, steps: int) -> tuple[float, int]:
    """Return the seconds of a step, and its peak memory on the device in bytes."""
    accelerator = Accelerator(mixed_precision=recipe.distill.mixed_precision)
    device = accelerator.device
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    family = teacher_of(recipe, device)
    with trainer_of(recipe, family, accelerator) as trainer:
        batches = iter(range(10**6))

        def step() -> None:
            trainer.train_step(trainer.source(next(batches)))

        step()
        step()  # the optimiser has its state from here on
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            seconds = median_of(step, steps, device)
            return seconds, torch.cuda.max_memory_allocated(device) - before
        with MemoryMeter() as meter:
            step()
        parts = [part for part in family.pipeline.components.values() if isinstance(part, torch.nn.Module)]
        held = [p for part in (*parts, trainer.trained) for p in part.parameters()]
        held += [value for state in trainer.raw_optimizer.state.values() for value in state.values()]
        held += trainer.ema.shadow_params if trainer.ema else []
        return median_of(step, steps, device), sum(tensor.nbytes for tensor in held) + int(meter.peak)


def median_of(work: Any, repeats: int, device: torch.device) -> float:
    """Return the median seconds of `work`."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return float(np.median(times))


if __name__ == "__main__":
    typer.run(main)
