"""Write a finished pipeline in the formats of other programs, one exporter each, and their registry."""

# ruff: noqa: F401
# The order of these lines is the order in which formats are listed.
import condistill.export.comfyui
import condistill.export.onnx
import condistill.export.openvino
import condistill.export.sdcpp
import condistill.export.torchao
from condistill.export.exporter import EXPORTERS, Comparison, Exporter, ExportOptions, register_exporter
from condistill.export.loads_in import LoadsIn, loads_in
from condistill.export.source import Shape, Source, find_source

__all__ = [
    "EXPORTERS",
    "Comparison",
    "ExportOptions",
    "Exporter",
    "LoadsIn",
    "Shape",
    "Source",
    "find_source",
    "loads_in",
    "register_exporter",
]
