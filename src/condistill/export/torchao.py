"""A diffusers pipeline whose denoiser has quantised weights, by torchao and the quantisation config of diffusers.

Only the weights of linear layers are quantised; those of convolutions, norms and embeddings stay as they are, and so do
the other models. The arithmetic is in the dtype of the pipeline.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.export.exporter import Comparison, Exporter, ExportOptions, register_exporter
from condistill.export.source import Shape, Source
from condistill.teachers.load import load_teacher
from condistill.utils.quiet import quiet_libraries
from condistill.utils.randomness import Stream, image_noise

KINDS = ("int8", "fp8", "int4")
_TOLERANCES = {"int8": 0.05, "fp8": 0.15, "int4": 0.4}
"""Of latents, relative to their norm. A rounded weight is off by at most 1/254 of the largest weight of its row (int8),
1/16 of itself (fp8) or 1/30 of the range of its group (int4); the errors of many weights add up as noise does."""


@register_exporter
class TorchAO(Exporter):
    """A pipeline directory of diffusers, whose denoiser has weights of 8 or 4 bits."""

    name = "torchao"
    title = "torchao"
    summary = "a diffusers pipeline with weights of 8 or 4 bits: --weights int8, fp8 or int4 (on a GPU)"
    weights = KINDS
    packages = ("torchao",)
    extra = "quant"

    def check(self, shape: Shape) -> tuple[str, ...]:
        """Return no reason: every denoiser has linear layers."""
        return ()

    def write(self, source: Source, directory: Path, options: ExportOptions) -> None:
        """Write the pipeline's files, with a quantised denoiser.

        Raises:
            CondistillError: the device cannot quantise to this kind.
        """
        kind, dtype, device = _choices(source, options)
        import diffusers

        if kind == "int4" and device == "cpu":
            raise CondistillError("--weights int4 needs a GPU with CUDA, and there is none; choose int8 or fp8")
        with quiet_libraries():
            denoiser = getattr(diffusers, source.shape.denoiser_class).from_pretrained(
                source.directory / source.denoiser_name,
                quantization_config=diffusers.TorchAoConfig(quantisation(kind)),
                torch_dtype=getattr(torch, dtype),
                device_map={"": device} if device == "cuda" else None,  # on "cpu", diffusers takes it for offloaded
                use_safetensors=True,
            )
            denoiser.save_pretrained(directory / source.denoiser_name, safe_serialization=True)
        ignored = shutil.ignore_patterns(source.denoiser_name, "README.md", "exports")
        shutil.copytree(source.directory, directory, dirs_exist_ok=True, ignore=ignored)

    def verify(self, source: Source, directory: Path, options: ExportOptions) -> tuple[Comparison, ...]:
        """Compare latents of two steps by the files, loaded by diffusers, with those by the pipeline."""
        kind, dtype, device = _choices(source, options)
        with quiet_libraries():
            expected, found = (_latents(folder, dtype, device) for folder in (source.directory, directory))
        difference = float((found - expected).norm() / expected.norm())
        return (Comparison("latents of two steps, relative to their norm", difference, _TOLERANCES[kind]),)

    def how_to_load(self, shape: Shape) -> str:
        """Return the code that loads the directory; its dtype must be named."""
        return (
            f"`pip install torchao`, then `{shape.pipeline_class}.from_pretrained(directory, torch_dtype=...)` with "
            "the dtype of the export; without `torch_dtype`, diffusers loads quantised weights for bfloat16."
        )


def quantisation(kind: str) -> Any:
    """Return the settings of torchao for a kind of weights."""
    from torchao.quantization import Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if kind == "int4":
        return Int4WeightOnlyConfig(group_size=32, int4_packing_format="tile_packed_to_4d")
    return Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()


def _choices(source: Source, options: ExportOptions) -> tuple[str, str, str]:
    """Return the kind of the weights, the dtype and the device."""
    dtype = options.dtype or source.files.dtype(source.denoiser_name)
    return options.weights or KINDS[0], dtype, "cuda" if torch.cuda.is_available() else "cpu"


def _latents(directory: Path, dtype: str, device: str) -> Tensor:
    """Return latents that the pipeline of a directory generates in two steps, in float32 on the CPU."""
    settings = TeacherSettings.model_validate({"pipeline": str(directory), "dtype": dtype})
    family = load_teacher(settings, device=device, only_sampled=True)
    noise = torch.from_numpy(image_noise(0, Stream.EVALUATION_NOISE, 0, family.latent_shape))[None]
    latents = family.sample(family.denoiser, [""], noise, num_inference_steps=2, guidance_scale=1.0, seeds=[0])
    return latents.float().cpu()
