"""Measure exports of the demo: seconds per image, bytes, the largest difference of an image, and what int8 costs.

    python benchmarks/export.py runs/demo

Writes benchmarks/export.md. Every runtime has the same number of threads, and takes its turn in every repetition; a
time is the median of the ratios to torch in the same repetition.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from condistill.export import ExportOptions, find_source
from condistill.export.compare import Run, torch_runner
from condistill.export.graphs import build_graphs
from condistill.export.onnx import load_family, onnx_runner, write_description, write_graphs
from condistill.export.openvino import convert_graphs, openvino_runner
from condistill.export.tokens import tokenize
from condistill.miniature.classifier import ALL_CORRECT, MiniatureClassifier
from condistill.miniature.world import all_captions
from condistill.teachers.family import Family
from condistill.utils.randomness import Stream, image_noise

STEPS = 25
BATCH = 20
SCORED = ("torch", "OpenVINO int8")
OPTIONS = {
    "OpenVINO fp32": ExportOptions(dtype="float32"),
    "OpenVINO fp16": ExportOptions(dtype="float16"),
    "OpenVINO int8": ExportOptions(dtype="float16", weights="int8"),
}


@dataclass(frozen=True)
class Runtime:
    """One way to run the graphs of a pipeline."""

    name: str
    run: Run
    bytes: int


def sample(family: Family, run: Run, prompts: list[str], *, steps: int) -> np.ndarray[Any, Any]:
    """Return images `[B, 3, H, W]` in [0, 1] of prompts, from the noise of their numbers, by DDIM."""
    scale = family.default_sampling().guidance_scale
    tokens = [tokenize(family, [prompt])[0] for prompt in [*prompts, ""]]
    joined = {name: np.concatenate([each[name] for each in tokens]) for name in tokens[0]}
    embeds = run("text_encoder", joined)["prompt_embeds"]
    conditions = [embeds[:-1], np.repeat(embeds[-1:], len(prompts), axis=0)]
    noise = [image_noise(0, Stream.EVALUATION_NOISE, number, family.latent_shape) for number in range(len(prompts))]
    x_t = torch.from_numpy(np.stack(noise)).float()
    timesteps = family.noise.solver_timesteps(steps)
    following = torch.cat([timesteps[1:], torch.tensor([-1])])
    for t, t_next in zip(timesteps, following, strict=True):
        batch = t.repeat(len(prompts))
        inputs = {"sample": x_t.numpy(), "timestep": batch.numpy()}
        found = [run("denoiser", {**inputs, "prompt_embeds": each})["prediction"] for each in conditions]
        guided = torch.from_numpy(found[1] + scale * (found[0] - found[1]))
        x_t = family.noise.step(guided, x_t, batch, t_next.repeat(len(prompts)))
    return np.clip(run("vae_decoder", {"latents": x_t.float().numpy()})["images"] / 2 + 0.5, 0, 1)


def runtimes_of(family: Family, folder: Path, *, threads: int) -> list[Runtime]:
    """Return torch, onnxruntime and OpenVINO on the graphs of a pipeline, written into a folder."""
    graphs = {graph.name: graph for graph in build_graphs(family)}
    weights = sum(each.numel() * each.element_size() for graph in graphs.values() for each in graph.module.parameters())
    found = [Runtime("torch", torch_runner(graphs), weights)]
    onnx = folder / "onnx"
    found.append(Runtime("onnxruntime", onnx_runner(onnx, threads=threads), bytes_of(onnx)))
    for name, options in OPTIONS.items():
        directory = folder / name
        directory.mkdir(exist_ok=True)
        convert_graphs(onnx, directory, options)
        found.append(Runtime(name, openvino_runner(directory, threads=threads), bytes_of(directory)))
    return found


def write_onnx(name: str, student: str | None, directory: Path) -> None:
    """Write the graphs of a pipeline in ONNX unless they are there."""
    if not (directory / "pipeline.json").is_file():
        family = load_family(find_source(name, student=student))
        directory.mkdir(parents=True)
        write_graphs(family, directory, "float32")
        write_description(family, directory)


def bytes_of(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir() if file.is_file())


def ratios(family: Family, runtimes: list[Runtime], *, repetitions: int) -> tuple[float, dict[str, list[float]]]:
    """Return torch's median seconds per image, and for each runtime the ratios to torch, one per repetition."""
    seconds: dict[str, list[float]] = {each.name: [] for each in runtimes}
    for repetition in range(repetitions + 1):
        for each in runtimes if repetition % 2 else reversed(runtimes):
            started = time.perf_counter()
            sample(family, each.run, ["a small red star"], steps=STEPS)
            if repetition:  # the first one loads the graphs
                seconds[each.name].append(time.perf_counter() - started)
    torchs = seconds["torch"]
    pairs = {name: [one / other for one, other in zip(found, torchs, strict=True)] for name, found in seconds.items()}
    return statistics.median(torchs), pairs


