from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="trains a student, and diffusers is not installed")

import torch
from processes import check_two_processes


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_processes_on_two_gpus_have_the_losses_of_one(
    tiny_pipeline_dir: Path, tiny_prompts: list[str], tmp_path: Path
) -> None:
    # kernels may differ between batch sizes; TensorFloat-32, with 11 bits, would add a thousandth to that
    float32 = {"NVIDIA_TF32_OVERRIDE": "0"}
    check_two_processes(tmp_path, tiny_pipeline_dir, tiny_prompts, environment=float32, rel=1e-4)
