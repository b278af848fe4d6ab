"""Load models when they are first needed, and parts that several of them share only once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from condistill.errors import CondistillError
from condistill.studio.sources import ModelSource
from condistill.teachers.defaults import recorded_resolution
from condistill.teachers.family import Family
from condistill.teachers.files import PipelineFiles
from condistill.teachers.load import choose_dtype, family_class, load_teacher, origin_of, read_index
from condistill.teachers.locate import is_plain, variant_of
from condistill.utils.hashing import hash_file
from condistill.utils.quiet import quiet_libraries

_PLACES = ("_name_or_path", "name_or_path", "_diffusers_version", "transformers_version", "dtype", "torch_dtype")
"""Entries of a config that say nothing about what a model computes, once its dtype is known."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, and how it is sampled where the user chooses nothing."""

    name: str
    family: Family
    steps: int
    guidance: float

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of all its parts, those that it shares among them."""
        return sum(_bytes_of(part) for part in self.family.pipeline.components.values() if isinstance(part, nn.Module))


class Models:
    """The models of a studio by name. One thread loads them."""

    def __init__(
        self, sources: Iterable[ModelSource], device: torch.device, *, say: Callable[[str], None] = lambda _: None
    ) -> None:
        """Describe the models; nothing is loaded.

        Args:
            say: called with a line for the user before a model is loaded.
        """
        self.sources = {source.name: source for source in sources}
        self.device = device
        self._say = say
        self._loaded: dict[str, LoadedModel] = {}
        self._shared: dict[tuple[Any, ...], nn.Module] = {}

    def get(self, name: str) -> LoadedModel:
        """Return a model, which is loaded the first time.

        Raises:
            CondistillError: there is none of this name, or it cannot be loaded.
        """
        if name not in self.sources:
            raise CondistillError(f"there is no model {name!r}; the models are {', '.join(self.sources)}")
        if name not in self._loaded:
            self._say(f"{name}: loading {self.sources[name].settings.pipeline}")
            self._loaded[name] = self._load(self.sources[name])
        return self._loaded[name]

    @quiet_libraries()
    def _load(self, source: ModelSource) -> LoadedModel:
        settings, resolution = source.settings, source.settings.resolution
        location, index = read_index(settings)
        if resolution is None:
            resolution = recorded_resolution(origin_of(settings, location))
        settings = settings.model_copy(update={"resolution": resolution})
        keys: dict[str, tuple[Any, ...]] = {}
        if isinstance(location, Path) and is_plain(settings):
            denoiser = family_class(settings, index).denoiser_name
            files = PipelineFiles(location, index, variant_of(settings, location, index))
            keys = part_keys(files, str(choose_dtype(settings.dtype, self.device)), leave_out=denoiser)
        family = load_teacher(
            settings,
            device=self.device,
            only_sampled=True,
            say=self._say,
            components={name: self._shared[key] for name, key in keys.items() if key in self._shared},
        )
        for name, key in keys.items():
            part = getattr(family.pipeline, name, None)
            if isinstance(part, nn.Module):
                self._shared.setdefault(key, part)
        usual = family.default_sampling()
        steps = source.steps or usual.num_inference_steps
        guidance = usual.guidance_scale if source.guidance is None else source.guidance
        return LoadedModel(source.name, family, steps, guidance)


def part_keys(files: PipelineFiles, dtype: str, *, leave_out: str) -> dict[str, tuple[Any, ...]]:
    """Return for each model of a pipeline what its outputs depend on: class, dtype, config and weights.

    Two parts with equal keys are the same, also in pipelines of different folders.

    Args:
        dtype: in which the weights are loaded.
        leave_out: the denoiser, which pipelines do not share.
    """
    keys: dict[str, tuple[Any, ...]] = {}
    for name, paths in files.by_component.items():
        weights = files.weights(name) if name and name != leave_out else []
        if not weights:
            continue
        configs = [_config_text(path) for path in paths if path.name == "config.json"]
        hashes = sorted(hash_file(path) for path in weights)
        keys[name] = (tuple(files.index[name]), dtype, *configs, *hashes)
    return keys


def _config_text(path: Path) -> str:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return str(path)  # loading names what is wrong with it
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if key not in _PLACES}
    return json.dumps(config, sort_keys=True)


def _bytes_of(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())
