"""Kill a run at random moments, run it again each time, and compare what it leaves with a run left in peace.

    python benchmarks/kill.py --kills 20 --seed 0      # benchmarks/kill.md

The run is a whole one on a tiny teacher with random weights: prompts, cache, two students, evaluation, report. A round
is one run directory; it is killed (SIGKILL) once in every stage, at a moment uniform over the stage's duration, and
then left to finish. Its latents, weights, checkpoints, loss history and figures must equal those of the run left in
peace, byte for byte.
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
STAGES = ("prompts", "cache", "distill/plain", "distill/random_conditioning", "evaluation")
POLL_SEC = 0.005
RECIPE: dict[str, Any] = {
    "seed": 0,
    "prompts": {"files": ["miniature"], "unseen_words": ["star", "heart"]},
    "cache": {"size": 192, "num_inference_steps": 10, "guidance_scale": 3.0, "batch_size": 16, "shard_size": 16},
    "student": {"width": 0.5},
    "distill": {
        "steps": 100,
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
    """When to kill: in a stage, a fraction of the time that the stage took in the run left in peace."""

    stage: str
    fraction: float


@dataclass(frozen=True)
class Kill:
    """What became of a moment; `reached` is None where the run had finished before."""

    moment: Moment
    waited_sec: float
    reached: str | None


def prepare(folder: Path) -> Path:
    """Write a tiny teacher with random weights and a recipe for it; the recipe's path."""
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
            build.build_denoiser(block_out_channels=(16, 32, 32), norm_num_groups=4, attention_head_dim=2),
        )
        teacher.save_pretrained(folder / "teacher", safe_serialization=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"teacher": {"pipeline": "./teacher"}, **RECIPE}), encoding="utf-8")
    return recipe


def log_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def start(recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    """`condistill run` in a process of its own; what it prints goes to `log_of(out)`."""
    command = [sys.executable, "-m", "condistill", "run", str(recipe), "--out", str(out)]
    with log_of(out).open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def stages_done(out: Path) -> int:
    """How many stages are finished, in their order."""
    done = 0
    for name in STAGES:
        file = out / name / "stage.json"
        if not file.exists() or not json.loads(file.read_text(encoding="utf-8"))["done"]:
            break
        done += 1
    return done


def progress(process: subprocess.Popen[bytes], out: Path) -> Iterator[int]:
    """The number of finished stages, again and again, from when the imports are over until the process ends."""
    while process.poll() is None:
        if f"condistill {out}" in log_of(out).read_text(encoding="utf-8"):
            yield stages_done(out)
        time.sleep(POLL_SEC)


def finish(process: subprocess.Popen[bytes], out: Path) -> None:
    """Wait for the end, which must be a good one."""
    if process.wait() != 0:
        raise SystemExit(f"the run failed:\n{log_of(out).read_text(encoding='utf-8')}")


def run_in_peace(recipe: Path, out: Path) -> dict[str, float]:
    """Run to the end; seconds per stage."""
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
    """Run one directory, killed at each of the moments (in the order of the stages), then run it to its end."""
    for moment in moments:
        process = start(recipe, out)
        there = any(done >= STAGES.index(moment.stage) for done in progress(process, out))
        wait = moment.fraction * seconds[moment.stage]
        if there:
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
    """Hashes of all that a run leaves but timings: latents, weights, checkpoints, losses, pictures, figures."""
    kinds = (".arrow", ".safetensors", ".jsonl", ".png")
    files = sorted(file for file in out.rglob("*") if file.suffix in kinds)
    found = {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    models = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["models"]
    found |= {
        f"metrics of {name}": json.dumps({**model, "speed": None, "compute": None}) for name, model in models.items()
    }
    return found


def differences(out: Path, peaceful: Path) -> list[str]:
    """Names of what differs between two finished runs, and of half-written files left over."""
    left, right = results(out), results(peaceful)
    leftovers = [str(path.relative_to(out)) for path in out.rglob(".*")]
    return [name for name in sorted({*left, *right}) if left.get(name) != right.get(name)] + leftovers


@app.command()
def main(
    kills: Annotated[int, typer.Option(help="How many times to kill.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
    out: Annotated[Path, typer.Option(help="An empty folder for the runs.")] = Path("runs/kill"),
) -> None:
    """Kill, resume, compare, and write benchmarks/kill.md."""
    import torch

    from condistill.utils.hardware import machine

    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out} is not empty; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    recipe, peaceful = prepare(out), out / "peaceful"
    seconds = run_in_peace(recipe, peaceful)
    console.print("left in peace: " + ", ".join(f"{name} {taken:.1f} s" for name, taken in seconds.items()))
    rng = random.Random(seed)
    rows: list[str] = []
    differing: list[str] = []
    rounds = 0
    while len(rows) < kills:
        moments = [Moment(stage, rng.random()) for stage in STAGES[: kills - len(rows)]]
        run = out / f"round-{rounds:02d}"
        for kill in kill_and_resume(recipe, run, moments, seconds):
            told = f"{kill.waited_sec:.2f} s into {kill.moment.stage}: " + (
                f"killed in {kill.reached}" if kill.reached else "had finished before, does not count"
            )
            console.print(f"round {rounds}, kill {len(rows) + 1}: {told}", highlight=False)
            if kill.reached:
                moment = f"{kill.waited_sec:.2f} s into {kill.moment.stage}"
                rows.append(f"| {len(rows) + 1} | {rounds} | {moment} | {kill.reached} |")
        different = differences(run, peaceful)
        differing += [f"round {rounds}: {name}" for name in different]
        console.print(f"round {rounds}: {', '.join(different) or 'equal to the run left in peace, byte for byte'}")
        rounds += 1
    verdict = (
        f"Runs that were killed and resumed: {rounds}; kills: {len(rows)}. Each run ended equal to the one left in "
        f"peace, byte for byte: {len(results(peaceful))} files and figures."
        if not differing
        else "DIFFERENT: " + "; ".join(differing)
    )
    text = (
        f"# Killed and resumed\n\n{verdict}\n\nCommand: `python benchmarks/kill.py --kills {kills} --seed {seed}`.\n"
        f"Machine: {machine()}, torch {torch.__version__}, Python {sys.version.split()[0]}.\n"
        "Left in peace a run takes "
        + ", ".join(f"{taken:.1f} s for {name}" for name, taken in seconds.items())
        + ".\n\n"
        "| kill | round | moment | stage it fell in |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )
    (HERE / "kill.md").write_text(text, encoding="utf-8")
    console.print(verdict)
    if differing:
        raise SystemExit(1)


if __name__ == "__main__":
    app()
