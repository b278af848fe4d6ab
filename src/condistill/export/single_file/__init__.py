"""Single files in the original layout of each kind of denoiser: one layout per file, and their registry."""

# ruff: noqa: F401
import condistill.export.single_file.unet
from condistill.export.single_file.layout import LAYOUTS, Layout, register_layout

__all__ = ["LAYOUTS", "Layout", "register_layout"]
