"""Measure the cost of a training step in addition to the teacher's forward and the student's forward and backward.

    python benchmarks/step.py --batch-size 16          # writes benchmarks/step.md

The three are timed in turns, so that other load on the machine affects all of them alike. The result is a ratio.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import Accelerator

from condistill.cache.fill import fill_cache, finish_cache
from condistill.config.distill import DistillSettings
from condistill.config.sections import CacheSettings, StudentSettings, TeacherSettings
from condistill.distill.batches import batch_source
from condistill.distill.trainer import Trainer
from condistill.miniature.world import all_captions
from condistill.prompts.pool import PromptPool
from condistill.students.derive import derive_student
from condistill.teachers.load import load_teacher
from condistill.utils.hardware import device_name


def main(
    batch_size: Annotated[int, typer.Option(help="Samples per step.")] = 16,
    rounds: Annotated[int, typer.Option(help="How often each of the three is timed.")] = 30,
    width: Annotated[float, typer.Option(help="The student's width.")] = 0.5,
) -> None:
    """Compare the time of a whole training step with that of its two models."""
    accelerator = Accelerator()
    family = load_teacher(TeacherSettings(pipeline="miniature"), device=accelerator.device)
    student = derive_student(family.denoiser, StudentSettings(width=width))
    with tempfile.TemporaryDirectory() as folder:
        pool = PromptPool.from_prompts(all_captions(), Path(folder) / "pool.arrow")
        caching = CacheSettings(size=64, num_inference_steps=2, guidance_scale=1.0, batch_size=32)
        fill_cache(Path(folder) / "cache", family, pool.take(range(64)), caching, seed=0)
        cache = finish_cache(Path(folder) / "cache", family, caching, seed=0, teacher="miniature")
        settings = DistillSettings(steps=10**6, batch_size=batch_size)
        source = batch_source(cache, pool, settings, seed=0, accelerator=accelerator)
        trainer = Trainer(family, student, source, settings, directory=Path(folder) / "run", accelerator=accelerator)
        times = _times(trainer, batch_size, rounds)
    median = {name: statistics.median(values) for name, values in times.items()}
    models = median["teacher forward"] + median["student forward and backward"]
    rows = "\n".join(f"| {name} | {1000 * value:.1f} |" for name, value in median.items())
    text = (
        f"# A training step on the miniature\n\nCommand: `python benchmarks/step.py --batch-size {batch_size}`. "
        f"Machine: {device_name()}, torch {torch.__version__}. Medians of {rounds} repetitions.\n\n"
        f"| part | ms |\n|---|---|\n{rows}\n\n"
        f"A whole step takes {median['whole step'] / models:.2f} times as long as its two models.\n"
    )
    (Path(__file__).parent / "step.md").write_text(text, encoding="utf-8")
    typer.echo(text)


def _times(trainer: Trainer, batch_size: int, rounds: int) -> dict[str, list[float]]:
    family, device = trainer.family, trainer.family.device
    x_t = torch.randn(batch_size, *family.latent_shape, device=device)
    timesteps = family.noise.timesteps(torch.rand(batch_size)).to(device)
    condition = family.encode(["a small red circle at the left on snow"] * batch_size)

    def teacher() -> None:
        with torch.no_grad():
            family.predict(family.denoiser, x_t, timesteps, condition)

    def student() -> None:
        prediction, features = trainer.model(x_t, timesteps, condition)
        (prediction.square().mean() + sum(f.square().mean() for f in features)).backward()
        trainer.optimizer.zero_grad()

    steps = iter(range(10**6))
    parts = {
        "teacher forward": teacher,
        "student forward and backward": student,
        "whole step": lambda: trainer.train_step(trainer.source(next(steps))),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(rounds + 2):
        for name, part in parts.items():
            started = time.perf_counter()
            part()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:
                times[name].append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    typer.run(main)
