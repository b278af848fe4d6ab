"""A teacher on the meta device, built from the configs of its pipeline; weights are neither read nor needed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.configs import check_sample_size, check_sizes, checked_count, using_config
from condistill.teachers.family import Family
from condistill.teachers.locate import family_class, is_file, load_options, origin_of, read_index
from condistill.teachers.lora import read_lora
from condistill.teachers.noise.schedule import check_no_consistency_model
from condistill.teachers.replaced import build_scheduler, read_vae_config, vae_directory
from condistill.teachers.single_file import check_parts, check_vae_file, read_pipeline_header
from condistill.utils.meta import matmul_parameters, parameters
from condistill.utils.quiet import quiet_libraries
from condistill.utils.text import first_line

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin
    from transformers import PreTrainedModel

_PREPROCESSORS = ("Tokenizer", "TokenizerFast", "Processor", "Extractor")
_DEFAULT_TOKENIZER_LENGTH = 77
"""Length of CLIP's tokenizer, assumed where a pipeline's directory has no tokenizer."""


@dataclass(frozen=True)
class Skeleton:
    """A teacher on the meta device."""

    name: str
    family: Family

    @property
    def denoiser(self) -> ModelMixin:
        """The denoiser, on the meta device."""
        return self.family.denoiser

    @cached_property
    def components(self) -> dict[str, int]:
        """Number of parameters of every model in the pipeline, including the denoiser."""
        components = self.family.pipeline.components.items()
        return {name: parameters(model) for name, model in components if isinstance(model, nn.Module)}

    @cached_property
    def text_encoders(self) -> list[tuple[PreTrainedModel, int]]:
        """Each text encoder with the number of tokens that it reads of a prompt."""
        length, found = self.family.text_length, []
        for name, model in self.family.pipeline.components.items():
            if name.startswith("text_encoder") and isinstance(model, nn.Module):
                limit: Any = getattr(model.config, "max_position_embeddings", None) or length
                found.append((model, min(limit, length)))
        return found

    @cached_property
    def text_macs(self) -> int:
        """Multiply-accumulates of encoding one prompt: every matrix once per token, without attention."""
        return sum(tokens * matmul_parameters(encoder) for encoder, tokens in self.text_encoders)


class _Preprocessor:
    """A stand-in for a tokenizer: costs depend only on the number of its tokens."""

    def __init__(self, model_max_length: int) -> None:
        self.model_max_length = model_max_length
        self.padding_side = "right"


def teacher_skeleton(settings: TeacherSettings, *, only_sampled: bool = False) -> Skeleton:
    """Build the teacher with every component on the meta device.

    Args:
        only_sampled: whether it only generates images; a consistency model can, but cannot teach.

    Raises:
        CondistillError: a component is missing or unknown, or the family does not support the pipeline.
    """
    with quiet_libraries():
        location, index = read_index(settings)
        family = family_class(settings, index)
        pipeline = _Builder(family, location, load_options(location, settings), settings).pipeline(index)
        _check_parts(settings, location, index, pipeline)
        with using_config(f"the scheduler_config.json or another config of the teacher {location}"):
            made = family(pipeline, resolution=settings.resolution)
            made.origin = origin_of(settings, location)
            made.check_configs()
        if not only_sampled:
            check_no_consistency_model(pipeline.scheduler)
        return Skeleton(settings.pipeline, made)


def _check_parts(settings: TeacherSettings, location: Path | str, index: Mapping[str, Any], pipeline: Any) -> None:
    """Check that a teacher in one file has every model, and that its LoRAs and its autoencoder fit the pipeline."""
    components = pipeline.components
    if is_file(settings):
        assert isinstance(location, Path)
        header = read_pipeline_header(Path(settings.pipeline).expanduser())
        check_parts(header, location, index, components, replaced={"vae"} if settings.vae else set())
    if settings.vae is not None and vae_directory(settings.vae) is None:
        check_vae_file(Path(settings.vae), components["vae"], f"vae/config.json of {location}")
    for lora in settings.loras:
        read_lora(type(pipeline), lora, components)


@dataclass(frozen=True)
class _Builder:
    """Builds a pipeline and its components from their configs."""

    family: type[Family]
    location: Path | str
    options: Mapping[str, Any]
    """Arguments that load a config from the location; see `load_options`."""
    settings: TeacherSettings

    def pipeline(self, index: Mapping[str, Any]) -> DiffusionPipeline:
        """Build a pipeline of the class that the index names, with its components on the meta device."""
        components: dict[str, Any] = {}
        for name, value in index.items():
            if name.startswith("_"):
                continue
            is_component = isinstance(value, list) and len(value) == 2 and all(isinstance(v, str | None) for v in value)
            components[name] = self.component(name, *value) if is_component else value
        cls = self.family.pipeline_type(index["_class_name"])
        if denoiser := components.get(self.family.denoiser_name):
            file = self._file(self.family.denoiser_name, "config.json")
            check_sample_size(denoiser.config, index["_class_name"], file, resolution=self.settings.resolution)
        arguments = {name: value for name, value in components.items() if name in signature(cls).parameters}
        with using_config(self._file("model_index.json")):
            return cls(**arguments)

    def component(self, name: str, library: str | None, class_name: str | None) -> Any:
        """Build one component: a model on the meta device, a scheduler, or a stand-in for a tokenizer."""
        from diffusers import ModelMixin
        from transformers import PreTrainedModel

        if library is None or class_name is None:
            return None
        if name == "scheduler" and self.settings.scheduler is not None:
            return build_scheduler(self.settings.scheduler)
        if name == "vae" and self.settings.vae is not None and (folder := vae_directory(self.settings.vae)):
            return self._replaced_vae(folder)
        if class_name.endswith(_PREPROCESSORS):
            return _Preprocessor(_tokenizer_length(self.location, name))
        cls: Any = getattr(self._library(library), class_name, None)
        if cls is None:
            raise CondistillError(
                f"the teacher's {name} is a {library}.{class_name}, which is neither in diffusers nor in transformers "
                "as installed here; code that comes with a pipeline is never run"
            )
        place = {"subfolder": name, **self.options}
        is_model = issubclass(cls, ModelMixin | PreTrainedModel)
        file = self._file(name, "config.json" if is_model else "scheduler_config.json")
        with using_config(file):
            try:
                if issubclass(cls, PreTrainedModel):
                    config, kind = cls.config_class.get_config_dict(self.location, **place)[0], cls.config_class
                else:
                    config, kind = cls.load_config(self.location, **place), cls
            except (OSError, ValueError) as error:
                raise CondistillError(
                    f"the config of the teacher's {name} cannot be read: {first_line(error)}"
                ) from error
        with using_config(file, kind, config):
            check_sizes(kind, config, file)
            if issubclass(cls, PreTrainedModel):
                config = cls.config_class.from_pretrained(self.location, **place)
            if not is_model:
                return cls.from_pretrained(self.location, **place)  # a scheduler
            with torch.device("meta"):
                return cls.from_config(config) if issubclass(cls, ModelMixin) else cls._from_config(config)

    def _replaced_vae(self, folder: Path) -> Any:
        """Build the autoencoder that replaces the pipeline's, on the meta device."""
        import diffusers

        config = read_vae_config(folder)
        kind = getattr(diffusers, config["_class_name"])
        file = str(folder / "config.json")
        with using_config(file, kind, config), torch.device("meta"):
            check_sizes(kind, config, file)
            return kind.from_config(config)

    def _file(self, *parts: str) -> str:
        """Return the path of a file of the pipeline, for messages."""
        return "/".join([str(self.location), *parts])

    def _library(self, name: str) -> Any:
        """Return the module that holds a component's class: of diffusers, transformers or the family's own package."""
        import diffusers
        import transformers

        own_package = self.family.__module__.split(".")[0]
        if (
            name.split(".", maxsplit=1)[0] == own_package
        ):  # installed as a plugin, so not code that comes with a pipeline
            return importlib.import_module(name)
        libraries = {"diffusers": diffusers, "transformers": transformers}
        return libraries.get(name) or getattr(diffusers.pipelines, name, None)


def _tokenizer_length(location: Path | str, name: str) -> int:
    """Return the length to which a tokenizer truncates prompts; for a pipeline on the hub, that of CLIP."""
    file = Path(location) / name / "tokenizer_config.json"
    if not file.is_file():
        return _DEFAULT_TOKENIZER_LENGTH
    with using_config(str(file)):
        length = json.loads(file.read_text(encoding="utf-8")).get("model_max_length")
    if length is None:
        length = 1e30  # what transformers sets
    return min(checked_count(int(length) if length == 1e30 else length, "model_max_length", str(file)), 10**6)
