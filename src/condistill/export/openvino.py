"""OpenVINO's IR of the graphs that the exporter for ONNX makes, with weights in float16, float32 or int8."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from condistill.errors import CondistillError
from condistill.export.compare import Arrays, Precision, Run, compare
from condistill.export.exporter import Comparison, Exporter, ExportOptions, register_exporter
from condistill.export.onnx import HOW_TO_LOAD, graph_reasons, load_family, write_description, write_graphs
from condistill.export.source import Shape, Source
from condistill.utils.text import first_line, shorten

INT8 = 0.1
"""Share of the largest value by which int8 weights may change an output. A weight has 256 levels in each output
channel, an error of up to 1/512 of the channel's range, which the layers of a network add up. What it costs is measured
by scores, not by this."""
INT8_PIXEL = 0.25
"""By how much int8 weights may change a pixel, in the range from 0 to 1, where edges move by a pixel."""


@register_exporter
class OpenVino(Exporter):
    """One IR for each step of the pipeline; inputs, outputs and computation are float32, whatever the weights are.

    Without a dtype, weights are stored in float16, as OpenVINO's own tools do.
    """

    name = "openvino"
    title = "OpenVINO"
    summary = "IR of denoiser, text encoders and autoencoder for OpenVINO; weights in float16, float32 or int8"
    dtypes = ("float16", "float32")
    weights = ("int8",)
    packages = ("onnx", "onnxscript", "openvino", "nncf")

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why no graphs can be made of this kind of pipeline."""
        return graph_reasons(shape)

    def write(self, source: Source, directory: Path, options: ExportOptions) -> None:
        """Write the IR, the tokenizers, the scheduler's config and the description of the pipeline."""
        family = load_family(source)
        with tempfile.TemporaryDirectory(prefix="condistill-", dir=directory) as folder:
            write_graphs(family, Path(folder), "float32", say=options.say)
            options.say("openvino: converting the graphs")
            convert_graphs(Path(folder), directory, options)
        write_description(family, directory)

    def verify(self, source: Source, directory: Path, options: ExportOptions) -> tuple[Comparison, ...]:
        """Compare the IR, run by OpenVINO, with torch."""
        options.say("openvino: comparing the graphs with torch")
        precision = Precision(options.dtype or "float16")
        if options.weights == "int8":
            precision = replace(precision, allowed=INT8, allowed_pixel=INT8_PIXEL)
        return compare(load_family(source), openvino_runner(directory), precision)

    def how_to_load(self, shape: Shape) -> str:
        """Return how the example runs the IR."""
        return HOW_TO_LOAD.format(backend="openvino")


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Keep OpenVINO and NNCF from importing the package that sends what is used to their makers; both work without."""
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment] # importing it raises ImportError
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


def convert_graphs(source: Path, directory: Path, options: ExportOptions) -> None:
    """Write the IR of every graph of ONNX in a directory.

    Raises:
        CondistillError: OpenVINO cannot read a graph.
    """
    with without_telemetry():
        import openvino

        core = openvino.Core()
        for file in sorted(source.glob("*.onnx")):
            try:
                model = core.read_model(file)
                model = _with_int8(model) if options.weights == "int8" else model
            except Exception as error:  # the frontend and NNCF raise exceptions of many kinds
                raise CondistillError(
                    f"OpenVINO {openvino.__version__} cannot convert {file.stem}: {shorten(first_line(error), 300)}"
                ) from error
            is_half = options.dtype != "float32"
            openvino.save_model(model, directory / f"{file.stem}.xml", compress_to_fp16=is_half)


def _with_int8(model: Any) -> Any:
    """Return a model whose weights are int8, with a scale and a zero point for each output channel."""
    import nncf

    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
            return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    finally:
        logger.setLevel(level)


def openvino_runner(directory: Path, *, threads: int | None = None) -> Run:
    """Return a function that runs the IR of a directory in float32; each is loaded when it is first needed."""
    with without_telemetry():
        import openvino
    core = openvino.Core()
    # some processors would compute in bfloat16 otherwise
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads

    @cache
    def load(name: str) -> Any:
        return core.compile_model(directory / f"{name}.xml", "CPU", settings)

    def run(name: str, inputs: Arrays) -> Arrays:
        model = load(name)
        found = model({each.any_name: inputs[each.any_name] for each in model.inputs})
        return {each.any_name: np.array(found[each]) for each in model.outputs}

    return run
