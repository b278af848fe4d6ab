"""Measure how many images a second a teacher and its students generate and decode, as a cache or an evaluation does.

python benchmarks/images.py --shape sd14 --students b-base,b-tiny --batch-sizes 1,8,32      # on a GPU
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import torch
import typer
from step import student_of
from trainers import recipe_of, synchronize, teacher_of

from condistill.config.sections import StudentSettings
from condistill.profiling.memory import GIB
from condistill.students.derive import derive_student
from condistill.utils.hardware import default_device, device_name
from condistill.utils.quiet import quiet_libraries


def main(
    *,
    shape: Annotated[str, typer.Option(help="miniature, or a teacher of tests/data.")] = "miniature",
    students: Annotated[str, typer.Option(help="Presets, widths or depths, such as b-base,0.5,depth=0.5.")] = "0.5",
    batch_sizes: Annotated[str, typer.Option(help="Images at once, such as 1,8.")] = "8",
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 25,
    guidance_scale: Annotated[float, typer.Option(help="1: one denoiser evaluation per step.")] = 7.5,
) -> None:
    """Print a table: images a second while latents are generated, and while they are decoded."""
    device = default_device()
    rows = []
    with quiet_libraries():
        family = teacher_of(recipe_of(shape, student_of(students.split(",")[0])), device)
        for name in ("teacher", *students.split(",")):
            denoiser: Any = family.denoiser
            if name != "teacher":
                settings = StudentSettings.model_validate(student_of(name))
                denoiser = derive_student(family.denoiser, settings).denoiser.to(device, family.dtype).eval()
            for count in map(int, batch_sizes.split(",")):
                noise = torch.randn(count, *family.latent_shape)
                prompts = [f"a red circle number {number}" for number in range(count)]
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                options = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
                family.sample(denoiser, prompts, noise, **{**options, "num_inference_steps": 2})
                times = []
                for _ in range(3):
                    started = time.perf_counter()
                    latents = family.sample(denoiser, prompts, noise, **options)
                    synchronize(device)
                    times.append(time.perf_counter() - started)
                family.decode(latents)
                started = time.perf_counter()
                family.decode(latents)
                decoded = time.perf_counter() - started
                memory = f"{torch.cuda.max_memory_allocated() / GIB:.1f} GiB" if device.type == "cuda" else ""
                rates = (f"{count / sec:.2f}" for sec in (sorted(times)[1], max(times), min(times), decoded))
                rows.append(f"| {name} | {count} | {' | '.join(rates)} | {memory} |")
                typer.echo(rows[-1])
    options_text = f"--shape {shape} --students {students} --batch-sizes {batch_sizes} --steps {steps}"
    typer.echo(
        f"Command: `python benchmarks/images.py {options_text} --guidance-scale {guidance_scale}`. Machine: "
        f"{device_name()}, torch {torch.__version__}. Images a second: median, slowest and fastest of three.\n\n"
        "| model | batch | generated | slowest | fastest | decoded | memory |\n|---|---:|---:|---:|---:|---:|---:|\n"
        + "\n".join(rows)
    )


if __name__ == "__main__":
    typer.run(main)
