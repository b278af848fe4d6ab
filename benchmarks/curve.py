"""Quality against network evaluations: every model of finished runs, drawn in many and in few steps.

    python benchmarks/curve.py "runs/sweeps/steps/runs/seed=0" "runs/sweeps/steps/runs/seed=1"

One run per seed; all must have the same students. Teacher and full-step students are drawn in each number of steps of
`--steps`, a few-step student in its own. Latents are kept in the run, so an interrupted benchmark goes on. Writes
benchmarks/curve.md and curve.svg. All figures are miniature figures.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure
from rich.console import Console

from condistill.config.recipe import Recipe
from condistill.evaluate.generate import draw_round, measure, rounds
from condistill.evaluate.stage import choose_classifier, load_student
from condistill.utils.hardware import machine
from condistill.utils.malloc import keep_freed_memory
from condistill.workflow.compress import Compression

console = Console()
HERE = Path(__file__).parent
Point = tuple[str, int]
"""A model and how often its denoiser is asked for one image."""


def draw(path: Path, steps: list[int]) -> dict[Point, dict[str, float]]:
    """Scores of one run: all right on seen and unseen prompts, and the Fréchet distance of all."""
    run = Compression(Recipe.load(path / "recipe.yaml"), path, update=False, console=console)
    prompts, settings = run.prompts(), run.recipe.evaluate
    made = rounds(settings, prompts.choose, prompts.splits)
    classifier = choose_classifier(settings.classifier, made)
    kept = run._evaluate_stage().path / "curve"
    kept.mkdir(parents=True, exist_ok=True)
    scores: dict[Point, dict[str, float]] = {}
    for name in ("teacher", *run.recipe.variants):
        variant = None if name == "teacher" else name
        denoiser = load_student(run, name) if variant else run.family.denoiser
        usual = run.sampling(variant)
        few = variant and run.recipe.variant(name)[1].few_steps
        for n in [usual.num_inference_steps] if few else steps:
            how = replace(usual, num_inference_steps=n)
            console.print(f"{path.name}: {name}, {n} steps")
            latents = [
                draw_round(
                    kept / f"{name}-{n}-seed{this.seed}.arrow",
                    run.family,
                    denoiser,
                    this,
                    batch_size=settings.batch_size,
                    sampling=how,
                )
                for this in made
            ]
            measured, _ = measure(
                {"teacher": latents}, run.family, made, settings, classifier
            )  # no difference is asked for
            found: dict[str, Any] = measured["teacher"]
            scores[name, how.denoiser_evaluations(denoiser)] = {
                **{split: found[split]["all_correct"] for split in ("seen", "unseen")},
                "frechet": found["all"]["frechet_classifier"],
            }
    return scores


def told(values: list[float], factor: float = 1.0) -> str:
    spread = f" ± {factor * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{factor * statistics.fmean(values):.1f}{spread}"


def plot(points: dict[Point, list[dict[str, float]]], file: Path) -> None:
    """Unseen prompts all right against evaluations."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(name for name, _ in points):
        of = sorted(
            (calls, [100 * s["unseen"] for s in seeds]) for (who, calls), seeds in points.items() if who == name
        )
        spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in of]
        style = {"marker": "o", "capsize": 2, "linestyle": "-" if len(of) > 1 else ""}
        axes.errorbar([c for c, _ in of], [statistics.fmean(v) for _, v in of], yerr=spreads, label=name, **style)
    axes.set_xscale("log")
    ticks = sorted({calls for _, calls in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("network evaluations per image")
    axes.set_ylabel("all right on unseen prompts, %")
    axes.grid(visible=True, color="#d9dde1", linewidth=0.7)
    axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})


def main(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs with the same students, one per seed.")],
    steps: Annotated[str, typer.Option(help="Sampling steps to draw in, where a model can take any.")] = "25,15,10,5,3",
) -> None:
    keep_freed_memory()
    counts = [int(n) for n in steps.split(",")]
    drawn = [draw(path, counts) for path in runs]
    points = {point: [scores[point] for scores in drawn] for point in drawn[0]}
    text = (
        "# Quality against network evaluations\n\nMiniature figures: not FID on MS-COCO.\n\n"
        f"Command: `python benchmarks/curve.py {' '.join(map(str, runs))} --steps {steps}`. Machine: {machine()}. "
        f"{len(runs)} seed(s), mean ± standard deviation. Guidance costs a second evaluation per step, unless it is "
        "folded in.\n\n| model | evaluations | seen, all right % | unseen, all right % | Fréchet distance, all |\n"
        "|---|---|---|---|---|\n"
    )
    for (name, calls), seeds in points.items():
        cells = [told([s[split] for s in seeds], 100) for split in ("seen", "unseen")]
        text += f"| {name} | {calls} | " + " | ".join([*cells, told([s["frechet"] for s in seeds])]) + " |\n"
    text += "\n![Unseen prompts all right against evaluations](curve.svg)\n"
    (HERE / "curve.md").write_text(text, encoding="utf-8")
    plot(points, HERE / "curve.svg")
    console.print(text, markup=False)


if __name__ == "__main__":
    typer.run(main)
