"""Which U-Nets ComfyUI loads: what its detection matches, and what its code of the U-Net has no choice of.

Facts from comfy/model_detection.py, comfy/supported_models.py and comfy/sd.py of October 2025. It counts stages, layers
and transformer blocks, so that layers may be missing; it has no choice of widths and heads, and it matches the
transformer blocks of an SDXL with lists.
"""

from __future__ import annotations

from condistill.export.single_file.clip import check_text_encoders
from condistill.export.single_file.unet_structure import (
    Kind,
    UNetStructure,
    complete,
    head_counts,
    kind_of,
    unknown_settings,
)
from condistill.export.single_file.vae import check_vae
from condistill.export.source import Config, Shape

_WIDTH = 320
_CONTEXT: dict[Kind, int] = {"sd1": 768, "sd2": 1024, "sdxl": 2048}
_TITLES: dict[Kind, str] = {"sd1": "Stable Diffusion 1", "sd2": "Stable Diffusion 2", "sdxl": "SDXL"}
_HEADS = 8
"""In every attention of Stable Diffusion 1; later U-Nets have heads of 64 channels."""
_HEAD_CHANNELS = 64
_SDXL_CONDITION = 2816
_SDXL_DEPTHS = {
    (0, 0, 2, 2, 10, 10): "SDXL",
    (0, 0, 2, 2, 4, 4): "SSD-1B",
    (0, 0, 1, 1, 2, 2): "Segmind-Vega",
    (0, 2, 5): "koala-700m",
    (0, 2, 6): "koala-1b",
}
"""Transformer blocks of the layers on the way down, in a row; the way up and the middle block are counted."""
_IN_CHANNELS = (4, 9)
"""Of text-to-image and of inpainting."""
_SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_SCHEDULE_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}


def check_comfyui(shape: Shape) -> tuple[str, ...]:
    """Return the reasons why ComfyUI does not load a pipeline with a U-Net; empty if it does."""
    config = complete(shape.denoiser)
    kind = kind_of(config)
    if reasons := (*unknown_settings(config), *_check_widths(config)):
        return reasons
    return (
        *check_heads(config, kind),
        *_check_kind(config, kind),
        *check_schedule(shape),
        *check_text_encoders(shape, kind),
        *check_vae(shape, kind),
    )


def _check_widths(config: Config) -> tuple[str, ...]:
    widths = list(config["block_out_channels"])
    if widths[0] != _WIDTH or any(width % _WIDTH for width in widths):
        return (f"its stages have {_listed(widths)} channels, and ComfyUI's U-Nets have {_WIDTH} and multiples of it",)
    return ()


def check_heads(config: Config, kind: Kind) -> tuple[str, ...]:
    """Return how the attention heads of a U-Net differ from those that programs compute from its widths."""
    structure = UNetStructure.of(config)
    widths = structure.widths
    expected = [_HEADS if kind == "sd1" else width // _HEAD_CHANNELS for width in widths]
    with_attention = [any(down) or any(up) for down, up in zip(structure.down, structure.up[::-1], strict=True)]
    with_attention[-1] |= bool(structure.mid)
    wrong = [
        (heads, wanted)
        for heads, wanted, counts in zip(head_counts(config), expected, with_attention, strict=True)
        if counts and heads != wanted
    ]
    if not wrong:
        return ()
    return (f"its stages have {_listed([each for each, _ in wrong])} attention heads instead of "
            f"{_listed([each for _, each in wrong])}",)  # fmt: skip


def _check_kind(config: Config, kind: Kind) -> tuple[str, ...]:
    """Return how a U-Net differs from the classes that detection knows, none of which would match."""
    reasons = []
    context, title = config["cross_attention_dim"], _TITLES[kind]
    structure = UNetStructure.of(config)
    if context != _CONTEXT[kind]:
        reasons.append(
            f"its text has {context} channels (cross_attention_dim) instead of the {_CONTEXT[kind]} of {title}"
        )
    if config["in_channels"] not in _IN_CHANNELS:
        reasons.append(f"it has {config['in_channels']} input channels instead of 4, or 9 for inpainting")
    if not any(any(depths) for depths in structure.down):
        reasons.append("it has no attention on the way down, where the kind of U-Net is detected")
    if kind != "sdxl":
        return tuple(reasons)
    if config["use_linear_projection"] is not True:
        reasons.append("its attention has convolutions as projections instead of linear layers")
    if (size := config["projection_class_embeddings_input_dim"]) != _SDXL_CONDITION:
        reasons.append(f"its condition has {size} channels instead of {_SDXL_CONDITION}")
    depths = tuple(depth for stage in structure.down for depth in stage)
    if depths not in _SDXL_DEPTHS:
        known = ", ".join(f"{list(each)} ({name})" for each, name in _SDXL_DEPTHS.items())
        reasons.append(f"its layers have {list(depths)} transformer blocks, and ComfyUI has classes for {known}")
    return tuple(reasons)


def check_schedule(shape: Shape) -> tuple[str, ...]:
    """Return how a noise schedule differs from the one that programs have for checkpoints."""
    scheduler = shape.components.get("scheduler")
    if scheduler is None:
        return ()
    found = {name: scheduler.get(name, default) for name, default in _SCHEDULE_DEFAULTS.items()}
    differences = [
        f"{name} {found[name]} instead of {value}" for name, value in _SCHEDULE.items() if found[name] != value
    ]
    if scheduler.get("trained_betas") is not None:
        differences.append("trained_betas")
    if (prediction := scheduler.get("prediction_type", "epsilon")) not in ("epsilon", "v_prediction"):
        differences.append(f"prediction_type {prediction} instead of epsilon or v_prediction")
    return (f"its scheduler has {', '.join(differences)}",) if differences else ()


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values[:-1])) + f" and {values[-1]}" if len(values) > 1 else str(values[0])
