"""Features of teacher and student: pairs of layers, recorders of their outputs, and 1x1 maps between their widths."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from torch import Tensor, nn

from condistill.config.distill import FeatureKind
from condistill.errors import CondistillError, nearest
from condistill.profiling.shapes import ShapesOnly, example_inputs
from condistill.students.blocks import source_of
from condistill.students.depth import Kept, image_stream
from condistill.teachers.registry import is_joint_layer
from condistill.utils.meta import build_on_meta, plain_config

_ATTENTIONS = {"self_attention": "attn1", "cross_attention": "attn2", "attention_maps": "attn2"}
"""The attention's name in a transformer block of diffusers, by kind of feature."""


@dataclass(frozen=True)
class FeaturePair:
    """A layer of the teacher and the student's layer that is compared with it, as module paths."""

    teacher: str
    student: str
    name: str


class FeatureRecorder:
    """Records the last output of each module, or the map of each attention: `with recorder: model(...)`.

    Outside of the `with` nothing is recorded, so a backward with gradient checkpointing, which runs layers again,
    changes nothing. Checkpointing must be non-reentrant, as it is in diffusers.
    """

    def __init__(self, modules: Sequence[nn.Module], features: FeatureKind = "stages") -> None:
        self._maps = features == "attention_maps"
        self._outputs: list[Tensor | None] = [None] * len(modules)
        self._kinds = [type(module).__name__ for module in modules]
        self._recording = self._removed = False
        self._handles = [
            module.register_forward_hook(self._hook(i), with_kwargs=True) for i, module in enumerate(modules)
        ]

    def _hook(self, index: int) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            if self._recording:
                self._outputs[index] = attention_map(module, *args, **kwargs) if self._maps else _tensor(module, output)

        return record

    @property
    def features(self) -> list[Tensor]:
        """The recorded outputs, in the order of the modules.

        Raises:
            CondistillError: a module did not run.
        """
        for index, output in enumerate(self._outputs):
            if output is None:
                raise CondistillError(
                    f"layer {index} of the recorder ({self._kinds[index]}) has no output; "
                    "run the model inside `with recorder:`"
                )
        return [output for output in self._outputs if output is not None]

    def clear(self) -> None:
        """Release the recorded outputs and their graphs."""
        self._outputs = [None] * len(self._outputs)

    def remove(self) -> None:
        """Release the outputs, and remove the hooks from the modules."""
        self.clear()
        for handle in self._handles:
            handle.remove()
        self._removed = True

    def __enter__(self) -> FeatureRecorder:
        if self._removed:
            raise CondistillError("the recorder's hooks were removed; make a new FeatureRecorder")
        self.clear()
        self._recording = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._recording = False


def _tensor(layer: nn.Module, output: Any) -> Tensor:
    """Return a layer's output with the channels second: `[B, C, h, w]` of images, `[B, C, tokens]` of tokens."""
    output = image_stream(layer, output)
    output = getattr(output, "sample", output)
    if not isinstance(output, Tensor):
        raise CondistillError(
            f"a layer whose output is a {type(output).__name__} cannot be compared; choose one whose output is a tensor"
        )
    return output.transpose(1, 2) if output.dim() == 3 else output


def attention_map(
    attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any
) -> Tensor:
    """Return the attention weights of each position to each text token, mean over heads: `[B, tokens, positions]`.

    Args:
        attention: a diffusers `Attention`; the other arguments are those of its forward.
    """
    query = attention.head_to_batch_dim(attention.to_q(hidden_states))
    key = attention.head_to_batch_dim(attention.to_k(encoder_hidden_states))
    weights: Tensor = attention.get_attention_scores(query, key, attention_mask)
    return weights.view(-1, attention.heads, *weights.shape[1:]).mean(1).transpose(1, 2)


def layer_weights(weights: Mapping[str, float] | None, pairs: Sequence[FeaturePair]) -> list[float]:
    """Return the weight of each pair: that of the longest name in `weights` that is, or contains, its teacher layer.

    The weight of a pair without a name is 1.

    Args:
        weights: by module path in the teacher.

    Raises:
        CondistillError: a name has no layer that is compared.
    """
    weights = weights or {}

    def contains(name: str, layer: str) -> bool:
        return f"{layer}.".startswith(f"{name}.")

    for name in weights:
        if not any(contains(name, pair.teacher) for pair in pairs):
            layers = [pair.teacher for pair in pairs]
            raise CondistillError(
                f"distill.loss.feature_layer_weights names {name!r}, and no such layer is compared"
                f"{nearest(name, layers)}"
            )
    names = [max((name for name in weights if contains(name, pair.teacher)), key=len, default="") for pair in pairs]
    return [weights.get(name, 1.0) for name in names]


