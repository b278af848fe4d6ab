"""Single files in the original layout of each kind of denoiser: one layout per file, and their registry."""

# ruff: noqa: F401
import condistill.export.single_file.absent
import condistill.export.single_file.flux
import condistill.export.single_file.pixart
import condistill.export.single_file.qwen_image
import condistill.export.single_file.sd3
import condistill.export.single_file.unet
from condistill.export.single_file.layout import LAYOUTS, Layout, register_layout

__all__ = ["LAYOUTS", "Layout", "register_layout"]
