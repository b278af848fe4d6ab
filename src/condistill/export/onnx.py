"""ONNX graphs of denoiser, text encoders and autoencoder, made by torch's own exporter."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.export.compare import Arrays, Precision, Run, compare, sizes_of_export
from condistill.export.exporter import Comparison, Exporter, ExportOptions, register_exporter
from condistill.export.graphs import Graph, build_graphs, computing_in, random_inputs
from condistill.export.source import Shape, Source
from condistill.export.tokens import described, plain_tokenizer
from condistill.teachers.defaults import recorded_resolution
from condistill.teachers.exportable import Exportable
from condistill.teachers.load import load_teacher, origin_of
from condistill.teachers.noise.schedule import is_of_consistency_model
from condistill.teachers.registry import family_of_pipeline
from condistill.utils.atomic import write_text
from condistill.utils.quiet import quiet_libraries
from condistill.utils.text import shorten

if TYPE_CHECKING:
    from condistill.teachers.family import Family

OPSET = 18
"""Of the operators: the version that torch's exporter writes without a conversion, and that today's runtimes read."""
DESCRIPTION_NAME = "pipeline.json"
_LARGE = 2**31 - 2**20
"""Bytes; a file of ONNX is at most 2 GiB, and weights beyond are in a file next to it."""


@register_exporter
class Onnx(Exporter):
    """One graph for each step of the pipeline. Inputs and outputs are float32, whatever the dtype of the weights.

    Without a dtype, weights in float16 stay so, and all others are float32: onnxruntime has no bfloat16 on CPUs.
    """

    name = "onnx"
    title = "ONNX"
    summary = "graphs of denoiser, text encoders and autoencoder for onnxruntime, and the tokenizers"
    dtypes = ("float32", "float16")
    packages = ("onnx", "onnxscript", "onnxruntime")

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return the reasons why no graphs can be made of this kind of pipeline."""
        return graph_reasons(shape)

    def write(self, source: Source, directory: Path, options: ExportOptions) -> None:
        """Write the graphs, the tokenizers, the scheduler's config and the description of the pipeline."""
        family = load_family(source)
        dtype = options.dtype or stored_dtype(source)
        write_graphs(family, directory, dtype, say=options.say)
        write_description(family, directory)

    def verify(self, source: Source, directory: Path, options: ExportOptions) -> tuple[Comparison, ...]:
        """Compare the graphs, run by onnxruntime, with torch."""
        family = load_family(source)
        options.say("onnx: comparing the graphs with torch")
        return compare(family, onnx_runner(directory), Precision(options.dtype or stored_dtype(source)))

    def how_to_load(self, shape: Shape) -> str:
        """Return how the example runs the graphs."""
        return HOW_TO_LOAD.format(backend="onnxruntime")


HOW_TO_LOAD = """Run the graphs with `{backend}`, `numpy` and `tokenizers`; torch is not needed. The example
`docs/examples/onnx_runner.py` of condistill, one file that you can copy, samples with them:

```bash
pip install {backend} numpy tokenizers pillow
python onnx_runner.py DIRECTORY "a large red star"
```
"""


def graph_reasons(shape: Shape) -> tuple[str, ...]:
    """Return the reasons why no graphs can be made of a kind of pipeline."""
    family = family_of_pipeline(shape.pipeline_class)
    if family.encode_tokens is Exportable.encode_tokens:
        return (f"family {family.name} has no encode_tokens, which exports to graphs need",)
    return (family.graph_limit,) if family.graph_limit else ()


def stored_dtype(source: Source) -> str:
    """Return the default dtype of graphs: float16 where the denoiser's weights are, else float32."""
    from safetensors import safe_open

    for file in source.files.weights(source.denoiser_name):
        with safe_open(file, framework="pt") as weights:
            names = list(weights.keys())
            if names and weights.get_slice(names[0]).get_dtype() == "F16":
                return "float16"
    return "float32"


def load_family(source: Source) -> Family:
    """Return the pipeline in float32, at the resolution of its `sampling.json`."""
    settings = TeacherSettings(pipeline=str(source.directory), dtype="float32")
    resolution = recorded_resolution(origin_of(settings, source.directory))
    with quiet_libraries():
        family = load_teacher(settings.model_copy(update={"resolution": resolution}), only_sampled=True)
    scheduler = family.pipeline.scheduler
    if is_of_consistency_model(scheduler):
        raise CondistillError(
            f"{source.name} is sampled by a {type(scheduler).__name__}; graphs are exported of pipelines that DDIM or "
            "Euler's method sample; choose a student that was not trained with few_steps.method: consistency"
        )
    return family


def write_graphs(family: Family, directory: Path, dtype: str, *, say: Callable[[str], None] = lambda _: None) -> None:
    """Write the graphs of a pipeline in a dtype."""
    with quiet_libraries(), computing_in(family, getattr(torch, dtype)):
        for graph in build_graphs(family):
            say(f"onnx: writing {graph.name}")
            _write_graph(family, graph, directory / f"{graph.name}.onnx")


