"""Measure the host memory of an evaluation of many images, beyond that of its models.

    python benchmarks/evaluate.py 200 2000            # writes benchmarks/evaluate.md

Latents have the size of those of 512 x 512 pixels, and features that of Inception-v3. The models cost nothing: the
latents are the noise and an offset, and the networks are fixed projections. All metrics of sets are computed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import nn

from condistill.config.evaluate import EvaluateSettings
from condistill.evaluate.engine import Engine, Task
from condistill.evaluate.features import FeatureSource
from condistill.evaluate.grid import PictureGrid
from condistill.evaluate.metrics.metric import INCEPTION, INCEPTION_LOGITS
from condistill.evaluate.models import EvaluatedModel
from condistill.evaluate.results import Job, Measuring
from condistill.evaluate.rounds import Round
from condistill.pipelines.sampling import Sampling
from condistill.profiling.memory import reset_resident_peak, resident_bytes
from condistill.run.stage_directory import Inputs, StageDir
from condistill.utils.format import byte_size, duration
from condistill.utils.hardware import device_name

FEATURES = {INCEPTION: 2048, INCEPTION_LOGITS: 1008}


class Noise:
    """A pipeline whose latents are its noise and an offset, and whose images are a part of them."""

    latent_shape = (4, 64, 64)
    device = torch.device("cpu")
    denoiser = nn.Identity()

    @contextmanager
    def denoiser_on_host(self) -> Iterator[None]:
        """Do nothing: there is no denoiser."""
        yield

    def sample(self, denoiser: Any, _prompts: Any, noise: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return the noise and the offset of a model."""
        return noise + denoiser.offset

    def decode(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        """Return images of 64 x 64 pixels."""
        return (latents[:, :3] * 50 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


class Projections:
    """A network of fixed random weights."""

    def __init__(self) -> None:
        rng = np.random.Generator(np.random.Philox(0))
        self.weights = {name: rng.standard_normal((192, size), np.float32) for name, size in FEATURES.items()}

    def extract(self, images: NDArray[np.uint8], _prompts: Sequence[str] | None, /) -> Mapping[str, NDArray[Any]]:
        """Return features of the images."""
        small = images[:, ::8, ::8].reshape(len(images), -1).astype(np.float32) / 255
        return {name: np.maximum(small @ weights, 0) / 8 for name, weights in self.weights.items()}


class Host:
    """What an engine uses of a run."""

    accelerator = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True, device=torch.device("cpu"))

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def say(self, text: str, **_: Any) -> None:
        """Print a line."""
        typer.echo(text, err=True)

    @contextmanager
    def progress(self, *_: Any, **__: Any) -> Iterator[Callable[..., None]]:
        """Show nothing."""
        yield lambda *_, **__: None

    def stage(self, name: str, inputs: Callable[[], Inputs]) -> StageDir:
        """Return a directory."""
        return StageDir(self.folder, name, inputs)


def measure(images: int) -> dict[str, float]:
    """Evaluate a teacher and a student in this process, and return peaks of memory and seconds."""
    family: Any = Noise()

    def load(offset: float) -> Any:
        denoiser: Any = nn.Identity()
        denoiser.offset = offset
        return lambda _: denoiser

    half = images // 2
    splits = {"seen": slice(0, half), "unseen": slice(half, images), "all": slice(0, images)}
    rounds = [Round(0, [f"prompt {number}" for number in range(images)], splits)]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        host = Host(Path(folder))
        source = FeatureSource("inception", tuple(FEATURES), dict, lambda _: Projections())
        tasks = [
            Task(
                EvaluatedModel(
                    name,
                    lambda: family,
                    Sampling(1, 1.0),
                    host.stage(f"evaluation/latents/{name}", lambda name=name: {"model": name}),  # type: ignore[misc]
                    load=load(offset),
                ),
                rounds,
                [source],
            )
            for name, offset in (("teacher", 0.0), ("student", 0.1))
        ]
        engine = Engine(host, EvaluateSettings(), tasks)
        before = resident_bytes()
        for part, work in (
            ("generate and extract", engine.run),
            ("measure", lambda: _results(engine, tasks, rounds, Path(folder))),
        ):
            reset_resident_peak()
            started = time.perf_counter()
            work()
            found[part] = resident_bytes(peak=True) - before
            found[f"{part}, seconds"] = time.perf_counter() - started
        found["disk"] = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return found


def _results(engine: Engine, tasks: Sequence[Task], rounds: Sequence[Round], folder: Path) -> None:
    results = Measuring(Job(engine, rounds, tasks), folder).results(
        lambda ranking: PictureGrid(folder / "grid", rounds, 4, ranking)
    )
    assert "fid" in results.scores["student"]["all"]
    list(results.values.comparisons())
    results.values.write(folder / "images.parquet")


def main(
    images: Annotated[list[int], typer.Argument(help="Numbers of images per model.")],
    child: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Compare the peak of memory of evaluations of different sizes, each in a process of its own."""
    if child:
        typer.echo(json.dumps(measure(images[0])))
        return
    rows = []
    for count in images:
        command = [sys.executable, __file__, str(count), "--child"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        cells = [f"{byte_size(int(found[part]))} in {duration(found[f'{part}, seconds'])}" for part in PARTS]
        rows.append(f"| {count:,} | {' | '.join(cells)} | {byte_size(int(found['disk']))} |")
        typer.echo(rows[-1])
    counts = " ".join(map(str, images))
    text = (
        "# Host memory of an evaluation\n\nPeak beyond the models, pages of mapped files included, of a teacher and a "
        "student: latents of 4 x 64 x 64, 2,048 features and 1,008 logits per image, all metrics of sets, a grid, "
        f"comparisons and the table of values.\n\nCommand: `python benchmarks/evaluate.py {counts}`. "
        f"Machine: {device_name()}, torch {torch.__version__}.\n\n"
        f"| images per model | {' | '.join(PARTS)} | disk |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )
    (Path(__file__).parent / "evaluate.md").write_text(text, encoding="utf-8")


PARTS = ("generate and extract", "measure")

if __name__ == "__main__":
    typer.run(main)
