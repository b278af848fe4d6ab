"""Reduce the channels of a U-Net's stages: the student's weights are slices of its teacher's.

The output channels of one layer are the input channels of others. Such channels form a stream, and all layers of a
stream keep the same ones: there is a stream per stage (skip connections included), one inside each resnet, one inside
each transformer, one per attention head and feed-forward layer, and one for the time embedding. A channel's importance
is summed over the layers that write to it: for each the L2 norm of the weights of this output channel, or its share of
the layer's measured scores (see `scores/channels.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from condistill.errors import CondistillError
from condistill.students.layer_map import Selection, WeightSource, take
from condistill.utils.meta import build_on_meta, plain_config


def stage_widths(config: dict[str, Any], width: float | Sequence[int]) -> tuple[int, ...]:
    """Return the channels of every stage of the student; nothing is rounded.

    Args:
        config: the teacher's.
        width: a fraction of the teacher's channels, or the channels of every stage.

    Raises:
        CondistillError: a stage cannot have this width; the message names the nearest valid ones.
    """
    channels: list[int] = list(config["block_out_channels"])
    groups: int = config["norm_num_groups"] or 1
    if isinstance(width, float | int):
        return _fraction_of(channels, groups, width)
    if len(width) != len(channels):
        raise CondistillError(
            f"student.width has {len(width)} numbers, {tuple(width)}, and the teacher has {len(channels)} stages; give "
            "one per stage"
        )
    for stage, (given, before) in enumerate(zip(width, channels, strict=True)):
        if not 0 < given <= before or given % groups:
            below = max(groups, min(given, before) // groups * groups)
            near = sorted({below, min(below + groups, before)})
            raise CondistillError(
                f"stage {stage} of the student cannot have {given} channels: its teacher has {before}, and "
                f"channels come in multiples of norm_num_groups={groups}; nearest: {', '.join(map(str, near))}"
            )
    return tuple(width)


def _fraction_of(channels: Sequence[int], groups: int, width: float) -> tuple[int, ...]:
    exact = Fraction(str(width))
    step = Fraction(groups, math.gcd(*channels))
    if not 0 < exact <= 1:
        raise CondistillError(f"width {width} is not a fraction of the teacher's channels: above 0 and at most 1")
    for stage, before in enumerate(channels):
        if (exact * before) % groups:
            below = exact // step * step
            near = [f"{float(fraction):g}" for fraction in (below, below + step) if 0 < fraction < 1]
            raise CondistillError(
                f"width {width} gives stage {stage} {float(exact * before):g} of {before} channels, and channels come "
                f"in multiples of norm_num_groups={groups}; "
                + (f"nearest valid fractions: {', '.join(near)}" if near else "no fraction divides every stage")
                + "; or give the channels of every stage"
            )
    return tuple(int(exact * before) for before in channels)


def narrowed_config(config: dict[str, Any], widths: Sequence[int]) -> dict[str, Any]:
    """Return a config with other stage widths, and as many heads as before where that number divides the width.

    Where it does not, the next smaller number that does is taken. In these configs `attention_head_dim` is the NUMBER
    of heads, for historical reasons.
    """
    number = config["attention_head_dim"]
    before = [number] * len(widths) if isinstance(number, int) else list(number)
    heads = [
        next(n for n in range(count, 0, -1) if width % n == 0) for count, width in zip(before, widths, strict=True)
    ]
    same = isinstance(number, int) and len(set(heads)) == 1
    return config | {"block_out_channels": tuple(widths), "attention_head_dim": heads[0] if same else tuple(heads)}


def keep_channels(importance: Tensor, count: int, *, blocks: int = 1) -> Tensor:
    """Return the indices `[count]` of the most important channels, ascending, equally many from each block.

    Args:
        importance: `[C]`.
        blocks: number of blocks; each is a run of C / blocks channels.
    """
    scores = importance.reshape(blocks, -1)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, : count // blocks]
    first = torch.arange(blocks, device=scores.device)[:, None] * scores.shape[1]
    return (order.sort(dim=1).values + first).flatten()


def weight_norms(*weights: Tensor) -> Tensor:
    """Return the L2 norm `[C]` of each output channel's weights, summed over the layers, on the CPU.

    Args:
        weights: one per layer, output channels first. On the meta device every norm is 0.
    """
    if any(weight.is_meta for weight in weights):
        return torch.zeros(len(weights[0]))
    return torch.stack([weight.detach().float().flatten(1).norm(dim=1) for weight in weights]).sum(0).cpu()


def shares(scores: Tensor) -> Tensor:
    """Return scores `[C]` scaled to a sum of 1, or equal shares if all are 0."""
    total = scores.sum()
    return scores / total if total > 0 else torch.full_like(scores, 1 / len(scores))


def inherit(student: UNet2DConditionModel, weights: dict[str, Tensor]) -> UNet2DConditionModel:
    """Put all weights into a denoiser that was built on the meta device, and return it."""
    student.load_state_dict(weights, strict=True, assign=True)
    return student


def narrow(
    teacher: UNet2DConditionModel, widths: Sequence[int], importance: Mapping[str, Tensor] | None = None
) -> UNet2DConditionModel:
    """Return a denoiser with fewer channels per stage and slices of the teacher's weights, float32.

    Args:
        widths: channels of every stage, from `stage_widths`.
        importance: scores of each layer's output channels, `[C]` by module path; without it, norms of weights.

    Raises:
        CondistillError: a layer's weights cannot be sliced to the student's shape; the message names the layer.
    """
    return narrow_along(teacher, widths, importance)[0]


def narrow_along(
    teacher: UNet2DConditionModel, widths: Sequence[int], importance: Mapping[str, Tensor] | None = None
) -> tuple[UNet2DConditionModel, dict[str, WeightSource]]:
    """Return a narrower denoiser as `narrow` does, and the part of the teacher that each of its weights is."""
    student = build_on_meta(type(teacher), narrowed_config(plain_config(teacher), widths))
    slicer = _Slicer(teacher, student, importance)
    weights = {name: weight.to(teacher.device) for name, weight in slicer.added.items()}
    for name, weight in teacher.state_dict().items():
        if name not in slicer.selections:
            raise CondistillError(
                f"the teacher's {name} is not in any known stream of channels, so it cannot be sliced; use a block "
                "preset or random weights"
            )
        weights[name] = take(weight, slicer.selections[name])
    for name, parameter in student.state_dict().items():
        if name not in weights or weights[name].shape != parameter.shape:
            raise CondistillError(
                f"the student's {name} has shape {tuple(parameter.shape)}, which no slice of the teacher's weights "
                "has; use a block preset or random weights"
            )
    sources = {name: WeightSource(name, selection) for name, selection in slicer.selections.items() if name in weights}
    return inherit(student, weights), {name: source for name, source in sources.items() if name not in slicer.added}


def channel_selections(
    teacher: UNet2DConditionModel, student: UNet2DConditionModel, importance: Mapping[str, Tensor] | None = None
) -> dict[str, Selection]:
    """Return the channels of each of the teacher's weights that a narrower student with the same layers keeps."""
    return _Slicer(teacher, student, importance).selections