def unseen_captions(count: int) -> list[str]:
    """Return captions with a shape that the demo's students never saw, evenly over all of them."""
    captions = [each for each in all_captions() if set(each.split()) & {"star", "heart", "ring"}]
    chosen = np.random.default_rng(0).choice(len(captions), count, replace=False)
    return [captions[number] for number in chosen]


def score(family: Family, run: Run, prompts: list[str]) -> np.ndarray[Any, Any]:
    """Return which images show all that their prompts name, 0 or 1."""
    parts = [
        sample(family, run, prompts[start : start + BATCH], steps=STEPS) for start in range(0, len(prompts), BATCH)
    ]
    images = np.concatenate(parts)
    pixels = (images.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
    return MiniatureClassifier().classify(pixels, prompts)[0][ALL_CORRECT].astype(float)


def table(title: str, family: Family, runtimes: list[Runtime], *, prompts: list[str], repetitions: int) -> list[str]:
    """Return the lines of the table of one pipeline."""
    seconds, pairs = ratios(family, runtimes, repetitions=repetitions)
    images = {each.name: sample(family, each.run, prompts[:BATCH], steps=STEPS) for each in runtimes}
    correct = {each.name: score(family, each.run, prompts) for each in runtimes if each.name in SCORED}
    lines = [
        f"## {title}",
        "",
        f"torch takes {1000 * seconds:.0f} ms per image of {STEPS} steps with guidance. Times and sizes are ratios to "
        "torch in float32, of times the median and the range; torch's size has the autoencoder's encoder. Differences "
        "are those of pixels in [0, 1].",
        "",
        "| runtime | time | MB | size | largest difference | mean difference | all correct | less than torch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in runtimes:
        apart, times = np.abs(images[each.name] - images["torch"]), pairs[each.name]
        cells = [
            each.name,
            f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})",
            f"{each.bytes / 1e6:.2f}",
            f"{each.bytes / runtimes[0].bytes:.2f}",
            f"{apart.max():.2g}",
            f"{apart.mean():.2g}",
        ]
        if each.name in SCORED:
            paired = correct["torch"] - correct[each.name]
            half = 1.96 * paired.std(ddof=1) / len(paired) ** 0.5
            cells += [
                f"{100 * correct[each.name].mean():.1f} %",
                f"{100 * paired.mean():.1f} ± {100 * half:.1f} points",
            ]
        else:
            cells += ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def main(
    run: str, *, images: int, repetitions: int, threads: int, out: Path, graphs: Path | None, only_student: bool
) -> None:
    torch.set_num_threads(threads)
    prompts, tables, started = unseen_captions(images), [], time.monotonic()
    pipelines = {"Student": (run, "random_conditioning"), "Teacher": ("miniature", None)}
    if only_student:
        del pipelines["Teacher"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = graphs or Path(temporary)
        with ProcessPoolExecutor(len(pipelines), mp_context=get_context("spawn")) as pool:  # this takes longest
            waiting = [
                pool.submit(write_onnx, name, student, folder / title / "onnx")
                for title, (name, student) in pipelines.items()
            ]
            for each in waiting:
                each.result()
        print(f"graphs: {time.monotonic() - started:.0f} s", flush=True)  # noqa: T201
        for title, (name, student) in pipelines.items():
            family = load_family(find_source(name, student=student))
            runtimes = runtimes_of(family, folder / title, threads=threads)
            tables += table(title, family, runtimes, prompts=prompts, repetitions=repetitions)
            out.write_text(page(tables, images, repetitions, threads), encoding="utf-8")
            print(f"{title}: {time.monotonic() - started:.0f} s", flush=True)  # noqa: T201


def page(tables: list[str], images: int, repetitions: int, threads: int) -> str:
    packages = ("torch", "onnxruntime", "openvino", "nncf")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    command = f"python benchmarks/export.py RUN --images {images} --repetitions {repetitions} --threads {threads}"
    lines = [
        "# Exports of the miniature",
        "",
        f"Command: `{command}`, RUN a finished demo. Machine: {platform.machine()} CPU, {threads} threads, {versions}. "
        f"Scores are over the images of {images} captions with shapes that students never saw, the same for all; the "
        f"last column is the paired difference with its 95 % interval. Differences are over {BATCH} images.",
        "",
        *tables,
    ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="a finished demo")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--only-student", action="store_true")
    parser.add_argument("--graphs", type=Path, help="folder that keeps the graphs for another run")
    main(**vars(parser.parse_args()))
