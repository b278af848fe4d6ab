"""The command that exports a pipeline for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from condistill.cli.app import command, out_option, pipeline_name, say, user_path
from condistill.errors import CondistillError


@command
def export(
    pipeline: Annotated[
        str,
        typer.Argument(
            parser=pipeline_name,
            metavar="RUN_OR_PIPELINE",
            help="Run directory, pipeline directory, or `miniature`.",
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
        typer.Option(metavar="NAME", help="Which student of a run. Default: the only one."),
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
    lora: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            parser=user_path, metavar="FILE", help="LoRA of the teacher to re-index for the student. Can be repeated."
        ),
    ] = None,
    lora_layout: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME", help="Names in the re-indexed LoRA: diffusers (default), or kohya for a U-Net."),
    ] = None,
) -> None:
    """Write a finished pipeline in the format of another program, and compare it with the pipeline.

    Without `--to`, lists the formats, and for each whether this pipeline can be exported to it, or why not. An export
    is written completely or not at all; one that differs from the pipeline by more than its tolerance is not kept.

    Reads the pipeline, and changes nothing of it.
    """
    from condistill.export import EXPORTERS, ExportOptions, find_source
    from condistill.export.lora.write import export_loras
    from condistill.export.write import check_export, default_directory
    from condistill.export.write import export as write_export

    source = find_source(pipeline, student=student)
    if lora:
        if to or dtype or weights:
            raise CondistillError("--lora writes LoRAs alone; leave out --to, --dtype and --weights")
        directory = export_loras(source, lora, layout=lora_layout or "diffusers", out=out, say=say)
        say(f"export: {directory}")
        return
    if lora_layout:
        raise CondistillError("--lora-layout is for --lora; leave it out, or give a LoRA")
    if not to:
        for exporter in EXPORTERS.values():
            reasons = exporter.check(source.shape)
            say(f"{exporter.name}: {exporter.summary}" + (f" - not possible: {'; '.join(reasons)}" if reasons else ""))
        return
    if out is not None and len(to) > 1:
        raise CondistillError(f"--out is one directory, and --to was given {len(to)} times; use one command for each")
    options = ExportOptions(dtype, weights)
    exporters = [EXPORTERS[name] for name in dict.fromkeys(to)]
    for exporter in exporters:
        check_export(source, exporter, options)
    for exporter in exporters:
        directory = out or default_directory(source, exporter)
        write_export(source, exporter, directory, options, say=say)
        say(f"export: {directory}")
        say(exporter.how_to_load(source.shape))