class _Slicer:
    """The slices of a teacher's weights, found by walking its layers along the streams.

    Attributes:
        selections: by name of the weight.
        added: weights of the student that the teacher has only implicitly, by name.
    """

    def __init__(
        self,
        teacher: UNet2DConditionModel,
        student: UNet2DConditionModel,
        importance: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.teacher, self.student, self.importance = teacher, student, importance
        self.weights: dict[str, Tensor] = teacher.state_dict()
        self.selections: dict[str, Selection] = {}
        self.added: dict[str, Tensor] = {}
        self.stages = self._stage_channels()
        self.time = self._time_embedding()
        self._walk()

    def _walk(self) -> None:
        stages, last = self.stages, len(self.stages) - 1
        self._layer("conv_in", stages[0], None)
        for i, block in enumerate(self.teacher.down_blocks):
            entering = [stages[max(i - 1, 0)]] + [stages[i]] * (len(block.resnets) - 1)
            self._block(f"down_blocks.{i}", block, entering, stages[i])
        if (mid := self.teacher.mid_block) is not None:
            self._block("mid_block", mid, [stages[last]] * len(mid.resnets), stages[last])
        channels = self.teacher.config.block_out_channels
        for i, block in enumerate(self.teacher.up_blocks):
            stage, below, above = last - i, min(last - i + 1, last), max(last - i - 1, 0)
            count = len(block.resnets)
            entering = []
            for k in range(count):
                hidden, skip = below if k == 0 else stage, above if k == count - 1 else stage
                entering.append(torch.cat([stages[hidden], stages[skip] + channels[hidden]]))
            self._block(f"up_blocks.{i}", block, entering, stages[stage])
        self._norm("conv_norm_out", stages[0])
        self._layer("conv_out", None, stages[0])

    def _block(self, name: str, block: nn.Module, entering: Sequence[Tensor], stage: Tensor) -> None:
        for k, inputs in enumerate(entering):
            self._resnet(f"{name}.resnets.{k}", inputs, stage)
        for k, _ in enumerate(getattr(block, "attentions", None) or ()):
            if f"{name}.attentions.{k}.proj_in.weight" in self.weights:  # `narrow` refuses other kinds
                self._transformer(f"{name}.attentions.{k}", stage)
        for sampler in ("downsamplers", "upsamplers"):
            if getattr(block, sampler, None):
                self._layer(f"{name}.{sampler}.0.conv", stage, stage)

    def _resnet(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
        teacher, student = self.teacher.get_submodule(name), self.student.get_submodule(name)
        importance = self._importance(f"{name}.conv1", f"{name}.time_emb_proj")
        inner = keep_channels(importance, student.conv1.out_channels, blocks=teacher.norm2.num_groups)
        self._norm(f"{name}.norm1", inputs)
        self._layer(f"{name}.conv1", inner, inputs)
        self._layer(f"{name}.time_emb_proj", inner, self.time)
        self._norm(f"{name}.norm2", inner)
        self._layer(f"{name}.conv2", outputs, inner)
        if teacher.conv_shortcut is not None:
            self._layer(f"{name}.conv_shortcut", outputs, inputs)
            if student.conv_shortcut is None:
                raise CondistillError(
                    f"{name} changes the width in the teacher ({teacher.in_channels} to {teacher.out_channels} "
                    f"channels) and not in the student ({student.in_channels}), so the student has no shortcut for the "
                    "teacher's weights; give neighbouring stages different widths, or use random weights"
                )
        elif student.conv_shortcut is not None:
            # The teacher adds the input unchanged, an implicit identity; this is the slice of that identity.
            shortcut = (outputs[:, None] == inputs[None, :]).float()
            self.added[f"{name}.conv_shortcut.weight"] = shortcut[:, :, None, None]
            self.added[f"{name}.conv_shortcut.bias"] = torch.zeros(len(outputs))

    def _transformer(self, name: str, stage: Tensor) -> None:
        blocks = [f"{name}.transformer_blocks.{k}" for k, _ in enumerate(self._module(name).transformer_blocks)]
        writers = [f"{block}.{layer}" for block in blocks for layer in ("attn1.to_out.0", "attn2.to_out.0", "ff.net.2")]
        width = self.student.get_submodule(f"{name}.proj_in").weight.shape[0]
        inner = keep_channels(self._importance(f"{name}.proj_in", *writers), width)
        self._norm(f"{name}.norm", stage)
        self._layer(f"{name}.proj_in", inner, stage)
        for block in blocks:
            for norm in ("norm1", "norm2", "norm3"):
                self._norm(f"{block}.{norm}", inner)
            for attention in ("attn1", "attn2"):
                if f"{block}.{attention}.to_q.weight" in self.weights:
                    self._attention(f"{block}.{attention}", inner)
            self._feed_forward(f"{block}.ff", inner)
        self._layer(f"{name}.proj_out", stage, inner)

    def _attention(self, name: str, inner: Tensor) -> None:
        """Keep whole heads, then equally many dimensions of each: the same ones of q and k, and of v and the output."""
        teacher, student = self._module(name), self.student.get_submodule(name)
        size, kept_size = teacher.inner_dim // teacher.heads, student.inner_dim // student.heads
        if kept_size > size:
            raise CondistillError(
                f"{name} has {teacher.heads} heads of {size} in the teacher and {student.heads} of {kept_size} in the "
                "student; a head cannot grow: choose a width that is a multiple of the number of heads, or random "
                "weights"
            )
        keys, values = self._importance(f"{name}.to_q", f"{name}.to_k"), self._importance(f"{name}.to_v")
        heads = keep_channels((keys + values).reshape(teacher.heads, size).sum(dim=1), student.heads)
        rows = torch.arange(teacher.inner_dim).reshape(teacher.heads, size)[heads].flatten()
        count = student.heads * kept_size
        keys_kept = rows[keep_channels(keys[rows], count, blocks=student.heads)]
        values_kept = rows[keep_channels(values[rows], count, blocks=student.heads)]
        context = None if teacher.is_cross_attention else inner
        self._layer(f"{name}.to_q", keys_kept, inner)
        self._layer(f"{name}.to_k", keys_kept, context)
        self._layer(f"{name}.to_v", values_kept, context)
        self._layer(f"{name}.to_out.0", inner, values_kept)

    def _feed_forward(self, name: str, inner: Tensor) -> None:
        """Slice a GEGLU, whose values and gates are the two halves of one projection."""
        importance = self._importance(f"{name}.net.0.proj")
        half = len(importance) // 2
        width = self.student.get_submodule(f"{name}.net.2").in_features
        hidden = keep_channels(importance[:half] + importance[half:], width)
        self._layer(f"{name}.net.0.proj", torch.cat([hidden, hidden + half]), inner)
        self._layer(f"{name}.net.2", inner, hidden)

    def _time_embedding(self) -> Tensor:
        """Slice the time embedding, and return its kept output channels, which are inputs of every resnet."""
        config, name = self.teacher.config, "time_embedding"
        widths = config.block_out_channels[0], self.student.config.block_out_channels[0]
        if config.time_embedding_type != "positional" or any(width % 2 for width in widths):
            raise CondistillError(
                f"the time embedding ({config.time_embedding_type}, {widths[0]} to {widths[1]} channels) cannot be "
                "sliced: it must be positional and even in width; use random weights"
            )
        half, kept = widths[0] // 2, widths[1] // 2
        # Frequency k of n is exp(-ln(10000) k / (n - freq_shift)): take the teacher's nearest to the student's.
        ratio = (half - config.freq_shift) / (kept - config.freq_shift) if kept > config.freq_shift else 1.0
        nearest = [min(round(k * ratio), half - 1) for k in range(kept)]
        waves = torch.tensor([*nearest, *(half + k for k in nearest)])
        sizes = self.student.get_submodule(name)
        hidden = keep_channels(self._importance(f"{name}.linear_1"), sizes.linear_1.out_features)
        importance = self._importance(f"{name}.linear_2", "add_embedding.linear_2")
        outputs = keep_channels(importance, sizes.linear_2.out_features)
        self._layer(f"{name}.linear_1", hidden, waves)
        self._layer(f"{name}.cond_proj", waves, None)
        self._layer(f"{name}.linear_2", outputs, hidden)
        if self.teacher.config.addition_embed_type == "text_time":  # a second embedding, added to the first
            width = self.student.get_submodule("add_embedding.linear_1").out_features
            hidden = keep_channels(self._importance("add_embedding.linear_1"), width)
            self._layer("add_embedding.linear_1", hidden, None)
            self._layer("add_embedding.linear_2", outputs, hidden)
        return outputs

    def _stage_channels(self) -> list[Tensor]:
        """Return the kept channels of every stage; neighbours of equal width share a stream, so also its importance."""
        channels, kept = (list(m.config.block_out_channels) for m in (self.teacher, self.student))
        importance = [self._importance(*writers) for writers in _stage_writers(self.teacher)]
        groups = self.teacher.config.norm_num_groups or 1
        sizes = _block_sizes(channels, groups)
        stages = []
        for stage, width in enumerate(channels):
            first = next(i for i in range(stage, -1, -1) if i == 0 or channels[i - 1] != width)
            run = [i for i in range(first, len(channels)) if set(channels[first : i + 1]) == {width}]
            blocks = width // math.gcd(*(sizes[i] for i in run))
            blocks = groups if any(kept[i] % blocks for i in run) else blocks
            stages.append(keep_channels(torch.stack([importance[i] for i in run]).sum(0), kept[stage], blocks=blocks))
        return stages

    def _module(self, name: str) -> Any:
        return self.teacher.get_submodule(name)

    def _importance(self, *layers: str) -> Tensor:
        """Return the importance `[C]` of layers' output channels, summed over the layers that the teacher has."""
        writers = [layer for layer in layers if f"{layer}.weight" in self.weights]
        if self.importance is None:
            return weight_norms(*(self.weights[f"{layer}.weight"] for layer in writers))
        if missing := [layer for layer in writers if layer not in self.importance]:
            raise CondistillError(f"channel_importance has no scores of {missing[0]}; give those of every layer")
        # each layer's scores sum to 1, so that a layer with large activations does not decide alone
        return torch.stack([shares(self.importance[layer]) for layer in writers]).sum(0)

    def _layer(self, name: str, outputs: Tensor | None, inputs: Tensor | None) -> None:
        self.selections[f"{name}.weight"] = (outputs, inputs)
        self.selections[f"{name}.bias"] = (outputs,)

    def _norm(self, name: str, channels: Tensor) -> None:
        self.selections[f"{name}.weight"] = self.selections[f"{name}.bias"] = (channels,)


def _stage_writers(teacher: UNet2DConditionModel) -> list[list[str]]:
    """Return the layers whose outputs are in the stream of each stage."""
    last = len(teacher.down_blocks) - 1
    blocks = [(i, f"down_blocks.{i}") for i in range(last + 1)] + [
        (last - i, f"up_blocks.{i}") for i in range(last + 1)
    ]
    if teacher.mid_block is not None:
        blocks.append((last, "mid_block"))
    writers: list[list[str]] = [[] for _ in range(last + 1)]
    writers[0].append("conv_in")
    for stage, block in blocks:
        names = [name for name, _ in teacher.get_submodule(block).named_modules()]
        ends = ("conv2", "conv_shortcut", "proj_out", "samplers.0.conv")
        writers[stage] += [f"{block}.{name}" for name in names if name.endswith(ends)]
    return writers


def _block_sizes(channels: Sequence[int], groups: int) -> list[int]:
    """Return, per stage, the largest size of runs of channels that no normalisation group splits.

    In the up path the input of a group norm is a stage's channels followed by a skip's, so its groups differ.
    """
    sizes = [width // groups for width in channels]
    for stage, width in enumerate(channels):
        for hidden, skip in ((min(stage + 1, len(channels) - 1), stage), (stage, max(stage - 1, 0))):
            group = (channels[hidden] + channels[skip]) // groups
            sizes[hidden] = math.gcd(sizes[hidden], group)
            sizes[skip] = math.gcd(sizes[skip], group, channels[hidden])
        sizes[stage] = math.gcd(sizes[stage], width)
    return sizes
