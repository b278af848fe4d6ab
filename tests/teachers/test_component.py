from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from condistill.errors import CondistillError
from condistill.teachers.component import load_component

VAE = ["diffusers", "AutoencoderKL"]


def test_a_model_is_loaded_in_the_dtype_that_is_given(tiny_pipeline_dir: Path) -> None:
    assert load_component(tiny_pipeline_dir, "vae", VAE, torch.float16).dtype == torch.float16
    encoder = load_component(tiny_pipeline_dir, "text_encoder", ["transformers", "CLIPTextModel"], torch.bfloat16)
    assert encoder.dtype == torch.bfloat16


def test_a_damaged_file_is_an_error_that_names_the_component(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_pipeline_dir / "vae", tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CondistillError, match=r"the teacher's vae cannot be loaded: \w"):
        load_component(tmp_path, "vae", VAE, torch.float32)


def test_a_class_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(CondistillError, match=r"vae is a diffusers\.AutoencoderNew, which is neither in diffusers nor"):
        load_component(tmp_path, "vae", ["diffusers", "AutoencoderNew"], torch.float32)
