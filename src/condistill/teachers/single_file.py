"""A pipeline in one safetensors file: find its kind and its configs, check it, and convert it with diffusers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from condistill.config.sections import SHIPPED_CONFIGS
from condistill.errors import CondistillError
from condistill.teachers.clip_tokenizer import VOCABULARY_NAME, write_vocabulary
from condistill.teachers.component import load_component
from condistill.teachers.conversion import check_shapes, converted_shapes
from condistill.teachers.files import INDEX_NAME, weight_files
from condistill.teachers.header import Header, check_weights_are_whole, read_header, shapes, what_it_is
from condistill.teachers.replaced import read_vae_config
from condistill.utils.text import first_line

SHIPPED = Path(str(resources.files("condistill.teachers"))) / "shipped"
"""Directory of the configs and the vocabulary that come with condistill."""
_SETTING = "teacher.pipeline"
_FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
_KINDS = {
    "v1": "sd-1",
    "inpainting": "sd-1-inpaint",
    "inpainting_v2": "sd-2-inpaint",
    "xl_base": "sdxl",
}
"""The shipped configs of the kinds that diffusers distinguishes by names and shapes."""
_UNSHIPPED = {
    "sd3": "Stable Diffusion 3",
    "sd35_medium": "Stable Diffusion 3.5 medium",
    "sd35_large": "Stable Diffusion 3.5 large",
    "flux-dev": "FLUX.1-dev",
    "flux-schnell": "FLUX.1-schnell",
    "sana": "Sana",
}
"""Kinds that a family supports, and whose tokenizers cannot be shipped."""
_DENOISERS = ("model.diffusion_model.", "double_blocks.0.", "joint_blocks.0.")
"""How the names of the denoiser's tensors start in files that can hold a pipeline."""
_V_PREDICTION = ("v", "v_prediction", "v-prediction", "vpred")


def config_directory(file: Path, config: str | None) -> Path:
    """Return the directory with the index and the configs of a pipeline in one file.

    Args:
        config: `teacher.config`: a directory, or the name of shipped configs; None: those that fit the file.

    Raises:
        CondistillError: the file is no pipeline, or there are no configs for it.
    """
    header = read_pipeline_header(file)
    if config is None:
        return _default_configs(header)
    if config in SHIPPED_CONFIGS:
        return SHIPPED / config
    directory = Path(config)
    if not (directory / INDEX_NAME).is_file():
        raise CondistillError(f"teacher.config {config} is no directory with a {INDEX_NAME}; {_what_configs_are(file)}")
    return directory


def read_pipeline_header(file: Path) -> Header:
    """Return the header of a pipeline in one file.

    Raises:
        CondistillError: the file is something else; the message says what.
    """
    header = read_header(file, setting=_SETTING)
    check_weights_are_whole(header, setting=_SETTING)
    is_pipeline = any(name.startswith(_DENOISERS) for name in header.tensors)
    if not is_pipeline and (what := what_it_is(header)):
        raise CondistillError(f"{_SETTING} {file} is {what}")
    return header


def _what_configs_are(file: Path) -> str:
    return (
        f"give a directory that has {INDEX_NAME}, and for every component in it a folder with its config "
        "(config.json, scheduler_config.json) or its tokenizer, as save_pretrained writes them for the pipeline that "
        f"{file.name} was made from; or one of {', '.join(SHIPPED_CONFIGS)}"
    )


