"""Keep what Python code passes as objects, a pipeline and prompts, as files of the run directory.

A run reads files: it can then be resumed, moved, and run from the command line.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor, nn
from transformers import PreTrainedModel

from condistill.config.recipe import TEACHER
from condistill.errors import CondistillError
from condistill.run.context import Run
from condistill.run.directory import MARK_NAME, RECIPE_NAME
from condistill.teachers.registry import family_of_pipeline
from condistill.teachers.skeleton import Skeleton
from condistill.utils.atomic import write_text
from condistill.utils.distributed import decide, on_main_process
from condistill.workflow.preflight import preflight

_NOT_CONTENT = {
    *("_diffusers_version", "_name_or_path", "name_or_path", "transformers_version"),
    *("architectures", "dtype", "torch_dtype"),  # saving sets them
}
"""Keys of configs that say by what a component was loaded or saved, and from where."""
_OF_THE_LAST_CALL = {
    "tokenizer.json": {"padding", "truncation"},
    "tokenizer_config.json": {"max_length", "pad_to_multiple_of", "pad_token_type_id", "stride", "truncation_strategy"},
}
"""Keys of a tokenizer's files that each of its calls sets."""
_ADDED_BY_SAVING = (("padding_side", "right"), ("truncation_side", "right"))
"""Settings of a tokenizer that saving adds to its config after a call; they are the defaults."""


@dataclass(frozen=True)
class Given:
    """What Python code passed to `compress` as objects."""

    pipeline: DiffusionPipeline | None = None
    """None where the teacher is a directory or a hub name."""
    prompts: Sequence[str] | None = None
    """None where the prompts are in files."""

    def teacher(self, out: Path) -> str:
        """Return where a run in the directory `out` keeps the pipeline."""
        return str(out.resolve() / TEACHER)

    def prompt_file(self, out: Path) -> str:
        """Return where a run in the directory `out` keeps the prompts; other prompts have another file."""
        digest = hashlib.sha256(self._lines().encode()).hexdigest()[:12]
        return str(out.resolve() / f"prompts-{digest}.jsonl")

    def _lines(self) -> str:
        return "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in self.prompts or ())

    def keep(self, run: Run, skeleton: Skeleton, *, update: bool) -> None:
        """Write the objects into the run directory, unless they are in it. Called on every process.

        The recipe is checked before anything is written. Results of another pipeline in the directory are refused, or
        moved if `update` says so.

        Raises:
            CondistillError: see `preflight` and `RunDir.settle_changes`.
        """
        directory = None
        if self.pipeline is not None:
            pipeline = self.pipeline
            directory = run.stage(TEACHER, lambda: _contents(pipeline))
        with run.working("teacher: hashing the weights of the pipeline", after_sec=2.0):
            is_kept = directory is None or decide(run.accelerator, directory.is_done)
        on_main_process(run.accelerator, lambda: self._begin(run, skeleton, is_kept=is_kept, update=update))
        if directory is not None and not is_kept:
            run.say(f"teacher: saving the pipeline to {directory.path}")
            run.fill(directory, self._save)

    def forget(self, out: Path) -> None:
        """Remove the prompts of a call that was refused: its run directory is one of other prompts."""
        recipe, file = out / RECIPE_NAME, Path(self.prompt_file(out))
        if recipe.is_file() and file.name not in recipe.read_text(encoding="utf-8"):
            file.unlink(missing_ok=True)

    def _begin(self, run: Run, skeleton: Skeleton, *, is_kept: bool, update: bool) -> None:
        """Check the recipe, make the run directory and write the prompts."""
        is_new = not (run.path / MARK_NAME).is_file()
        file = Path(run.recipe.prompts.files[0]) if self.prompts is not None else None
        if is_new or not is_kept:
            preflight(run.recipe, skeleton)
            run.directory.settle_changes(update=update)
        if is_new:
            run.directory.create(run.recipe)
        if file is not None and not file.is_file():
            write_text(file, self._lines())

    def _save(self, path: Path) -> None:
        assert self.pipeline is not None
        self.pipeline.save_pretrained(path, safe_serialization=True)


def check_pipeline(pipeline: DiffusionPipeline) -> None:
    """Check that a pipeline can be a teacher when it is saved and loaded again.

    Raises:
        CondistillError: names the component and what to do.
    """
    family_of_pipeline(type(pipeline).__name__)
    for name, model in _models(pipeline):
        names = [*model.state_dict()]
        if any(".lora_" in key or ".base_layer." in key for key in names):
            raise CondistillError(
                f"the pipeline's {name} has a LoRA that is not fused; call pipeline.fuse_lora() and then "
                "pipeline.unload_lora_weights() first"
            )
        if any(parameter.is_meta for parameter in model.parameters()):
            raise CondistillError(
                f"the weights of the pipeline's {name} are not in memory, as after enable_sequential_cpu_offload; load "
                "the pipeline without it"
            )
        if getattr(model, "hf_quantizer", None) is not None:
            raise CondistillError(
                f"the pipeline's {name} is quantised, and a student cannot inherit such weights; load the pipeline "
                "without quantization_config"
            )


@contextmanager
def configs_of(pipeline: DiffusionPipeline) -> Iterator[Path]:
    """Yield a temporary directory with everything that `save_pretrained` writes but the weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        pipeline.save_config(path)
        for name, component in _components(pipeline):
            _save_config(component, path / name)
        yield path


def _save_config(component: Any, folder: Path) -> None:
    if isinstance(component, ModelMixin):
        component.save_config(folder)
    elif isinstance(component, PreTrainedModel):
        component.config.save_pretrained(folder)
    elif hasattr(component, "save_pretrained"):  # a scheduler or a tokenizer
        component.save_pretrained(folder)


def _components(pipeline: DiffusionPipeline) -> Iterator[tuple[str, Any]]:
    """Yield the components by name; of one that `torch.compile` wraps, what is inside."""
    for name, component in pipeline.components.items():
        yield name, getattr(component, "_orig_mod", component)


def _models(pipeline: DiffusionPipeline) -> Iterator[tuple[str, nn.Module]]:
    for name, component in _components(pipeline):
        if isinstance(component, nn.Module):
            yield name, component


def _contents(pipeline: DiffusionPipeline) -> dict[str, str]:
    """Return a hash of the configs and the weights of each component, by name, wherever it was loaded from."""
    models = dict(_models(pipeline))
    with configs_of(pipeline) as folder:
        found = {"pipeline": _hash(sorted(folder.glob("*.json")), folder, None)}
        for name in sorted(pipeline.components):
            files = [file for file in sorted((folder / name).rglob("*")) if file.is_file()]
            found[f"pipeline.{name}"] = _hash(files, folder, models.get(name))
    return found


def _hash(files: Sequence[Path], folder: Path, model: nn.Module | None) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + _content(file) + b"\0")
    for name, tensor in sorted((model.state_dict() if model is not None else {}).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:16]


def _content(file: Path) -> bytes:
    """Return the content of a config, without the keys that are not content; other files as they are."""
    if file.suffix != ".json":
        return file.read_bytes()
    data = _without_origin(json.loads(file.read_text(encoding="utf-8")))
    if of_the_last_call := _OF_THE_LAST_CALL.get(file.name):
        data = {
            key: value
            for key, value in data.items()
            if key not in of_the_last_call and (key, value) not in _ADDED_BY_SAVING
        }
    return json.dumps(data, sort_keys=True).encode()


def _without_origin(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_origin(value) for key, value in data.items() if key not in _NOT_CONTENT}
    return data


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
