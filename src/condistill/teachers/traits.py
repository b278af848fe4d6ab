"""Records in which a family declares how its denoiser and its pipeline are built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

GuidanceMode = Literal["cfg", "embedded", "none"]
"""How a pipeline's call guides its denoiser: two evaluations per step, a scale as an input, or not at all."""


@dataclass(frozen=True)
class LayerList:
    """A list of layers in a denoiser, which students can shorten."""

    name: str
    """Attribute of the denoiser, such as `transformer_blocks`."""
    count_key: str
    """Config key that holds the number of layers."""
    index_keys: tuple[str, ...] = ()
    """Config keys that hold indices of layers in this list."""
    joint_class: str | None = None
    """Class of the layers, where they process text and image together and return (text, image)."""
    keeps_last: bool = False
    """Whether the last layer has an architecture of its own, so that every student must keep it."""


@dataclass(frozen=True)
class GuidanceSpec:
    """How the pipelines of a family guide their denoisers."""

    config_key: str | None = None
    """Key of the denoiser's config that is set where the guidance scale is an input of the denoiser."""
    projection: str | None = None
    """Path of the layer that projects the embedded guidance scale. Where it is None, guidance cannot be distilled into
    a denoiser of this class, because diffusers cannot add such a layer."""
    otherwise: Literal["cfg", "none"] = "cfg"
    """How the pipeline guides a denoiser that does not take the guidance scale as an input."""
    default_scale: float = 7.5
    """Guidance scale of a new recipe."""
    scale_range: tuple[float, float] | None = None
    """Range of scales in a new recipe, for families in which the guidance scale is usually an input."""

    def mode(self, config: Mapping[str, Any]) -> GuidanceMode:
        """Return how the pipeline's call guides a denoiser with this config."""
        if self.config_key is not None and config.get(self.config_key):
            return "embedded"
        return self.otherwise


@dataclass(frozen=True)
class CallExample:
    """A call of the pipeline for one image, as Python source for the model card."""

    arguments: str = "{prompt}"
    """Arguments of the call; `{prompt}` stands for a string literal."""
    imports: str = ""
    """Import statements that the arguments need, each with its line break."""
    takes_size: bool = True
    """Whether the call takes `height` and `width`."""