@torch.no_grad()
def _write_graph(family: Family, graph: Graph, file: Path) -> None:
    """Write one graph with free batch, sizes and lengths.

    Raises:
        CondistillError: the exporter of this version of torch cannot export the module.
    """
    inputs = random_inputs(family, graph, sizes_of_export(family), seed=0)
    try:
        with quiet_exporter():
            program: Any = torch.onnx.export(
                graph.module.eval(),
                tuple(inputs[name] for name in graph.inputs),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=_dynamic_shapes(graph),
                verbose=False,
            )
    except Exception as error:  # the exporter raises exceptions of many kinds
        kinds = ", ".join(type(each).__name__ for each in graph.module.models)
        raise CondistillError(
            f"torch {torch.__version__} cannot export {graph.name} ({kinds}) to ONNX: "
            f"{shorten(_reason(error), 300)}; a newer torch may, or please report it with the configs"
        ) from error
    for node in program.model.graph:  # they hold stack traces, with directories of this machine
        node.metadata_props.clear()
    round_down(program.model.graph)
    keep_axes(program.model.graph)
    size = sum(each.numel() * each.element_size() for each in graph.module.state_dict().values())
    program.save(str(file), external_data=size > _LARGE)


def keep_axes(graph: Any) -> None:
    """Remove those Squeeze nodes from a graph of `onnx_ir` that remove no axis.

    torch leaves an axis as it is if its size is not 1, and ONNX fails: PixArt squeezes its axis of patches.
    """
    for node in [node for node in graph if node.op_type == "Squeeze"]:
        before, after = node.inputs[0].shape, node.outputs[0].shape
        if before is not None and after is not None and len(before) == len(after):
            for use in list(node.outputs[0].uses()):
                use.node.replace_input_with(use.idx, node.inputs[0])
            graph.remove(node)


def round_down(graph: Any) -> None:
    """Make the divisions of whole numbers in a graph of `onnx_ir` round down, as Python's do and ONNX's do not.

    torch's exporter writes Python's `//`, such as that of sizes, as a division that rounds to zero, and simplifies
    sizes to sums with negative terms: 8 - ceil(w / 2) becomes 8 + (-w) // 2, which is wrong for odd w.
    """
    import onnx_ir

    for node in list(graph):
        name = node.outputs[0].name or ""
        if node.op_type != "Div" or not name.startswith("floordiv"):
            continue
        dividend, divisor = node.inputs
        remainder = onnx_ir.Node("", "Mod", [dividend, divisor], num_outputs=1, name=f"{name}_mod")
        multiple = onnx_ir.Node("", "Sub", [dividend, remainder.outputs[0]], num_outputs=1, name=f"{name}_sub")
        for each in (remainder, multiple):
            each.outputs[0].name = f"{each.name}_out"
        graph.insert_before(node, [remainder, multiple])
        node.replace_input_with(0, multiple.outputs[0])


def _reason(error: BaseException) -> str:
    """Return the reason in an exception of the exporter, whose own message is advice."""
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def _dynamic_shapes(graph: Graph) -> tuple[tuple[dict[int, Any], ...]]:
    """Return which axes are free, in the order of the module's arguments, which are one tuple.

    Axes have no names here: those of which only multiples are possible, such as heights, cannot have one.
    """
    free = torch.export.Dim.DYNAMIC
    return (tuple({place: free for place, axis in enumerate(axes) if axis} for axes in graph.inputs.values()),)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Hide what torch's exporter prints and warns of; its exceptions hold what matters."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def write_description(family: Family, directory: Path) -> None:
    """Write what a runner needs besides the graphs: tokenizers, the scheduler's config and how to sample."""
    for each in family.text_inputs():
        folder = directory / each.tokenizer
        folder.mkdir()
        plain_tokenizer(getattr(family.pipeline, each.tokenizer), each.length).save(str(folder / "tokenizer.json"))
    write_text(directory / "scheduler.json", family.noise.solver.to_json_string())
    write_text(directory / DESCRIPTION_NAME, json.dumps(description(family), indent=2) + "\n")


def description(family: Family) -> dict[str, Any]:
    """Return how a runner samples."""
    sampling = family.default_sampling()
    channels, height, width = family.latent_shape
    return {
        "format": 1,
        "latents": {"channels": channels, "height": height, "width": width, "multiple": family.latent_multiple},
        "pixels_per_latent": family.pixels_per_latent,
        "text": [described(each) for each in family.text_inputs()],
        "class_labels": None if family.class_labels is None else dict(family.class_labels),
        "takes_image": family.has_image_condition,
        "uniform_sigmas": family.noise.has_uniform_sigmas,
        "zeros_for_empty_prompt": family.zeros_for_empty_prompt,
        "guidance": family.guidance.mode(family.denoiser.config),
        "guidance_scale": sampling.guidance_scale,
        "num_inference_steps": sampling.num_inference_steps,
    }


def onnx_runner(directory: Path, *, threads: int | None = None) -> Run:
    """Return a function that runs the graphs of a directory with onnxruntime; each is loaded when first needed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0

    @cache
    def load(name: str) -> Any:
        return onnxruntime.InferenceSession(directory / f"{name}.onnx", options, providers=["CPUExecutionProvider"])

    def run(name: str, inputs: Arrays) -> Arrays:
        session = load(name)  # inputs that change nothing are not in a graph
        outputs = session.run(None, {each.name: np.asarray(inputs[each.name]) for each in session.get_inputs()})
        return {each.name: value for each, value in zip(session.get_outputs(), outputs, strict=True)}

    return run
