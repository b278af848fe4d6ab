"""What a U-Net consists of, from its config alone: stages, layers, and the transformer blocks of each attention."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from condistill.export.source import Config

Depths = tuple[int, ...]
"""Transformer blocks in the attention of each layer of a block; 0 where the layer has none."""
Kind = Literal["sd1", "sd2", "sdxl"]
"""Which of the original U-Nets it is like, by what its weights are: projections are linear from 2 on."""

_ORIGINAL: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "out_channels": 4,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
"""The settings that the original code has no choice of."""
_MID = {"UNetMidBlock2DCrossAttn": "attention", "UNetMidBlock2D": "resnet", None: None}
_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


@dataclass(frozen=True)
class UNetStructure:
    """The stages of a U-Net, from the outermost to the innermost, and the blocks of its way up in reverse."""

    widths: tuple[int, ...]
    down: tuple[Depths, ...]
    mid: int | None
    """Transformer blocks of the middle block; 0: one layer without attention; None: there is no middle block."""
    up: tuple[Depths, ...]
    """In the order of evaluation: the innermost stage first."""

    @classmethod
    def of(cls, config: Config) -> UNetStructure:
        """Return the structure of a U-Net whose blocks are all known; see `unknown_settings`."""
        config = complete(config)
        widths = tuple(config["block_out_channels"])
        stages = len(widths)
        layers = _per_stage(config["layers_per_block"], stages)
        blocks = _per_stage(config["transformer_layers_per_block"], stages)
        reverse = config["reverse_transformer_layers_per_block"]
        blocks_up = blocks[::-1] if reverse is None else _per_stage(reverse, stages)
        mid = _MID.get(config["mid_block_type"])
        return cls(
            widths,
            tuple(
                _depths(blocks[i], layers[i]) if _DOWN.get(config["down_block_types"][i]) else (0,) * layers[i]
                for i in range(stages)
            ),
            None if mid is None else _depths(blocks[-1], 1)[0] if mid == "attention" else 0,
            tuple(
                _depths(blocks_up[i], layers[-1 - i] + 1)
                if _UP.get(config["up_block_types"][i])
                else (0,) * (layers[-1 - i] + 1)
                for i in range(stages)
            ),
        )

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of every down block."""
        return tuple(len(depths) for depths in self.down)


def complete(config: Config) -> dict[str, Any]:
    """Return a config of a U-Net with the defaults of its class."""
    from diffusers import UNet2DConditionModel

    defaults = inspect.signature(UNet2DConditionModel.__init__).parameters
    return {name: config.get(name, each.default) for name, each in defaults.items() if name != "self"}


def _per_stage(value: Any, stages: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * stages


def _depths(value: int | Sequence[int], layers: int) -> Depths:
    return tuple(value) if isinstance(value, list | tuple) else (int(value),) * layers  # type: ignore[arg-type]


def kind_of(config: Config) -> Kind:
    """Return which of the original U-Nets a config is like."""
    config = complete(config)
    if config["addition_embed_type"] == "text_time":
        return "sdxl"
    return "sd2" if config["use_linear_projection"] else "sd1"


def unknown_settings(config: Config) -> tuple[str, ...]:
    """Return what a U-Net has that the original code does not, in one reason."""
    config = complete(config)
    expected = dict(_ORIGINAL)
    if kind_of(config) == "sdxl":
        expected |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    found = [
        f"{name} {config[name]} instead of {value}"
        for name, value in expected.items()
        if config[name] != value and (config[name] or value)
    ]
    for name, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
        found += [f"a {kind}, and the original has {' and '.join(known)}" for kind in config[name] if kind not in known]
    if config["mid_block_type"] not in _MID:
        found.append(f"mid_block_type {config['mid_block_type']}")
    if any(_per_stage(config["only_cross_attention"], 1)):
        found.append("attention to the text alone (only_cross_attention)")
    if isinstance(config["cross_attention_dim"], list | tuple):
        found.append("another cross_attention_dim in every stage")
    if config["time_embedding_dim"] not in (None, config["block_out_channels"][0] * 4):
        found.append(f"time_embedding_dim {config['time_embedding_dim']}")
    return (f"its U-Net has {', '.join(found)}",) if found else ()


def head_counts(config: Config) -> list[int]:
    """Return the attention heads of every stage; in these configs `attention_head_dim` is their number."""
    config = complete(config)
    heads = config["num_attention_heads"] or config["attention_head_dim"]
    return _per_stage(heads, len(config["block_out_channels"]))