def kind_of(header: Header) -> str:
    """Return the kind of a pipeline, as diffusers names it, from the names and shapes of its tensors."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    tensors = {name: SimpleNamespace(shape=tensor.shape) for name, tensor in header.tensors.items()}
    try:
        kind = str(infer_diffusers_model_type(tensors))
    except Exception:  # it reads tensors that other kinds of files do not have
        return "unknown"
    return "unknown" if kind == "v1" and _FIRST_LAYER not in header.tensors else kind


def _default_configs(header: Header) -> Path:
    """Return the directory of the configs that fit a file: shipped, or small files of a repository on the hub."""
    kind = kind_of(header)
    if kind == "v2":
        return SHIPPED / _prediction_of_sd_2(header)
    if kind == "xl_base" and "v_pred" in header.tensors:
        if "ztsnr" not in header.tensors:
            raise CondistillError(
                f"{_SETTING} {header.file} predicts the velocity (it has v_pred), and does not say whether its noise "
                "schedule ends without signal (it has no ztsnr); set teacher.config: sdxl-v if it does, else "
                "teacher.config: sdxl with a teacher.scheduler that has prediction_type v_prediction"
            )
        return SHIPPED / "sdxl-v"
    if kind in _KINDS:
        return SHIPPED / _KINDS[kind]
    if kind not in _UNSHIPPED:
        raise CondistillError(
            f"{_SETTING} {header.file} is of the kind {kind!r}, for which condistill has no configs; "
            f"set teacher.config: {_what_configs_are(header.file)}"
        )
    from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS

    repository = DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(kind, {}).get("pretrained_model_name_or_path")
    if repository and (folder := _small_files(str(repository))):
        return folder
    raise CondistillError(
        f"{_SETTING} {header.file} is a {_UNSHIPPED[kind]}, whose configs and tokenizers do not come with condistill, "
        f"and those of {repository} on the hub cannot be read here; set teacher.config: "
        f"{_what_configs_are(header.file)}"
    )


def _prediction_of_sd_2(header: Header) -> str:
    """Return the shipped configs of a Stable Diffusion 2, whose shapes do not say what it predicts.

    Raises:
        CondistillError: its metadata does not say it either.
    """
    architecture = header.metadata.get("modelspec.architecture", "").lower()
    prediction = header.metadata.get("modelspec.prediction_type", "").lower()
    if prediction in _V_PREDICTION or architecture.endswith("v2-768-v") or "v_pred" in header.tensors:
        return "sd-2-v"
    if prediction == "epsilon" or architecture.endswith("v2-512"):
        return "sd-2"
    raise CondistillError(
        f"{_SETTING} {header.file} is a Stable Diffusion 2, and does not say whether it predicts the noise or the "
        "velocity; set teacher.config: sd-2 for models of 512 pixels that predict the noise (2.x base), or sd-2-v for "
        "models of 768 pixels that predict the velocity"
    )


def _small_files(repository: str) -> Path | None:
    """Return a folder with the configs and tokenizers of a repository on the hub; None if they cannot be read."""
    from huggingface_hub import constants, snapshot_download

    try:
        folder = snapshot_download(
            repository,
            allow_patterns=["*.json", "**/*.json", "**/*.txt", "**/*.model"],
            ignore_patterns=["*.index.json", "**/*.index.json"],
            etag_timeout=10,
            local_files_only=constants.HF_HUB_OFFLINE,
        )
    except Exception:  # the errors of several HTTP libraries mean the same: it cannot be read
        return None
    return Path(folder) if (Path(folder) / INDEX_NAME).is_file() else None


@contextmanager
def complete_configs(directory: Path) -> Iterator[Path]:
    """Yield a directory with the configs, and with the vocabulary of CLIP where the configs are shipped ones."""
    if directory.parent != SHIPPED:
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="condistill-") as folder:
        copied = Path(shutil.copytree(directory, Path(folder) / directory.name))
        for tokenizer in copied.glob("tokenizer*"):
            write_vocabulary(SHIPPED / "clip" / VOCABULARY_NAME, tokenizer)
        yield copied


def check_parts(
    header: Header, directory: Path, index: Mapping[str, Any], models: Mapping[str, Any], *, replaced: set[str]
) -> dict[str, bool]:
    """Check that a file, or the directory of its configs, has every model of a pipeline, with the configs' shapes.

    Args:
        directory: of the configs.
        index: of the pipeline.
        models: the models of the pipeline by name, on the meta device.
        replaced: models that come from elsewhere.

    Returns:
        by name of the model, whether it is in the file; the others have weights in the directory.

    Raises:
        CondistillError: a model is missing or has other shapes; the message names the file and the config.
    """
    found = {}
    for name, model in models.items():
        if name in replaced or not isinstance(model, nn.Module):
            continue
        config = str(directory / name / "config.json")
        converted = converted_shapes(name, model, header, config)
        if converted:
            check_shapes(name, converted, _needed_shapes(model), header, config, setting=_SETTING)
        elif not weight_files(directory / name, index[name][0], None):
            raise _missing(name, index[name][1], header, directory)
        found[name] = bool(converted)
    return found


def _needed_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a model that a file must have; one that is another too is named once."""
    again = {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()
    return {name: shape for name, shape in shapes(model.state_dict()).items() if name not in again}


def _missing(name: str, class_name: str, header: Header, directory: Path) -> CondistillError:
    remedy = "set teacher.vae, or " if name == "vae" else ""
    place = f"{directory / name}" if directory.parent != SHIPPED else f"its folder {name} in a directory of configs"
    return CondistillError(
        f"{_SETTING} {header.file} has no {name} (a {class_name}); {remedy}give a file that has it, or put its weights "
        f"as safetensors into {place} (teacher.config)"
    )


_DTYPES = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_file(
    file: Path,
    kind: Any,
    configs: Path,
    *,
    index: Mapping[str, Any],
    models: Mapping[str, Any],
    given: Mapping[str, Any],
) -> Any:
    """Load a pipeline in one file with diffusers, in the dtype of most of its weights.

    Args:
        kind: class of the pipeline.
        configs: directory of its configs and tokenizers.
        index: of the pipeline.
        models: its models, on the meta device.
        given: components that are not read from the file.

    Raises:
        CondistillError: it cannot be loaded.
    """
    header = read_pipeline_header(file)
    found = check_parts(header, configs, index, models, replaced={*given})
    dtype = _DTYPES[next(iter(header.dtypes()))]
    elsewhere = {name: load_component(configs, name, index[name], dtype) for name, is_in in found.items() if not is_in}
    try:
        pipeline = kind.from_single_file(
            str(file), config=str(configs), local_files_only=True, torch_dtype=dtype, **elsewhere, **given
        )
    except Exception as error:  # a file that is not what it seems can raise any exception
        raise CondistillError(f"{_SETTING} {file} cannot be loaded: {first_line(error)}") from error
    for name, model in pipeline.components.items():
        if isinstance(model, nn.Module):
            tie_again(name, model, file)
    return pipeline


def tie_again(name: str, model: nn.Module, file: Path) -> None:
    """Let weights of a model share memory where a file has them once; diffusers leaves the others without values.

    Raises:
        CondistillError: a weight has no value.
    """
    if any(weight.is_meta for weight in model.parameters()) and hasattr(model, "tie_weights"):
        model.tie_weights()  # type: ignore[operator]
    if empty := next((key for key, weight in model.named_parameters() if weight.is_meta), None):
        raise CondistillError(f"{_SETTING} {file} has no {empty} of the {name}; download or save it again")


def check_vae_file(file: Path, model: nn.Module, config_file: str) -> torch.dtype:
    """Return the dtype of an autoencoder in one safetensors file, which must fit a model on the meta device.

    Raises:
        CondistillError: it holds no autoencoder, or one of another shape.
    """
    header = read_header(file, setting="teacher.vae")
    converted = converted_shapes("vae", model, header, config_file)
    if not converted:
        raise CondistillError(f"teacher.vae {file} has no autoencoder; give a file that has one")
    check_shapes("vae", converted, shapes(model.state_dict()), header, config_file, setting="teacher.vae")
    return _DTYPES[next(iter(header.dtypes()))]


def load_vae_file(file: Path, configs: Path) -> Any:
    """Load an autoencoder in one safetensors file, of the class and shapes of the one in a pipeline's directory.

    Raises:
        CondistillError: it does not fit that config.
    """
    import diffusers

    config = read_vae_config(configs / "vae")
    kind = getattr(diffusers, config["_class_name"])
    with torch.device("meta"):
        model = kind.from_config(config)
    dtype = check_vae_file(file, model, str(configs / "vae" / "config.json"))
    return kind.from_single_file(
        str(file), config=str(configs), subfolder="vae", local_files_only=True, torch_dtype=dtype
    )
