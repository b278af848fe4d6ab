"""Show a denoiser as a tree: its layers with their sizes and costs, the compared features, and the presets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, get_args

import torch
from rich.tree import Tree
from torch import Tensor, nn

from condistill.config.distill import FeatureKind
from condistill.config.sections import StudentSettings, TeacherSettings
from condistill.errors import CondistillError
from condistill.plan.candidates import POSSIBLE, Candidate, possible_students, teacher_candidate, teacher_inputs
from condistill.profiling.shapes import ShapesOnly
from condistill.students.depth import image_stream
from condistill.students.derive import derive_student
from condistill.teachers.skeleton import Skeleton, teacher_skeleton
from condistill.utils.format import percent, si_quantity
from condistill.utils.meta import parameters
from condistill.utils.quiet import quiet_libraries
from condistill.utils.terminal import cell


@dataclass
class Layer:
    """A module of a denoiser, and its cost in one forward of one sample."""

    path: str
    kind: str
    params: int
    macs: int = 0
    shape: tuple[int, ...] = ()
    """Of its output, without the batch; empty where the output is no tensor."""
    children: list[Layer] = field(default_factory=list)

    @property
    def appearance(self) -> tuple[object, ...]:
        """What the tree shows: neighbouring layers of a list with the same appearance are shown as one."""
        return self.kind, self.params, self.macs, self.shape


def layers_of(skeleton: Skeleton) -> Layer:
    """Return the whole denoiser as a layer, whose children are the layers inside it."""
    denoiser: nn.Module = skeleton.denoiser
    layers = {name: Layer(name, type(m).__name__, parameters(m)) for name, m in denoiser.named_modules()}
    with torch.no_grad(), ShapesOnly() as counted:

        def before(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any) -> None:
                layers[name].macs -= counted.macs

            return hook

        def after(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
                layers[name].macs += counted.macs
                output = image_stream(module, output)
                output = getattr(output, "sample", output)
                layers[name].shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()

            return hook

        handles = []
        for name, module in denoiser.named_modules():
            handles += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
        denoiser(**teacher_inputs(skeleton, denoiser))
        for handle in handles:
            handle.remove()
    for name, layer in reversed(layers.items()):
        if name:
            parent = layers[name.rpartition(".")[0]]
            parent.children.insert(0, layer)
            if not parent.shape and isinstance(denoiser.get_submodule(parent.path), nn.ModuleList):
                parent.macs += layer.macs  # the list itself is never called
    return layers[""]


def compared_layers(skeleton: Skeleton) -> dict[FeatureKind, tuple[str, ...]]:
    """Return the teacher's layers in which students are compared, by kind of feature.

    For transformers these are the layers of a student of half the depth.
    """
    tried = (POSSIBLE["b-base"], POSSIBLE["c-micro"], POSSIBLE["depth 0.5"])
    found: dict[FeatureKind, tuple[str, ...]] = {}
    for kind in get_args(FeatureKind):
        paths: dict[str, None] = {}
        for settings in tried:
            try:
                pairs = derive_student(skeleton.denoiser, _with_random_weights(settings), features=kind).pairs
                paths |= dict.fromkeys(pair.teacher for pair in pairs)
            except CondistillError:
                continue
        if paths:
            found[kind] = tuple(paths)
    return found


def inspect_pipeline(settings: TeacherSettings, *, levels: int = 2) -> Tree:
    """Return the tree of a pipeline's denoiser. No weight is read.

    Args:
        levels: the depth of the tree.
    """
    with quiet_libraries():
        skeleton = teacher_skeleton(settings)
        whole, compared = layers_of(skeleton), compared_layers(skeleton)
        tree = Tree(_label(whole, [whole], compared))
        _grow(tree, whole, compared, levels)
        teacher = teacher_candidate(skeleton)
        for candidate in possible_students(skeleton):
            _add_student(tree, candidate, teacher)
    return tree


def _with_random_weights(settings: StudentSettings) -> StudentSettings:
    """Return the settings of a student that need not inherit: some teachers' weights cannot be cut to its shapes."""
    return settings.model_copy(update={"weights": "random"})


def _grow(
    tree: Tree, layer: Layer, compared: dict[FeatureKind, tuple[str, ...]], levels: int, *, within: str = ""
) -> None:
    """Add the layers inside a layer.

    Args:
        within: the start of their paths, which their labels leave out.
    """
    if not levels:
        return
    for run in _runs(layer.children):
        first = run[0]
        if first.kind == "ModuleList":  # its layers are shown instead
            _grow(tree, first, compared, levels, within=within)
        elif first.params:
            branch = tree.add(_label(first, run, compared, within=within))
            _grow(branch, first, compared, levels - 1, within=f"{first.path}.")


def _runs(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Yield runs of neighbouring layers that are shown as one."""

    def key(layer: Layer) -> object:
        return layer.appearance if layer.path.rpartition(".")[2].isdecimal() else layer.path

    for _, run in groupby(layers, key):
        yield list(run)


def _label(
    layer: Layer, run: Sequence[Layer], compared: dict[FeatureKind, tuple[str, ...]], *, within: str = ""
) -> str:
    """Return a line with the name, class, output, cost and compared features of layers that are shown as one."""
    last = run[-1].path.rpartition(".")[2]
    name = layer.path.removeprefix(within) + (f" to {last}" if len(run) > 1 else "")
    parts = [f"[bold]{cell(name)}[/] {cell(layer.kind)}" if name else f"[bold]{cell(layer.kind)}[/]"]
    if layer.shape:
        parts.append(_shape(layer.shape))
    parts.append(f"{layer.params:,} parameters")
    parts.append(_amount(layer.macs))
    if len(run) > 1:
        parts.append("each")
    features = _features(compared, run)
    return ", ".join(parts) + (f" [green]({features})[/]" if features else "")


def _features(compared: dict[FeatureKind, tuple[str, ...]], run: Sequence[Layer]) -> str:
    """Return the kinds of features that are compared at these layers, and the number of those inside them."""
    at: list[str] = []
    inside: dict[int, list[str]] = {}
    for kind, paths in compared.items():
        count = sum(layer.path in paths for layer in run)
        if count:
            at.append(kind + (f" of {count} of {len(run)}" if count < len(run) else ""))
            continue
        count = sum(path.startswith(f"{layer.path}.") for layer in run if layer.path for path in paths)
        if count and kind != "stages":
            inside.setdefault(count, []).append(kind)
    parts = [f"compared: {', '.join(at)}"] if at else []
    parts += [f"inside: {count} {', '.join(kinds)}" for count, kinds in inside.items()]
    return "; ".join(parts)


def _amount(macs: int) -> str:
    return f"{si_quantity(macs)}MACs"


def _shape(shape: tuple[int, ...]) -> str:
    if len(shape) == 3:
        return f"{shape[0]:,} channels at {shape[1]}x{shape[2]}"
    return f"{shape[0]:,} tokens of {shape[1]:,}" if len(shape) == 2 else f"{shape[-1]:,} wide"


def _add_student(tree: Tree, candidate: Candidate, teacher: Candidate) -> None:
    share = f"{candidate.params:,} parameters ({percent(candidate.params / teacher.params, 1)})"
    cost = f"{_amount(candidate.macs)} ({percent(candidate.macs / teacher.macs, 1)})"
    branch = tree.add(f"[bold cyan]{cell(candidate.name)}[/] keeps {share}, {cost}")
    settings = _with_random_weights(POSSIBLE[candidate.name])
    for line in derive_student(teacher.denoiser, settings).kept[1:]:  # the first is about the weights
        branch.add(cell(line))
