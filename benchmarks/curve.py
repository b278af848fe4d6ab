"""Quality against denoiser evaluations: every model of finished runs, in many and in few steps.

    python benchmarks/curve.py "runs/sweeps/steps/runs/seed=0" "runs/sweeps/steps/runs/seed=1"

One run per seed; all must have the same students. Teacher and full-step students sample in each number of steps of
`--steps`, a few-step student in its own. Latents are kept in the run, so an interrupted benchmark resumes. Writes
benchmarks/curve.md and curve.svg. All figures are miniature figures.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure
from rich.console import Console

from condistill.config.recipe import TEACHER, Recipe
from condistill.distill import stage as distill_stage
from condistill.evaluate import stage as evaluate_stage
from condistill.evaluate.engine import Engine, Task
from condistill.evaluate.features import classifier_source
from condistill.evaluate.measure import Measurement
from condistill.evaluate.metrics.classifier import choose_classifier
from condistill.evaluate.models import EvaluatedModel
from condistill.evaluate.rounds import choose_rounds
from condistill.pipelines.sampling import planned_sampling
from condistill.profiling.forwards import evaluations_per_image
from condistill.prompts import stage as prompts_stage
from condistill.run.context import Run
from condistill.utils.hardware import device_name
from condistill.utils.malloc import keep_freed_memory

console = Console()
HERE = Path(__file__).parent
SPLITS = ("seen", "unseen")
Point = tuple[str, int]
"""A model and its denoiser evaluations for one image."""


def scores_of(path: Path, steps: list[int]) -> dict[Point, dict[str, float]]:
    """Return the scores of one run: correct images of seen and unseen prompts, and the Fréchet distance of all."""
    run = Run(Recipe.load(path / "recipe.yaml"), path, console=console)
    prompts, settings, variants = prompts_stage.open(run), run.recipe.evaluate, distill_stage.open(run)
    rounds = choose_rounds(settings, prompts.choose, prompts.splits)
    classifier = choose_classifier(settings.classifier, [prompt for each in rounds for prompt in each.prompts])
    assert classifier is not None
    true_features = [classifier.reference(each.prompts, seed=each.seed) for each in rounds]
    sources = [classifier_source(settings.classifier, classifier)]
    tasks: dict[Point, Task] = {}
    for name in (TEACHER, *variants):
        variant = None if name == TEACHER else name
        usual = planned_sampling(run.recipe, variant)
        for n in [usual.num_inference_steps] if usual.few_steps else steps:
            inputs = {"of": evaluate_stage.key(run), "steps": n}
            model = EvaluatedModel(
                f"{name}-{n}",
                lambda: run.family,
                replace(usual, num_inference_steps=n),
                run.stage(f"evaluation/curve/{name}-{n}", lambda inputs=inputs: inputs),
                load=variants[name].load if variant else None,
            )
            tasks[name, n] = Task(model, rounds, sources)
    engine = Engine(run, settings, list(tasks.values()))
    engine.run()
    measurement = Measurement(rounds, true_features=true_features)
    found: dict[Point, dict[str, float]] = {}
    for (name, _), task in tasks.items():
        with engine.subject(task, run.path / "evaluation" / "curve" / ".mapped.partial") as subject:
            scores = measurement.measure(subject).scores
        denoiser = variants[name].load(run.family) if name != TEACHER else run.family.denoiser
        found[name, evaluations_per_image(task.model.sampling, denoiser)] = {
            **{split: scores[split]["all_correct"].value for split in SPLITS},
            "frechet": scores["all"]["frechet_classifier"].value,
        }
    return found


def mean_and_spread(values: list[float], factor: float = 1.0) -> str:
    """Return `mean ± standard deviation`."""
    spread = f" ± {factor * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{factor * statistics.fmean(values):.1f}{spread}"


def plot(points: dict[Point, list[dict[str, float]]], file: Path) -> None:
    """Plot the share of unseen prompts that are correct against denoiser evaluations."""
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
    axes.set_xlabel("denoiser evaluations per image")
    axes.set_ylabel("correct on unseen prompts, %")
    axes.grid(visible=True, color="#d9dde1", linewidth=0.7)
    axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})


def main(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs with the same students, one per seed.")],
    steps: Annotated[
        str, typer.Option(help="Numbers of sampling steps, for models that can use any number.")
    ] = "25,15,10,5,3",
) -> None:
    keep_freed_memory()
    counts = [int(n) for n in steps.split(",")]
    of_runs = [scores_of(path, counts) for path in runs]
    points = {point: [scores[point] for scores in of_runs] for point in of_runs[0]}
    text = (
        "# Quality against denoiser evaluations\n\nMiniature figures: not FID on MS-COCO.\n\n"
        f"Command: `python benchmarks/curve.py {' '.join(map(str, runs))} --steps {steps}`. Machine: {device_name()}. "
        f"{len(runs)} seed(s), mean ± standard deviation. Guidance costs a second evaluation per step, unless it is "
        "distilled.\n\n| model | evaluations | seen, correct % | unseen, correct % | Fréchet distance, all |\n"
        "|---|---|---|---|---|\n"
    )
    for (name, calls), seeds in points.items():
        cells = [mean_and_spread([s[split] for s in seeds], 100) for split in SPLITS]
        text += f"| {name} | {calls} | " + " | ".join([*cells, mean_and_spread([s["frechet"] for s in seeds])]) + " |\n"
    text += "\n![Correct images of unseen prompts against evaluations](curve.svg)\n"
    (HERE / "curve.md").write_text(text, encoding="utf-8")
    plot(points, HERE / "curve.svg")
    console.print(text, markup=False)


if __name__ == "__main__":
    typer.run(main)
