"""Kill a run at random moments, resume it each time, and compare its results with those of an uninterrupted run.

    python benchmarks/kill.py --kills 20 --seed 0      # benchmarks/kill.md

The run has every stage: prompts, cache, two students, evaluation, report. Its teacher is tiny, with random weights. A
round is one run directory. It is killed (SIGKILL) once in every stage, at a random moment that is uniform over the
duration of the stage, and then runs to its end. Its latents, weights, checkpoints, loss history and figures must equal
those of the uninterrupted run, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

app = typer.Typer(help=__doc__, pretty_exceptions_enable=False)
console = Console()
HERE = Path(__file__).parent
STAGES = ("prompts", "cache", "distill/plain", "distill/random_conditioning", "evaluation/figures")
POLL_SEC = 0.005
RECIPE: dict[str, Any] = {
    "seed": 0,
    "prompts": {"files": ["miniature"], "unseen_words": ["star", "heart"]},
    "cache": {"size": 192, "num_inference_steps": 10, "guidance_scale": 3.0, "batch_size": 16, "shard_size": 16},
    "student": {"width": 0.5},
    "distill": {
        "steps": 100,
        "preview_every": 0,
        "batch_size": 8,
        "optimizer": {"ema_decay": 0.9},
        "logging": {"checkpoint_every": 10, "log_every": 5},
    },
    "variants": {
        "plain": {"distill": {"conditioning": {"probability": {"schedule": "none"}}}},
        "random_conditioning": {},
    },
    "evaluate": {"prompts_per_split": 24, "batch_size": 16, "seeds": [0, 1], "grid": 2},
}


@dataclass(frozen=True)
class Moment:
    """When to kill: a stage, and a fraction of the time that the stage took in the uninterrupted run."""

    stage: str
    fraction: float


@dataclass(frozen=True)
class Kill:
    """The result of a moment; `reached` is the stage that was killed, None if the run had already finished."""

    moment: Moment
    waited_sec: float
    reached: str | None


def prepare(folder: Path, **denoiser: Any) -> Path:
    """Write a tiny teacher with random weights and a recipe for it, and return the path of the recipe.

    Args:
        denoiser: changes of the config of its U-Net.
    """
    import torch

    from condistill.miniature import build
    from condistill.utils.quiet import quiet_libraries

    with quiet_libraries(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = build.build_tokenizer()
        teacher = build.assemble(
            build.build_autoencoder(),
            build.build_text_encoder(tokenizer),
            tokenizer,
            build.build_denoiser(
                **{"block_out_channels": (16, 32, 32), "norm_num_groups": 4, "attention_head_dim": 2, **denoiser}
            ),
        )
        teacher.save_pretrained(folder / "teacher", safe_serialization=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"teacher": {"pipeline": "./teacher"}, **RECIPE}), encoding="utf-8")
    return recipe


def log_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def start(recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start `condistill run` in a new process, whose output goes to `log_of(out)`."""
    command = [sys.executable, "-m", "condistill", "run", str(recipe), "--out", str(out)]
    with log_of(out).open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def stages_done(out: Path) -> int:
    """Return the number of finished stages, in their order."""
    done = 0
    for name in STAGES:
        file = out / name / "stage.json"
        if not file.exists() or not json.loads(file.read_text(encoding="utf-8"))["done"]:
            break
        done += 1
    return done


def progress(process: subprocess.Popen[bytes], out: Path) -> Iterator[int]:
    """Yield the number of finished stages repeatedly, from the end of the imports to the end of the process."""
    while process.poll() is None:
        if f"condistill {out}" in log_of(out).read_text(encoding="utf-8"):
            yield stages_done(out)
        time.sleep(POLL_SEC)


def finish(process: subprocess.Popen[bytes], out: Path) -> None:
    """Wait for the process to end.

    Raises:
        SystemExit: the run failed; the message has its log.
    """
    if process.wait() != 0:
        raise SystemExit(f"the run failed:\n{log_of(out).read_text(encoding='utf-8')}")


def run_uninterrupted(recipe: Path, out: Path) -> dict[str, float]:
    """Run to the end, and return the seconds of each stage."""
    process = start(recipe, out)
    seconds: dict[str, float] = {}
    before = None
    for done in progress(process, out):
        now = time.monotonic()
        before = before or now
        if done > len(seconds):
            seconds[STAGES[done - 1]] = now - before
            before = now
    finish(process, out)
    return seconds


