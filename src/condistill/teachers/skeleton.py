"""A teacher of shapes only, from the configs of its pipeline: no weight is read, and none needs to be there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.family import Family
from condistill.teachers.load import family_class, read_index
from condistill.utils.meta import parameters, weights_of_products
from condistill.utils.quiet import quiet_libraries

_PREPROCESSORS = ("Tokenizer", "TokenizerFast", "Processor", "Extractor")
_TOKENIZER_LENGTH = 77
"""Of CLIP's tokenizer: what is assumed where a pipeline's directory has none."""


@dataclass(frozen=True)
class Skeleton:
    """A teacher on the meta device, behind the contract of its family."""

    name: str
    family: Family

    @property
    def denoiser(self) -> Any:
        """Of shapes only."""
        return self.family.denoiser

    @cached_property
    def components(self) -> dict[str, int]:
        """Parameters of every part of the pipeline that has some, the denoiser among them."""
        parts = self.family.pipeline.components.items()
        return {name: parameters(part) for name, part in parts if isinstance(part, nn.Module)}

    @cached_property
    def text_encoders(self) -> list[tuple[Any, int]]:
        """Each text encoder, and how many tokens of a prompt it reads."""
        length, found = self.family.text_length, []
        for name, part in self.family.pipeline.components.items():
            if name.startswith("text_encoder") and isinstance(part, nn.Module):
                own: Any = getattr(part.config, "max_position_embeddings", None) or length
                found.append((part, min(own, length)))
        return found

    @cached_property
    def text_macs(self) -> int:
        """Multiply-accumulates of encoding one prompt: every matrix once per token, attention left out."""
        return sum(tokens * weights_of_products(encoder) for encoder, tokens in self.text_encoders)


class _Preprocessor:
    """Stands for a tokenizer: how many tokens it makes of a prompt is all that a cost depends on."""

    def __init__(self, model_max_length: int) -> None:
        self.model_max_length = model_max_length
        self.padding_side = "right"


def teacher_skeleton(settings: TeacherSettings) -> Skeleton:
    """The teacher with every component on the meta device.

    Raises:
        CondistillError: says what of the pipeline is missing or not known.
    """
    with quiet_libraries():
        place, index = read_index(settings)
        family = family_class(settings, index)
        pipeline = _pipeline(place, index, settings.revision)
        return Skeleton(settings.pipeline, family(pipeline, resolution=settings.resolution))


def _pipeline(place: Path | str, index: dict[str, Any], revision: str | None) -> Any:
    """The pipeline's own class, holding components of shapes only."""
    import diffusers

    components: dict[str, Any] = {}
    for name, value in index.items():
        if name.startswith("_"):
            continue
        is_component = isinstance(value, list) and len(value) == 2 and all(isinstance(v, str | None) for v in value)
        components[name] = _component(place, name, *value, revision=revision) if is_component else value
    kind = getattr(diffusers, index["_class_name"])
    return kind(**{name: value for name, value in components.items() if name in signature(kind).parameters})


def _component(place: Path | str, name: str, library: str | None, kind: str | None, *, revision: str | None) -> Any:
    """One part of a pipeline: models on the meta device, schedulers as they are, of the rest what planning needs."""
    import diffusers
    import transformers

    if library is None or kind is None:
        return None
    if kind.endswith(_PREPROCESSORS):
        return _Preprocessor(_tokenizer_length(place, name))
    homes = {"diffusers": diffusers, "transformers": transformers}
    found: Any = getattr(homes.get(library) or getattr(diffusers.pipelines, library, None), kind, None)
    if found is None:
        raise CondistillError(
            f"the teacher's {name} is a {library}.{kind}, which neither diffusers nor transformers of this machine "
            "know; code that comes with a pipeline is never run"
        )
    try:
        if issubclass(found, diffusers.ModelMixin):
            config = found.load_config(place, subfolder=name, revision=revision)
            with torch.device("meta"):
                return found.from_config(config)
        if issubclass(found, transformers.PreTrainedModel):
            config = found.config_class.from_pretrained(place, subfolder=name, revision=revision)
            with torch.device("meta"):
                return found._from_config(config)
        return found.from_pretrained(place, subfolder=name, revision=revision)  # a scheduler
    except (OSError, ValueError) as error:
        raise CondistillError(
            f"the config of the teacher's {name} cannot be read: {str(error).splitlines()[0]}"
        ) from error


def _tokenizer_length(place: Path | str, name: str) -> int:
    """Tokens a tokenizer cuts a prompt to, as its directory says; of a hub's, CLIP's."""
    file = Path(place) / name / "tokenizer_config.json"
    said = json.loads(file.read_text(encoding="utf-8")).get("model_max_length") if file.is_file() else None
    return min(int(said), 10**6) if said else _TOKENIZER_LENGTH
