"""`export_pipeline` for Python code."""

from __future__ import annotations

from pathlib import Path

from condistill.export import EXPORTERS, ExportOptions, find_source
from condistill.export.write import default_directory, export
from condistill.utils.home import expand_home
from condistill.utils.registry import load_plugins


def export_pipeline(
    pipeline: str | Path,
    to: str,
    *,
    out: str | Path | None = None,
    student: str | None = None,
    dtype: str | None = None,
    weights: str | None = None,
) -> Path:
    """Write a finished pipeline in the format of another program, and return the directory of its files.

    The files are compared with the pipeline before they are kept. `export.json` in the directory has the differences::

        export_pipeline("runs/mine", "comfyui", student="random_conditioning", dtype="float16")

    Args:
        pipeline: a run directory, a pipeline directory, or `miniature`.
        to: the format; `condistill export RUN_OR_PIPELINE` lists them.
        out: the directory to write; None: `exports/NAME-FORMAT`, of a run in the run directory.
        student: which student of a run; None: the only one.
        dtype: of the weights; None: that of the pipeline.
        weights: how weights are quantised, where the format can; None: they are not.

    Raises:
        CondistillError: the format cannot hold this pipeline, the files would differ from it, or `out` holds something
            else.
    """
    load_plugins()
    source, exporter = find_source(str(pipeline), student=student), EXPORTERS[to]
    directory = default_directory(source, exporter) if out is None else expand_home(out)
    export(source, exporter, directory, ExportOptions(dtype, weights))
    return directory
