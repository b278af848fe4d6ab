"""The commands before a run: they write, check, plan and show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console

from condistill.cli.app import Configs, Overrides, PipelineName, RecipePath, Revision, Variant, command, say
from condistill.errors import CondistillError


@command
def init(
    teacher: Annotated[
        str, typer.Argument(help="Pipeline directory, hub name, or one safetensors file.", show_default=False)
    ],
    prompts: Annotated[
        list[Path], typer.Option("--prompts", "-p", help="Prompt file: txt, csv, jsonl or parquet. Can be repeated.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Recipe file to write.")] = Path("recipe.yaml"),
    *,
    column: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--column", "-c", help="Column of the prompts. Default: the only column of text."),
    ] = None,
    budget: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="TIME", help="Time for the whole run: 30m, 2h, 48h, 7d, 1w. Default: a long training."),
    ] = None,
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME", help="Device of the run, such as rtx-4090. Default: that of this machine."),
    ] = None,
    count: Annotated[int, typer.Option(help="Number of devices.", min=1, max=10**6)] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Write a recipe that tests the set-up in minutes.")] = False,
    variant: Variant = None,
    resolution: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Height and width of the images in pixels. Default: the pipeline's own.", min=1, max=2**14),
    ] = None,
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE", help="Set a setting of the teacher: `-s teacher.vae=./vae`. Repeatable."
        ),
    ] = None,
) -> None:
    """Write a commented recipe for a teacher and its prompts, which fits a device and a budget of time.

    Chooses the student, the batch, the precision, the steps and the size of the cache from the plan of the whole run,
    and says why. Shows the column and the first prompt of every file. Reads the configs of the teacher and the prompt
    files; no weights are loaded. Writes one recipe file, which a run accepts, and never overwrites one.
    """
    from condistill.cli.init import Goal, write_recipe

    goal = Goal(budget, device, count, quick)
    given = {"variant": variant, "resolution": resolution}
    options = {name: value for name, value in given.items() if value is not None} | _teacher_options(overrides or ())
    path = write_recipe(teacher, prompts, out, column=column, options=options, goal=goal, say=say)
    launcher = f"accelerate launch --num_processes {count} -m " if count > 1 else ""
    steps = [f"`{launcher}condistill run {path}`"]
    if not quick:
        steps = [f"`condistill run {path} --quick`", *steps]
    say(f"wrote {path}; next: read it, then {', then '.join(steps)}")


def _teacher_options(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings of the teacher that overrides give.

    Raises:
        CondistillError: one is no setting of the teacher.
    """
    from condistill.config.yaml_tree import override

    data: dict[str, Any] = {}
    for text in overrides:
        override(data, {}, text)
    if others := sorted(data.keys() - {"teacher"}):
        raise CondistillError(
            f"`init` takes settings of the teacher only, and chooses {', '.join(others)} itself; change the recipe "
            "that it writes"
        )
    options = data.get("teacher", {})
    if not isinstance(options, dict):
        raise CondistillError("teacher is a section; give one of its settings, such as teacher.variant=fp16")
    return options


@command
def validate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Check a recipe, and print it with every default filled in.

    Reads the recipe, the configs of the teacher and the prompt files; no weights are loaded. Writes no file.
    """
    from condistill.config.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())
    from condistill.plan.loading import lines_by_student, student_loading
    from condistill.teachers.skeleton import teacher_skeleton
    from condistill.utils.quiet import quiet_libraries
    from condistill.workflow.preflight import check_inputs, examine

    family = check_inputs(loaded)
    with quiet_libraries():
        skeleton = teacher_skeleton(loaded.teacher)
        findings = examine(loaded, skeleton)
    if findings.refused:
        raise CondistillError("\n".join(findings.refused))
    typer.echo(loaded.to_yaml(), nl=False)
    for line in findings.warnings:
        say(f"warning: {line}")
    say("where students load:")
    found = findings.students.items()
    for line in lines_by_student(
        {name: student_loading(loaded, skeleton, student.denoiser, name) for name, student in found}
    ):
        say(line)
    say(f"{recipe} is valid; the family of the teacher is {family.name}")


@command
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    *,
    device: Annotated[
        str,
        typer.Option(help="Device to plan for: a name such as a100-80gb; `present`: that of this machine."),
    ] = "present",
    count: Annotated[int, typer.Option(help="Number of devices.", min=1, max=10**6)] = 1,
    efficiency: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Assumed fraction of the peak speed of tensor cores. Default: 0.3.", min=0.01, max=1),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure the speed here, with random weights, instead of assuming it."),
    ] = False,
    budget: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Time for the whole run, such as 48h: count the steps that each student gets in it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Show the students of a recipe and their costs, before weights are loaded.

    For the students of the recipe: FLOPs, hours, disk space, memory by part and by stage. For comparison, all presets,
    widths and depths that fit the teacher: size, memory and time of a training, and where they load.

    Reads the recipe and the configs of the teacher, but not the prompts. Writes no file.
    """
    from condistill.config.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())
    from condistill.plan import make_plan, show_plan
    from condistill.plan.budget import parse_budget

    seconds = None if budget is None else parse_budget(budget)
    assumed = {} if efficiency is None else {"efficiency": efficiency}
    result = make_plan(loaded, device=device, count=count, measure=measure, budget=seconds, **assumed)
    if as_json:
        typer.echo(result.to_json())
    else:
        show_plan(result, Console())


@command
def inspect(
    pipeline: PipelineName,
    levels: Annotated[int, typer.Option(help="Depth of the tree.", min=1, max=100)] = 2,
    variant: Variant = None,
    revision: Revision = None,
    config: Configs = None,
) -> None:
    """Show the denoiser of a pipeline as a tree: layers, widths and costs.

    The tree marks the layers whose features can be compared, and lists the layers that each preset keeps. Reads the
    configs of the pipeline; no weights are loaded. Writes no file.
    """
    from condistill.config.sections import TeacherSettings
    from condistill.plan.inspect import inspect_pipeline

    teacher = TeacherSettings(pipeline=pipeline, variant=variant, revision=revision, config=config)
    Console().print(inspect_pipeline(teacher, levels=levels))
