"""Write budgets.md: what `condistill init` chooses for well-known teachers, devices and budgets, and its plan.

    python benchmarks/budgets.py                                  # every row: about ten minutes on two CPU cores
    python benchmarks/budgets.py --teachers sd14 --devices h200

The teachers are configs of the published sizes (tests/data); no weight is read. Each recipe is the one that `init`
writes, read again and planned on its own, as `condistill plan` does; a plan that differs from what `init` printed is an
error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from condistill.cli.init import Goal, Writer, base_settings
from condistill.config.recipe import Recipe
from condistill.config.sections import MINIATURE, TeacherSettings
from condistill.errors import CondistillError
from condistill.plan.budget import parse_budget
from condistill.plan.devices import Hardware, find_device
from condistill.plan.fit import fit
from condistill.plan.ladder import Case
from condistill.plan.make import plan_cost
from condistill.teachers.skeleton import teacher_skeleton
from condistill.utils.format import byte_size, duration, quantity

ROOT = Path(__file__).parents[1]
TEACHERS = {
    "sd14": "Stable Diffusion 1.4",
    "sdxl": "SDXL",
    "sd35_medium": "Stable Diffusion 3.5 medium",
    "flux_dev": "FLUX.1-dev",
    "pixart_sigma": "PixArt-Sigma",
    "sana_1600m": "Sana 1.6B",
}
HEADINGS = (
    "teacher",
    "device",
    "budget",
    "student",
    "steps x samples",
    "samples",
    "micro-batch",
    "cache",
    "time planned",
    "memory of one device",
)
PROMPTS = 100_000
OUT = Path(__file__).with_suffix(".md")
INTRODUCTION = f"""# Budgets

What `condistill init TEACHER --prompts FILE --device DEVICE --budget BUDGET` chooses for one device and {PROMPTS:,}
prompts, and the plan of the recipe that it writes. Nothing was trained: the times are arithmetic divided by an assumed
share of the device's rate, and can be wrong by a factor of two ([plans](../docs/plan.md)). BK-SDM was trained with
12.8 M samples. The rules are in `src/condistill/plan/fit.py`. Command: `python benchmarks/budgets.py`.

"""


def main(
    *,
    teachers: Annotated[str, typer.Option(help="Folders of tests/data.")] = ",".join(TEACHERS),
    devices: Annotated[str, typer.Option(help="Names of devices.")] = "rtx-4090,a100-80gb,h200",
    budgets: Annotated[str, typer.Option(help="Budgets, as of `init --budget`.")] = "2h,48h,1w",
    out: Annotated[Path, typer.Option(help="File to write.")] = OUT,
) -> None:
    """Write the table."""
    rows, notes = [], dict[str, None]()
    for teacher in teachers.split(","):
        settings = TeacherSettings(pipeline=str(ROOT / "tests" / "data" / teacher))
        skeleton = teacher_skeleton(settings)
        base = base_settings(settings, skeleton, [MINIATURE], None)
        for device in devices.split(","):
            case = Case(skeleton, Hardware(find_device(device)), base)
            for budget in budgets.split(","):
                cells, note = row(case, budget)
                rows.append([TEACHERS[teacher], device, budget, *cells])
                notes |= {f"{TEACHERS[teacher]}: {note}": None} if note else {}
                typer.echo(" | ".join(rows[-1]))
    table = [HEADINGS, ["---"] * len(HEADINGS), *rows]
    text = INTRODUCTION + "".join(f"| {' | '.join(cells)} |\n" for cells in table)
    if notes:
        text += "\nWhere `init` writes no recipe, it says why:\n\n" + "".join(f"- {note}\n" for note in notes)
    out.write_text(text, encoding="utf-8")


def row(case: Case, budget: str) -> tuple[list[str], str]:
    """Return the cells of a row, and the error if no recipe is written."""
    lines: list[str] = []
    device = case.hardware.device.name
    try:
        fitted = fit(case, prompts=PROMPTS, budget=parse_budget(budget))
    except CondistillError as error:
        return ["none"] + ["-"] * (len(HEADINGS) - 4), str(error)
    recipe = Recipe.parse(Writer(case, fitted, Goal(budget, device), Path.cwd(), lines.append).text())
    cost = plan_cost(recipe, device=device)
    (training,) = cost.training.values()
    total = duration(3600 * cost.hours)
    if not any(f"about {total} (" in line for line in lines) or not training.fits:
        raise RuntimeError(f"{device}, {budget}: init printed {lines}; the plan: {total}, fits: {training.fits}")
    student, distill = recipe.student, recipe.distill
    micro = f"{distill.micro_batch_size}" + (", checkpointing" if distill.gradient_checkpointing else "")
    return [
        student.preset or f"depth {student.depth:g}",
        f"{distill.steps:,} x {distill.batch_size}",
        quantity(distill.steps * distill.batch_size),
        micro,
        f"{recipe.cache.size:,}",
        total,
        byte_size(max(getattr(cost.memory, stage).device for stage in type(cost.memory).model_fields)),
    ], ""


if __name__ == "__main__":
    typer.run(main)