def feature_pairs(
    teacher: UNet2DConditionModel,
    student: UNet2DConditionModel,
    *,
    sources: Mapping[str, str] | None = None,
    features: FeatureKind = "stages",
) -> tuple[FeaturePair, ...]:
    """Return the layers that are compared: the end of every down and up block, and of the mid block, or attentions.

    Where layers were removed the mid block is left out, as in BK-SDM. A student with fewer stages than its teacher has
    no downsampler at its innermost stage, so the last attention of that stage is compared (the last resnet in a block
    without attention), and its up blocks are paired with the teacher's last ones.

    Args:
        sources: from `layer_sources`, where layers were removed.

    Raises:
        CondistillError: the student has no attention of the kind.
    """
    if features != "stages":
        return _attention_pairs(student, _ATTENTIONS[features], sources or {})
    shift = len(teacher.down_blocks) - len(student.down_blocks)
    innermost = len(student.down_blocks) - 1
    pairs = []
    for i in range(len(student.down_blocks)):
        path = f"down_blocks.{i}"
        inside = shift > 0 and i == innermost
        pairs.append((_last_layer(teacher, path), _last_layer(student, path)) if inside else (path, path))
    if not sources and teacher.mid_block is not None and student.mid_block is not None:
        pairs.append(("mid_block", "mid_block"))
    pairs += [(f"up_blocks.{i + shift}", f"up_blocks.{i}") for i in range(len(student.up_blocks))]
    return tuple(FeaturePair(teacher=t, student=s, name=s) for t, s in pairs)


def _attention_pairs(student: UNet2DConditionModel, kind: str, sources: Mapping[str, str]) -> tuple[FeaturePair, ...]:
    """Return every attention of a kind in the student, with its source in the teacher."""
    paths = [path for path, _ in student.named_modules() if path.endswith(f".{kind}")]
    if not paths:
        raise CondistillError(f"the student has no {kind}; set distill.loss.features to stages")
    return tuple(FeaturePair(teacher=source_of(path, sources), student=path, name=path) for path in paths)


def layer_pairs(
    teacher: ModelMixin, student: ModelMixin, kept: Kept, *, features: FeatureKind = "stages"
) -> tuple[FeaturePair, ...]:
    """Return the layers of a shortened transformer that are compared, or the attentions in them.

    A student's layer replaces the teacher's layers from its source up to the next source: its output is compared with
    that of the last of them. The attention of a joint block, over text and image together, counts as self-attention.

    Raises:
        CondistillError: the student has no attention of the kind, or its attention maps cannot be recorded.
    """
    pairs = []
    for name, layers in kept.items():
        blocks = getattr(student, name)
        if features == "stages":
            ends = [following - 1 for following in (*layers[1:], len(getattr(teacher, name)))]
            pairs += [(f"{name}.{end}", f"{name}.{i}") for i, end in enumerate(ends)]
        elif features != "attention_maps":
            attentions = [(i, _attention_of(block, features)) for i, block in enumerate(blocks)]
            pairs += [(f"{name}.{layers[i]}.{part}", f"{name}.{i}.{part}") for i, part in attentions if part]
    if not pairs:
        raise CondistillError(
            f"{features} cannot be compared in a {type(student).__name__}; set distill.loss.features to stages"
        )
    return tuple(FeaturePair(teacher=t, student=s, name=s) for t, s in pairs)


def _attention_of(block: nn.Module, features: FeatureKind) -> str | None:
    """Return the name of a transformer block's attention of a kind, or None if it has none."""
    if is_joint_layer(block):  # where there is a second attention, it is over the image only
        return "attn" if features == "self_attention" else None
    return _ATTENTIONS[features] if getattr(block, _ATTENTIONS[features], None) is not None else None


def _last_layer(denoiser: UNet2DConditionModel, path: str) -> str:
    block = denoiser.get_submodule(path)
    part = "attentions" if getattr(block, "attentions", None) else "resnets"
    return f"{path}.{part}.{len(getattr(block, part)) - 1}"


def resolve(denoiser: nn.Module, path: str) -> nn.Module:
    """Return the module at a path.

    Raises:
        CondistillError: there is none.
    """
    try:
        return denoiser.get_submodule(path)
    except AttributeError:
        raise CondistillError(f"there is no layer {path!r} in this {type(denoiser).__name__}") from None


