"""Read a U-Net back from a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from condistill.export.single_file.restore import restore_by_diffusers
from condistill.export.single_file.unet_structure import UNetStructure
from condistill.export.source import Shape

_PLACE = re.compile(r"model\.diffusion_model\.(input_blocks|output_blocks)\.(\d+)\.(\d)\.(.+)")
_IN_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def restored_unet(shape: Shape, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights of a U-Net under the names of diffusers, by its own conversion where it can.

    It divides the numbers of layers by one count for all blocks. Where blocks have different counts, the places of
    layers are found here, and everything outside of blocks by diffusers.
    """
    layers = UNetStructure.of(shape.denoiser).layers
    if len(set(layers)) == 1:
        uniform = {**shape.denoiser, "layers_per_block": layers[0]}
        return restore_by_diffusers("unet", _with_unet(shape, uniform), tensors)
    found = {name: weight for name, weight in tensors.items() if _PLACE.fullmatch(name) is None}
    first = "model.diffusion_model.input_blocks.0.0."
    found |= {name: weight for name, weight in tensors.items() if name.startswith(first)}
    rest = restore_by_diffusers("unet", _with_unet(shape, {**shape.denoiser, "layers_per_block": 1}), found)
    return {**rest, **_blocks(tensors, layers)}


def _with_unet(shape: Shape, config: Mapping[str, object]) -> Shape:
    return Shape(
        shape.pipeline_class,
        shape.denoiser_class,
        config,
        components={**shape.components, "unet": config},
        classes=shape.classes,
    )


def _blocks(tensors: Mapping[str, Tensor], layers: tuple[int, ...]) -> dict[str, Tensor]:
    """Return the weights in the blocks, counted block by block."""
    inputs = [(block, layer) for block, count in enumerate(layers) for layer in range(count + 1)]
    outputs = [(block, layer) for block, count in enumerate(layers[::-1]) for layer in range(count + 1)]
    found = {}
    for name, weight in tensors.items():
        place = _PLACE.fullmatch(name)
        if place is None or (place[1] == "input_blocks" and place[2] == "0"):
            continue
        is_input = place[1] == "input_blocks"
        block, layer = (inputs[int(place[2]) - 1]) if is_input else outputs[int(place[2])]
        prefix = f"{'down' if is_input else 'up'}_blocks.{block}"
        module, _, part = place[4].rpartition(".")
        if module in ("op", "conv"):
            found[f"{prefix}.{'down' if is_input else 'up'}samplers.0.conv.{part}"] = weight
        elif place[3] == "0":
            found[f"{prefix}.resnets.{layer}.{_IN_RESNET[module]}.{part}"] = weight
        else:
            found[f"{prefix}.attentions.{layer}.{place[4]}"] = weight
    return found