def kill_and_resume(recipe: Path, out: Path, moments: Sequence[Moment], seconds: dict[str, float]) -> Iterator[Kill]:
    """Run in one directory, kill at each of the moments (in the order of the stages), then run to the end."""
    for moment in moments:
        process = start(recipe, out)
        has_begun = any(done >= STAGES.index(moment.stage) for done in progress(process, out))
        wait = moment.fraction * seconds[moment.stage]
        if has_begun:
            time.sleep(wait)
        reached = None
        if process.poll() is None:
            process.kill()
            process.wait()
            reached = (*STAGES, "report")[stages_done(out)]
        else:
            finish(process, out)
        yield Kill(moment, wait, reached)
    finish(start(recipe, out), out)


def results(out: Path) -> dict[str, str]:
    """Return hashes of every result of a run except timings: latents, weights, checkpoints, losses, images, figures."""
    kinds = (".arrow", ".safetensors", ".jsonl", ".png")
    files = sorted(file for file in out.rglob("*") if file.suffix in kinds)
    found = {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    models = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["models"]
    found |= {
        f"metrics of {name}": json.dumps({**model, "speed": None, "compute": None}) for name, model in models.items()
    }
    return found


def differences(out: Path, uninterrupted: Path) -> list[str]:
    """Return the names of results that differ between two finished runs, and of partial files in the first."""
    left, right = results(out), results(uninterrupted)
    leftovers = [str(path.relative_to(out)) for path in out.rglob(".*")]
    return [name for name in sorted({*left, *right}) if left.get(name) != right.get(name)] + leftovers


@app.command()
def main(
    kills: Annotated[int, typer.Option(help="Number of kills.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
    out: Annotated[Path, typer.Option(help="An empty directory for the runs.")] = Path("runs/kill"),
) -> None:
    """Kill, resume, compare, and write benchmarks/kill.md."""
    import torch

    from condistill.utils.hardware import device_name

    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out} is not empty; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    recipe, uninterrupted = prepare(out), out / "uninterrupted"
    seconds = run_uninterrupted(recipe, uninterrupted)
    console.print("uninterrupted: " + ", ".join(f"{name} {taken:.1f} s" for name, taken in seconds.items()))
    rng = random.Random(seed)
    rows: list[str] = []
    differing: list[str] = []
    rounds = 0
    while len(rows) < kills:
        moments = [Moment(stage, rng.random()) for stage in STAGES[: kills - len(rows)]]
        run = out / f"round-{rounds:02d}"
        for kill in kill_and_resume(recipe, run, moments, seconds):
            moment = f"{kill.waited_sec:.2f} s into {kill.moment.stage}"
            result = f"killed in {kill.reached}" if kill.reached else "had already finished, not counted"
            console.print(f"round {rounds}, kill {len(rows) + 1}: {moment}: {result}", highlight=False)
            if kill.reached:
                rows.append(f"| {len(rows) + 1} | {rounds} | {moment} | {kill.reached} |")
        different = differences(run, uninterrupted)
        differing += [f"round {rounds}: {name}" for name in different]
        console.print(f"round {rounds}: {', '.join(different) or 'equal to the uninterrupted run, byte for byte'}")
        rounds += 1
    verdict = (
        f"Runs that were killed and resumed: {rounds}; kills: {len(rows)}. The results of each run, "
        f"{len(results(uninterrupted))} files and figures, equal those of the uninterrupted run, byte for byte."
        if not differing
        else "DIFFERENT: " + "; ".join(differing)
    )
    text = (
        f"# Killed and resumed\n\n{verdict}\n\nCommand: `python benchmarks/kill.py --kills {kills} --seed {seed}`.\n"
        f"Machine: {device_name()}, torch {torch.__version__}, Python {sys.version.split()[0]}.\n"
        "An uninterrupted run takes "
        + ", ".join(f"{taken:.1f} s for {name}" for name, taken in seconds.items())
        + ".\n\n"
        "| kill | round | moment | killed in stage |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )
    (HERE / "kill.md").write_text(text, encoding="utf-8")
    console.print(verdict)
    if differing:
        raise SystemExit(1)


if __name__ == "__main__":
    app()