def feature_shapes(denoiser: ModelMixin, paths: Sequence[str], *, size: int | tuple[int, int]) -> list[torch.Size]:
    """Return the shapes of layers' outputs, computed on the meta device: `[1, C, h, w]` or `[1, C, tokens]`.

    Args:
        size: height and width of the latents.

    Raises:
        CondistillError: there is no such layer, or it has no output of its own.
    """
    kind: Any = type(denoiser)
    shapes = _output_shapes(kind, json.dumps(plain_config(denoiser)), size)
    for path in paths:
        resolve(denoiser, path)
        if path not in shapes:
            raise CondistillError(f"the layer {path!r} has no output of its own; compare one of the layers inside it")
    return [shapes[path] for path in paths]


@lru_cache(maxsize=64)  # a forward pass on the meta device takes a second for Stable Diffusion
def _output_shapes(kind: type[ModelMixin], config: str, size: int | tuple[int, int]) -> dict[str, torch.Size]:
    copy = build_on_meta(kind, json.loads(config))
    shapes: dict[str, torch.Size] = {}

    def record_shape(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
            shapes[name] = _tensor(module, output).shape

        return hook

    for name, module in copy.named_modules():
        module.register_forward_hook(record_shape(name))
    with torch.no_grad(), ShapesOnly():
        copy(**example_inputs(copy, size=size))
    return shapes


def check_pairs(
    teacher: ModelMixin,
    student: ModelMixin,
    pairs: Sequence[FeaturePair],
    maps: Sequence[nn.Module] | nn.ModuleList | None = None,
    *,
    size: int | tuple[int, int] | None = None,
) -> list[tuple[int, int]]:
    """Check that every pair can be compared, and return (teacher channels, student channels) of each.

    Args:
        maps: one map per pair, from student to teacher channels, to check as well.
        size: height and width of the latents; by default the smallest that every stage can halve, or 2x2 patches.

    Raises:
        CondistillError: a pair's resolutions differ, or a map does not fit; the message names both layers.
    """
    size = _small_size(teacher) if size is None else size
    teachers = feature_shapes(teacher, [pair.teacher for pair in pairs], size=size)
    students = feature_shapes(student, [pair.student for pair in pairs], size=size)
    if maps is not None and len(maps) != len(pairs):
        raise CondistillError(f"there are {len(maps)} maps for {len(pairs)} pairs of layers; give one per pair")
    for index, (pair, t, s) in enumerate(zip(pairs, teachers, students, strict=True)):
        if t[2:] != s[2:]:
            raise CondistillError(
                f"the output of the teacher's {pair.teacher} is {_resolution(t)} and that of the student's "
                f"{pair.student} is {_resolution(s)} for latents of {size}; compare layers of equal resolution"
            )
        channels = _map_channels(maps[index]) if maps is not None else (s[1], t[1])
        if channels != (s[1], t[1]) and not (channels is None and s[1] == t[1]):
            effect = "an identity" if channels is None else f"from {channels[0]} to {channels[1]} channels"
            raise CondistillError(
                f"the map of {pair.name} is {effect}; the student's {pair.student} has {s[1]} channels "
                f"and the teacher's {pair.teacher} has {t[1]}"
            )
    return [(t[1], s[1]) for t, s in zip(teachers, students, strict=True)]


def _small_size(denoiser: ModelMixin) -> int:
    if isinstance(denoiser, UNet2DConditionModel):
        return int(2 ** len(denoiser.down_blocks))
    return 2 * int(denoiser.config.get("patch_size") or 1)


def _resolution(shape: torch.Size) -> str:
    return "x".join(str(length) for length in shape[2:])


def _map_channels(mapping: nn.Module) -> tuple[int, int] | None:
    return (mapping.in_channels, mapping.out_channels) if isinstance(mapping, nn.Conv1d | nn.Conv2d) else None


def make_maps(
    teacher_channels: Sequence[int], student_channels: Sequence[int], *, features: FeatureKind = "stages"
) -> nn.ModuleList:
    """Return a 1x1 convolution from student to teacher channels per pair, or an identity where they are equal.

    Attention maps get identities: their channels are the text tokens, which are the same in both. Maps are used in
    training only.
    """
    convolution = nn.Conv2d if features == "stages" else nn.Conv1d
    return nn.ModuleList(
        nn.Identity() if s == t or features == "attention_maps" else convolution(s, t, kernel_size=1)
        for t, s in zip(teacher_channels, student_channels, strict=True)
    )
