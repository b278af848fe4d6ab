from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.load import load_teacher
from condistill.teachers.skeleton import teacher_skeleton

UNET, VAE, SCHEDULER = "unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"
TEXT, TOKENIZER = "text_encoder/config.json", "tokenizer/tokenizer_config.json"
REMOVED = "removed"


@pytest.fixture
def teacher(tiny_pipeline_dir: Path, tmp_path: Path) -> Path:
    """A copy of the teacher's configs, without weights."""
    ignored = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "teacher", ignore=ignored))


def change(file: Path, **values: Any) -> None:
    data = json.loads(file.read_text(encoding="utf-8"))
    data = {key: value for key, value in {**data, **values}.items() if value != REMOVED}
    file.write_text(json.dumps(data), encoding="utf-8")


CASES: list[tuple[str, str, Any]] = [
    (UNET, "sample_size", None),
    (UNET, "sample_size", "8"),
    (UNET, "sample_size", [8, 8, 8]),
    (UNET, "sample_size", 0),
    (UNET, "in_channels", None),
    (UNET, "in_channels", "4"),
    (UNET, "in_channels", -4),
    (UNET, "block_out_channels", [16]),
    (UNET, "block_out_channels", None),
    (UNET, "block_out_channels", [16, None, 32]),
    (UNET, "layers_per_block", None),
    (UNET, "layers_per_block", 0),
    (UNET, "layers_per_block", [1, 1, 1, 1, 1]),
    (UNET, "cross_attention_dim", "wide"),
    (UNET, "down_block_types", ["NoSuchBlock2D"]),
    (UNET, "attention_head_dim", 0),
    (UNET, "norm_num_groups", 7),
    (VAE, "latent_channels", None),
    (VAE, "latent_channels", "4"),
    (VAE, "scaling_factor", None),
    (VAE, "scaling_factor", "0.18"),
    (VAE, "scaling_factor", 0),
    (VAE, "scaling_factor", float("nan")),
    (VAE, "block_out_channels", []),
    (SCHEDULER, "num_train_timesteps", None),
    (SCHEDULER, "num_train_timesteps", "1000"),
    (SCHEDULER, "num_train_timesteps", 0),
    (SCHEDULER, "beta_start", None),
    (SCHEDULER, "beta_start", "small"),
    (SCHEDULER, "beta_end", float("nan")),
    (SCHEDULER, "beta_schedule", "no such"),
    (SCHEDULER, "beta_schedule", None),
    (SCHEDULER, "prediction_type", None),
    (SCHEDULER, "trained_betas", "x"),
    (SCHEDULER, "timestep_spacing", 5),
    (TEXT, "hidden_size", None),
    (TEXT, "hidden_size", "wide"),
    (TEXT, "num_hidden_layers", -1),
    (TEXT, "num_attention_heads", 0),
    (TEXT, "num_attention_heads", 5),
    (TOKENIZER, "model_max_length", "long"),
    (TOKENIZER, "model_max_length", -1),
    (TOKENIZER, "model_max_length", [77]),
    (TOKENIZER, "model_max_length", 1e30),
    (TOKENIZER, "model_max_length", REMOVED),
]


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [pytest.param(*case, marks=[pytest.mark.slow] if n % 4 else []) for n, case in enumerate(CASES)],
)
def test_a_value_that_cannot_be_used_is_refused_with_its_file(teacher: Path, file: str, key: str, value: Any) -> None:
    change(teacher / file, **{key: value})
    with pytest.raises(CondistillError) as caught:
        teacher_skeleton(TeacherSettings(pipeline=str(teacher)))
    message = str(caught.value)
    assert file.split("/", maxsplit=1)[0] in message
    assert (
        key in message
        or value in (0, 5, 7)
        or key in ("beta_start", "beta_end", "layers_per_block", "down_block_types")
    )
    assert "\n" not in message


@pytest.mark.slow
@pytest.mark.parametrize("file", [UNET, VAE, SCHEDULER, TEXT, TOKENIZER])
@pytest.mark.parametrize("content", ["", "[]", "3", "null", "{", "\x00"])
def test_a_config_that_is_no_config_is_refused_with_its_file(teacher: Path, file: str, content: str) -> None:
    (teacher / file).write_text(content, encoding="utf-8")
    with pytest.raises(CondistillError, match=file.split("/", maxsplit=1)[0]):
        teacher_skeleton(TeacherSettings(pipeline=str(teacher)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer/tokenizer.json", b"{}"),
        ("tokenizer/tokenizer.json", b"\x00"),
        ("unet/diffusion_pytorch_model.safetensors", b""),
        ("unet/diffusion_pytorch_model.safetensors", b"\xff" * 100),
        ("vae/diffusion_pytorch_model.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
        ("text_encoder/model.safetensors", b"\x02\0\0\0\0\0\0\0{}"),
        ("unet/config.json", b"[]"),
    ],
)
def test_a_damaged_file_of_a_teacher_is_no_bug(
    tiny_pipeline_dir: Path, tmp_path: Path, file: str, content: bytes
) -> None:
    damaged = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "teacher"))
    (damaged / file).write_bytes(content)
    with pytest.raises(CondistillError, match=r"cannot be loaded|cannot be used"):
        load_teacher(TeacherSettings(pipeline=str(damaged)))


def test_a_weight_that_is_missing_is_never_replaced_by_random_numbers(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    partial = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "teacher"))
    file = partial / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if name.endswith("final_layer_norm.weight")))
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CondistillError, match=r"text_encoder .* model.safetensors .* download or save the files again"):
        load_teacher(TeacherSettings(pipeline=str(partial)))


def test_a_missing_sample_size_is_no_mistake_if_the_resolution_is_given(teacher: Path) -> None:
    change(teacher / UNET, sample_size=None)
    assert teacher_skeleton(TeacherSettings(pipeline=str(teacher), resolution=64)).family.latent_shape == (4, 8, 8)
