"""The commands for runs, for finished pipelines and for the installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from condistill.cli.app import Configs, PipelineName, Revision, Variant, command, out_option, say, user_path
from condistill.errors import CondistillError


@command
def sample(
    pipeline: PipelineName,
    prompt: Annotated[str, typer.Argument(help="Prompt of the image.", show_default=False)],
    *,
    out: Annotated[Path, out_option("Image file to write.")] = Path("sample.png"),
    seed: Annotated[int, typer.Option(help="Seed of the starting noise.", min=0, max=2**63 - 1)] = 0,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Sampling steps. Default: those that the pipeline was trained for, else those of its call.",
            min=1,
            max=10**4,
        ),
    ] = None,
    guidance: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Guidance scale. Default: that which the pipeline was trained for, else that of its call.",
            min=0,
            max=10**4,
        ),
    ] = None,
    variant: Variant = None,
    revision: Revision = None,
    config: Configs = None,
) -> None:
    """Generate one image with a pipeline.

    With the same seed, a teacher and its students start from the same noise. Reads the pipeline. Writes one image.
    """
    from condistill.config.sections import TeacherSettings
    from condistill.pipelines.generate import generate_image

    teacher = TeacherSettings(pipeline=pipeline, variant=variant, revision=revision, config=config)
    say(f"wrote {generate_image(teacher, prompt, out, seed=seed, steps=steps, guidance=guidance, say=say)}")


@command
def status(
    run: Annotated[Path, typer.Argument(parser=user_path, metavar="RUN", help="Run directory.", show_default=False)],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the state as JSON.")] = False,
) -> None:
    """Show what a run is doing: its stage, progress, time left and last losses, from another terminal.

    For a run that has ended, also how it ended, what is done, what remains, and where the results are. Reads the run
    directory. Writes no file and locks nothing.
    """
    from condistill.utils.terminal import print_line
    from condistill.workflow.status import read_status, to_json

    report = read_status(run)
    if as_json:
        typer.echo(to_json(report))
        return
    for line in report.lines():
        print_line(Console(), line)


@command
def doctor() -> None:
    """Check the installation: versions, devices, free disk space, and how to install what is missing.

    Reads no recipe. Writes no file. The exit code is 1 if condistill cannot run.
    """
    from condistill.cli.doctor import check_installation

    if not check_installation(Console()):
        raise CondistillError("condistill cannot run on this machine; the table above shows what is missing")
