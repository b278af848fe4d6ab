"""Students with fewer layers, for transformers whose layers are in lists that their config counts.

Nothing else of a transformer changes: every layer that is kept is a copy of the teacher's, in the teacher's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import init_empty_weights
from diffusers import ModelMixin
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from torch import nn

from condistill.errors import CondistillError, nearest
from condistill.students.width import take
from condistill.utils.meta import build_on_meta, plain_config

_COUNTED_BY = {"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"}
"""Lists of layers as diffusers calls them, and the settings of the config that count them."""
JOINT_BLOCKS = (JointTransformerBlock, FluxTransformerBlock, FluxSingleTransformerBlock)
"""Blocks of text and image together; they return both, the text first."""

Kept = dict[str, tuple[int, ...]]
"""The teacher's layers that a student keeps of each list, ascending."""


def layer_lists(denoiser: ModelMixin) -> dict[str, int]:
    """The lists of layers of a transformer, and how many layers each has.

    Raises:
        CondistillError: none of the lists that are known is there.
    """
    lists = {
        name: len(getattr(denoiser, name))
        for name, count in _COUNTED_BY.items()
        if denoiser.config.get(count) and len(getattr(denoiser, name, ())) == denoiser.config[count]
    }
    if not lists:
        raise CondistillError(
            f"a {type(denoiser).__name__} has no list of layers to shorten; known lists: {', '.join(_COUNTED_BY)}"
        )
    return lists


def listed_layers(denoiser: ModelMixin, keep: Mapping[str, Sequence[int]]) -> Kept:
    """The layers that `student.keep` names; lists that it does not name are whole.

    Raises:
        CondistillError: says which lists and layers there are.
    """
    lists = layer_lists(denoiser)
    for name, indices in keep.items():
        if name not in lists:
            raise CondistillError(f"student.keep names {name!r}, and there is no such list{nearest(name, lists)}")
        given, last = list(indices), lists[name] - 1
        if not given or given != sorted(set(given)) or not 0 <= given[0] <= given[-1] <= last:
            raise CondistillError(
                f"student.keep.{name} is {given}; give at least one of the layers 0 to {last}, each once, ascending"
            )
        if given[-1] != last and _ends_the_text(denoiser, name):
            raise CondistillError(
                f"student.keep.{name} is {given}; the last layer, {last}, must be kept: only it is built to let go "
                "of the text"
            )
    return {name: tuple(keep.get(name, range(count))) for name, count in lists.items()}


def _ends_the_text(denoiser: ModelMixin, name: str) -> bool:
    """Whether the last layer of a list is of another shape than the others: it only reads the text."""
    return bool(getattr(getattr(denoiser, name)[-1], "context_pre_only", False))


def share_of_layers(denoiser: ModelMixin, depth: float, scores: Mapping[str, Sequence[float]] | None = None) -> Kept:
    """`round(depth * n)` of the n layers of every list, at least one: its first and last, and those of most influence.

    Args:
        scores: the influence of every layer; without them the layers that are kept are spread evenly. Where only one
            layer of a list is kept, it is the last.

    Raises:
        CondistillError: no layer would be left out.
    """
    lists = layer_lists(denoiser)
    kept: Kept = {}
    for name, total in lists.items():
        count = max(round(depth * total), 1)
        ends = {0, total - 1} if count > 1 else {total - 1}
        if scores is None:
            inner = {round(i * (total - 1) / (count - 1)) for i in range(count)} if count > 1 else set()
        else:
            influence = scores[name]
            ranked = sorted(set(range(total)) - ends, key=lambda layer: (-influence[layer], layer))
            inner = set(ranked[: max(count - len(ends), 0)])
        kept[name] = tuple(sorted(ends | inner))
    if all(len(kept[name]) == total for name, total in lists.items()):
        layers = " and ".join(f"{total} {name}" for name, total in lists.items())
        raise CondistillError(f"student.depth {depth} of {layers} leaves out no layer; give a smaller one, or keep")
    return kept


def shortened_config(denoiser: ModelMixin, kept: Kept) -> dict[str, Any]:
    """The config of a denoiser with the kept layers only."""
    config = plain_config(denoiser)
    config |= {_COUNTED_BY[name]: len(layers) for name, layers in kept.items()}
    if config.get("dual_attention_layers"):  # of Stable Diffusion 3.5: which layers have a second attention
        dual = config["dual_attention_layers"]
        config["dual_attention_layers"] = tuple(i for i, k in enumerate(kept["transformer_blocks"]) if k in dual)
    return config


def source_of(name: str, kept: Kept) -> str:
    """The teacher's module or weight, as a path, that the student's of this name is a copy of."""
    head, _, rest = name.partition(".")
    if head not in kept or not rest:
        return name
    index, _, rest = rest.partition(".")
    return ".".join(filter(None, (head, str(kept[head][int(index)]), rest)))


def remove_layers(teacher: ModelMixin, kept: Kept) -> ModelMixin:
    """A denoiser with copies of the teacher's kept layers, float32; on meta for a teacher on meta."""
    kind, config = type(teacher), shortened_config(teacher, kept)
    device = next(teacher.parameters()).device
    if device.type == "meta":
        student = build_on_meta(kind, config)
    else:
        with init_empty_weights():  # tables of positions are no weights: they are computed, not on meta
            student = kind.from_config(config)
    given = teacher.state_dict()
    weights = {name: take(given[source_of(name, kept)], ()) for name in student.state_dict()}
    student.load_state_dict(weights, strict=True, assign=True)
    return student.to(device)


def describe_layers(teacher: ModelMixin, kept: Kept, how: str) -> tuple[str, ...]:
    """One line per list of layers, for the model card.

    Args:
        how: the layers that are kept were chosen.
    """
    lines = []
    for name, total in layer_lists(teacher).items():
        layers = kept[name]
        if len(layers) == total:
            lines.append(f"{name}: all {total} layers" if total > 1 else f"{name}: its only layer")
        else:
            noun = "layer" if len(layers) == 1 else "layers"
            lines.append(f"{name}: {noun} {', '.join(map(str, layers))} of {total}, {how}")
    return tuple(lines)


def image_stream(layer: nn.Module, output: Any) -> Any:
    """What a layer says of the image: of several outputs the first; of a joint block's, text and image, the second."""
    if isinstance(output, tuple | list):
        return output[1 if isinstance(layer, JOINT_BLOCKS) else 0]
    return output
