"""The unseen experiment over seeds: does random conditioning teach shapes that no cached image shows?

    python benchmarks/unseen.py seeds --seeds 3            # benchmarks/unseen.md, from whole demo runs
    python benchmarks/unseen.py sweep                      # benchmarks/unseen_sweep.md: steps, lambda, cache size

Every run is the demo's recipe with another seed or with the changes its row names. Runs are kept in `--out` and go
on where they were stopped. All figures are miniature figures.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from condistill.compression import compress, machine
from condistill.memory import keep_freed_memory
from condistill.miniature.demo import demo_recipe
from condistill.report.verdict import gap_closed

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console()
HERE = Path(__file__).parent
MODELS = ("teacher", "plain", "random_conditioning")


def run(out: Path, overrides: list[str]) -> dict[str, Any]:
    """The metrics of one run of the demo's recipe."""
    keep_freed_memory()
    compress(demo_recipe(overrides), out, console=console)
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return metrics


def score(metrics: dict[str, Any], model: str, split: str, metric: str = "all_right") -> float:
    value: float = metrics["models"][model][split][metric]
    return value


def percent(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def heading(title: str, command: str, metrics: dict[str, Any]) -> str:
    revision = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=HERE
    ).stdout.strip()
    images = metrics["images_per_split"]
    return (
        f"# {title}\n\nMiniature figures: not FID on MS-COCO.\n\nCommand: `{command}`, at revision {revision or '-'}.\n"
        f"Machine: {machine()}, torch {metrics['torch']}. Per run {images['seen']} seen and {images['unseen']} unseen "
        f"images per model, {metrics['num_inference_steps']} steps, guidance {metrics['guidance_scale']}.\n\n"
    )


@app.command()
def seeds(
    count: Annotated[int, typer.Option("--seeds", help="How many seeds.")] = 3,
    out: Annotated[Path, typer.Option(help="Where the runs are kept.")] = Path("runs/unseen"),
) -> None:
    """Whole demo runs, one per seed: other cached prompts, other draws, other evaluation prompts and noise."""
    images = "evaluate.prompts_per_split=100"
    made = [
        run(out / f"seed-{s}", [f"seed={s}", images, f"evaluate.seeds=[{2 * s}, {2 * s + 1}]"]) for s in range(count)
    ]
    text = (
        heading("The unseen experiment", f"python benchmarks/unseen.py seeds --seeds {count}", made[0])
        + "All attributes right, %, mean ± standard deviation over seeds:\n\n"
    )
    text += (
        "| model | seen | unseen | all | shape, unseen | Fréchet distance (judge), all |\n|---|---|---|---|---|---|\n"
    )
    for model in MODELS:
        cells = [percent([score(m, model, split) for m in made]) for split in ("seen", "unseen", "all")]
        cells.append(percent([score(m, model, "unseen", "shape") for m in made]))
        distances = [score(m, model, "all", "frechet_judge") for m in made]
        spread = f" ± {statistics.stdev(distances):.2f}" if count > 1 else ""
        cells.append(f"{statistics.fmean(distances):.2f}{spread}")
        text += f"| {model} | " + " | ".join(cells) + " |\n"
    gaps = [
        gap_closed(*(score(m, model, "unseen") for model in ("plain", "random_conditioning", "teacher"))) for m in made
    ]
    known = [gap for gap in gaps if gap is not None]
    text += f"\nShare of the unseen gap to the teacher that random conditioning closes: {percent(known)} % "
    text += "(seeds: " + ", ".join(f"{100 * gap:.0f} %" for gap in known) + "). The paper's Table 2: 95 %.\n"
    (HERE / "unseen.md").write_text(text, encoding="utf-8")
    (HERE / "unseen.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    console.print(text, markup=False)


SWEEP: dict[str, dict[str, Any]] = {
    "lambda_2_5": {"distill": {"random_conditioning": {"schedule": "exponential", "lambda": 2.5}}},
    "lambda_10": {"distill": {"random_conditioning": {"schedule": "exponential", "lambda": 10.0}}},
    "always": {"distill": {"random_conditioning": {"schedule": "constant", "probability": 1.0}}},
    "half_steps": {"distill": {"steps": 500}},
    "half_steps_plain": {"distill": {"steps": 500, "random_conditioning": {"schedule": "none"}}},
    "double_steps": {"distill": {"steps": 2000}},
    "double_steps_plain": {"distill": {"steps": 2000, "random_conditioning": {"schedule": "none"}}},
}
CACHE_SIZES = (64, 512, 2048)
"""512 is the demo's own."""


@app.command()
def sweep(out: Annotated[Path, typer.Option(help="Where the runs are kept.")] = Path("runs/unseen")) -> None:
    """One seed: how the result moves with lambda, steps and the cache's size."""
    variants = json.dumps(SWEEP)
    rows: list[tuple[str, dict[str, Any], str]] = []
    main = run(out / "sweep", [f"variants={variants}"])
    rows += [(name, main, name) for name in SWEEP]
    for size in CACHE_SIZES:
        metrics = run(out / f"sweep-cache-{size}", [f"cache.size={size}", f"cache.shard_size={min(size, 128)}"])
        rows += [(f"cache of {size}, {model}", metrics, model) for model in MODELS[1:]]
    text = heading("The unseen experiment, one setting changed at a time", "python benchmarks/unseen.py sweep", main)
    text += "One seed. All attributes right, %:\n\n| changed | seen | unseen |\n|---|---|---|\n"
    for name, metrics, model in [("teacher", main, "teacher"), *rows]:
        cells = [f"{100 * score(metrics, model, split):.1f}" for split in ("seen", "unseen")]
        text += f"| {name} | " + " | ".join(cells) + " |\n"
    (HERE / "unseen_sweep.md").write_text(text, encoding="utf-8")
    console.print(text, markup=False)


if __name__ == "__main__":
    app()
