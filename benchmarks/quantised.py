"""Measure students with quantised weights: size, time of a denoiser evaluation, and how far a prediction moves.

    python benchmarks/quantised.py --shape sd14 --student b-base            # on a GPU, also int4
    python benchmarks/quantised.py --shape miniature --student 0.5

Weights are random, except those of the miniature, whose student inherits its teacher's: times and sizes are those of
trained weights, differences are not. The forms take turns, so that other load affects all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Annotated, Any

import torch
import typer
from step import student_of
from torch import Tensor, nn
from trainers import recipe_of, synchronize, teacher_of

from condistill.export.torchao import KINDS, quantisation
from condistill.profiling.shapes import example_inputs
from condistill.students.derive import derive_student
from condistill.utils.format import byte_size
from condistill.utils.hardware import device_name
from condistill.utils.quiet import quiet_libraries

HEADINGS = ("student", "weights", "size", "share", "ms", "range", "times plain", "difference")


def main(
    *,
    shape: Annotated[str, typer.Option(help="miniature, or a teacher of tests/data, such as sd14.")] = "miniature",
    student: Annotated[str, typer.Option(help="Preset, width or depth, such as b-base, 0.5, depth=0.5.")] = "0.5",
    batch_size: Annotated[int, typer.Option(help="Samples of an evaluation; two are one image with guidance.")] = 2,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile every form with torch.compile.")] = False,
    rounds: Annotated[int, typer.Option(help="How often each form is timed.")] = 20,
) -> None:
    """Compare a student with its quantised forms."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with quiet_libraries(), torch.inference_mode():
        recipe = recipe_of(shape, student_of(student))
        family = teacher_of(recipe, device)
        plain = derive_student(family, recipe.student).denoiser.to(dtype).eval()
        family.denoiser.to("cpu")
        example = example_inputs(plain, size=family.latent_shape[1:], text_length=family.text_length)
        inputs = random_inputs(example, batch_size, device, dtype)
        forms = forms_of(plain, device)
        rows = measure(forms, inputs, compiled=compiled, rounds=rounds)
    options = f"--shape {shape} --student {student} --batch-size {batch_size} --rounds {rounds}"
    typer.echo(
        f"Command: `python benchmarks/quantised.py {options}{' --compile' if compiled else ''}`. Machine: "
        f"{device_name()}, torch {torch.__version__}. {str(dtype).removeprefix('torch.')}; milliseconds, medians of "
        f"{rounds}; the difference is that of one prediction, relative to its norm.\n"
    )
    for cells in (HEADINGS, ["---"] * len(HEADINGS), *([student, *row] for row in rows)):
        typer.echo(f"| {' | '.join(cells)} |")


def forms_of(plain: Any, device: torch.device) -> dict[str, Any]:
    """Return the student and its quantised forms by name."""
    from torchao.quantization import quantize_

    forms = {str(plain.dtype).removeprefix("torch."): plain}
    for kind in KINDS if device.type == "cuda" else KINDS[:2]:
        forms[kind] = deepcopy(plain)
        quantize_(forms[kind], quantisation(kind))
    return forms


def random_inputs(example: dict[str, Any], batch_size: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return random keyword arguments of one evaluation, of the shapes of those of one sample."""
    generator = torch.Generator(device).manual_seed(0)

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: fill(each) for name, each in value.items()}
        if not isinstance(value, Tensor):
            return value
        repeats = batch_size if value.dim() and value.shape[0] == 1 else 1
        shape = (value.shape[0] * repeats, *value.shape[1:]) if value.dim() else ()
        if value.is_floating_point():
            return torch.randn(shape, generator=generator, device=device).to(dtype)
        return torch.ones(shape, dtype=value.dtype, device=device)

    return {name: fill(value) for name, value in example.items()}


def measure(forms: dict[str, Any], inputs: dict[str, Any], *, compiled: bool, rounds: int) -> list[list[str]]:
    """Return a row for each form."""
    calls: dict[str, Callable[..., Any]] = {
        name: torch.compile(form) if compiled else form for name, form in forms.items()
    }
    outputs = {name: call(**inputs, return_dict=False)[0].float() for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, call in calls.items():
            synchronize(outputs[name].device)
            started = time.perf_counter()
            call(**inputs, return_dict=False)
            synchronize(outputs[name].device)
            times[name].append(1000 * (time.perf_counter() - started))
    first = next(iter(forms))
    sizes = {name: size_of(form) for name, form in forms.items()}
    median = {name: statistics.median(values) for name, values in times.items()}
    return [
        [
            name,
            byte_size(sizes[name]),
            f"{sizes[name] / sizes[first]:.0%}",
            f"{median[name]:.1f}",
            f"{min(times[name]):.1f} - {max(times[name]):.1f}",
            f"{median[name] / median[first]:.2f}",
            f"{float((outputs[name] - outputs[first]).norm() / outputs[first].norm()):.1%}",
        ]
        for name in forms
    ]


def size_of(module: nn.Module) -> int:
    """Return the bytes of the weights, those of quantised ones with their scales."""
    from torchao.utils import get_model_size_in_bytes

    return int(get_model_size_in_bytes(module))


if __name__ == "__main__":
    typer.run(main)
