"""The command that exports a pipeline for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.table import Table

from condistill.cli.app import command, console, out_option, pipeline_name, say, user_path
from condistill.errors import CondistillError
from condistill.utils.progress import working
from condistill.utils.terminal import cell

if TYPE_CHECKING:
    from condistill.export import ExportOptions, Source


def _student_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the students of the run in the command line, for the completion of a shell."""
    from condistill.export.source import students_of

    run = Path(str(ctx.params.get("pipeline") or "."))
    return [name for name in students_of(run) if name.startswith(incomplete)]


LoraFiles = Annotated[
    Optional[list[Path]],  # noqa: UP045 - typer reads the annotation
    typer.Option(
        parser=user_path, metavar="FILE", help="LoRA of the teacher to re-index for the student. Can be repeated."
    ),
]
LoraLayout = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="NAME", help="Names in the re-indexed LoRA: diffusers (default), or kohya for a U-Net."),
]


@command
def export(
    pipeline: Annotated[
        str,
        typer.Argument(
            parser=pipeline_name,
            metavar="RUN_OR_PIPELINE",
            help="Run directory, pipeline directory, hub name that was downloaded, or `miniature`.",
            show_default=False,
        ),
    ],
    *,
    to: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads the annotation
        typer.Option(metavar="FORMAT", help="Format to write. Can be repeated. Without it, the formats are listed."),
    ] = None,
    student: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="NAME", help="Which student of a run. Default: the only one.", autocompletion=_student_names
        ),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        out_option("Directory of the export. Default: `exports/NAME-FORMAT`, of a run in the run directory."),
    ] = None,
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME", help="Dtype of the weights. Default: that of the pipeline."),
    ] = None,
    weights: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="KIND", help="Quantise the weights, such as int8, where the format can."),
    ] = None,
    lora: LoraFiles = None,
    lora_layout: LoraLayout = None,
) -> None:
    """Write a finished pipeline in the format of another program, and compare it with the pipeline.

    Without `--to`, lists the formats, and for each whether this pipeline can be exported to it, or why not. An export
    is written completely or not at all; one that differs from the pipeline by more than its tolerance is not kept.

    Reads the pipeline, and changes nothing of it.
    """
    from condistill.export import ExportOptions, find_source
    from condistill.export.lora.write import export_loras

    source = find_source(pipeline, student=student)
    if lora:
        if to or dtype or weights:
            raise CondistillError("--lora writes LoRAs alone; leave out --to, --dtype and --weights")
        say(f"export: {export_loras(source, lora, layout=lora_layout or 'diffusers', out=out, say=say)}")
    elif lora_layout:
        raise CondistillError("--lora-layout is for --lora; leave it out, or give a LoRA")
    elif to:
        _write(source, to, out, ExportOptions(dtype, weights))
    else:
        console.print(_formats(source))
        say(f"write one: condistill export {pipeline}{f' --student {student}' if student else ''} --to FORMAT")


def _write(source: Source, to: Sequence[str], out: Path | None, options: ExportOptions) -> None:
    """Write a pipeline in every format, after checks of all of them."""
    from condistill.export import EXPORTERS
    from condistill.export.write import check_export, default_directory
    from condistill.export.write import export as write_export

    if out is not None and len(to) > 1:
        raise CondistillError(f"--out is one directory, and --to was given {len(to)} times; use one command for each")
    exporters = [EXPORTERS[name] for name in dict.fromkeys(to)]
    for exporter in exporters:
        check_export(source, exporter, options)
    for exporter in exporters:
        directory = out or default_directory(source, exporter)
        write_export(
            source,
            exporter,
            directory,
            options,
            say=say,
            working=partial(working, console, after_sec=2.0),
        )
        say(f"export: {directory}")
        for line in exporter.how_to_load(source.shape).splitlines():
            say(line)


def _formats(source: Source) -> Table:
    """Return every format, whether a pipeline can be exported to it, and what is written or why not."""
    from condistill.export import EXPORTERS

    title = f"{source.name}: a {source.shape.pipeline_class}"
    table = Table(title=cell(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("--to", no_wrap=True)
    table.add_column("possible", no_wrap=True)
    table.add_column("what is written, or why not")
    for name, exporter in EXPORTERS.items():
        reasons = exporter.check(source.shape)
        table.add_row(name, "no" if reasons else "yes", cell("; ".join(reasons) or exporter.summary))
    return table
