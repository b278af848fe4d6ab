"""Run by the Python of ComfyUI: answer requests, one JSON object a line, with ComfyUI's own code on the CPU.

Nothing of the checkout is changed. Packages that only audio and video need are replaced if they are missing, and so are
tokenizers whose files are missing.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import logging
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file

REPLACED = ("torchvision", "torchaudio", "kornia", "spandrel", "av", "torchsde")
TOKENIZERS = ("T5TokenizerFast", "CLIPTokenizer", "Qwen2Tokenizer", "LlamaTokenizerFast", "GemmaTokenizer")
Found = dict[str, Any]
Header = dict[str, list[Any]]
"""Shape and dtype of each weight by name."""


class StandIn:
    """Takes every call and has every attribute."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> StandIn:
        return StandIn()

    def __getattr__(self, name: str) -> StandIn:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn()


class StandInModule(types.ModuleType):
    """A module whose every name is a class."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (StandIn,), {})


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules that are replaced, where they are not installed."""

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        known = name.split(".", maxsplit=1)[0] in REPLACED
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandInModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...


def start(checkout: str) -> None:
    """Import ComfyUI for the CPU."""
    importlib.import_module("transformers.utils").is_torchvision_available()  # it remembers that there is none
    sys.meta_path.append(StandIns())
    sys.path.insert(0, checkout)
    sys.argv = [sys.argv[0], "--cpu"]
    importlib.import_module("comfy.options").enable_args_parsing()
    importlib.import_module("comfy.sd")
    for name in TOKENIZERS:
        replace_missing_files(getattr(importlib.import_module("transformers"), name))


def replace_missing_files(tokenizer: Any) -> None:
    """Let a tokenizer whose files are missing be a stand-in: loading weights needs none."""
    original = tokenizer.from_pretrained

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except Exception:  # each release raises another one
            return lambda _: {"input_ids": [0, 1]}

    tokenizer.from_pretrained = from_pretrained


class Lines(logging.Handler):
    """Collects what ComfyUI logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def recorded(found: Found) -> Iterator[None]:
    """Record the log, and the names that each `load_state_dict` misses or does not expect."""
    lines, original = Lines(), torch.nn.Module.load_state_dict
    loads: list[Found] = []

    def load_state_dict(self: Any, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        keys = original(self, state_dict, *args, **kwargs)
        loads.append(
            {
                "module": type(self).__name__,
                "loaded": len(self.state_dict()) - len(keys.missing_keys),
                "missing": sorted(keys.missing_keys),
                "unexpected": sorted(keys.unexpected_keys),
            }
        )
        return keys

    logging.getLogger().addHandler(lines)
    torch.nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]
    found |= {"loads": loads, "log": lines.lines}
    try:
        yield
    finally:
        torch.nn.Module.load_state_dict = original  # type: ignore[method-assign]
        logging.getLogger().removeHandler(lines)


def plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def model_of(config: Any, state: dict[str, Any], prefix: str, device: str | None) -> Any:
    config.set_inference_dtype(torch.float32, None)
    return config.get_model(state, prefix, device=device)


def described(model: Any) -> Found:
    config = model.model_config
    return {
        "model_class": type(config).__name__,
        "unet_config": plain(config.unet_config),
        "prediction": model.model_type.name,
    }


def weights_of(source: str | Header) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Return the weights and the metadata of a file; or weights of these shapes with one value in memory each."""
    if isinstance(source, str):
        weights, metadata = importlib.import_module("comfy.utils").load_torch_file(source, return_metadata=True)
        return weights, metadata
    zeros = {name: torch.zeros((), dtype=getattr(torch, dtype)) for name, (_, dtype) in source.items()}
    return {name: zeros[name].expand(shape) for name, (shape, _) in source.items()}, None


def detect(header: Header, metadata: dict[str, str] | None) -> Found | None:
    """Return what ComfyUI detects for names with shapes, and how they differ from its own model's.

    The weights have one value in memory each, and the model none.
    """
    detection = importlib.import_module("comfy.model_detection")
    state, _ = weights_of(header)
    prefix = detection.unet_prefix_from_state_dict(state)
    prefix = prefix if any(name.startswith(prefix) for name in state) else ""
    config = detection.model_config_from_unet(state, prefix, metadata=metadata)
    if config is None:
        return None
    model = model_of(config, state, prefix, "meta")
    given = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    given = {name: list(value.shape) for name, value in config.process_unet_state_dict(given).items()}
    wanted = {name: list(value.shape) for name, value in model.diffusion_model.state_dict().items()}
    return {
        **described(model),
        "missing": sorted(set(wanted) - set(given)),
        "unexpected": sorted(set(given) - set(wanted)),
        "wrong_shapes": {
            name: [shape, wanted[name]] for name, shape in given.items() if wanted.get(name, shape) != shape
        },
    }


def load_checkpoint(file: str) -> Found:
    """Load a checkpoint with text encoders and autoencoder."""
    found: Found = {}
    with recorded(found):
        patcher, text_encoders, vae, _ = importlib.import_module("comfy.sd").load_checkpoint_guess_config(file)
    return {
        **described(patcher.model),
        **found,
        "text_encoders": type(text_encoders.cond_stage_model).__name__ if text_encoders else None,
        "vae": type(vae.first_stage_model).__name__ if vae is not None else None,
    }


def load_diffusion_model(file: str) -> Found:
    """Load a denoiser alone."""
    found: Found = {}
    with recorded(found):
        patcher = importlib.import_module("comfy.sd").load_diffusion_model(file)
    return {**described(patcher.model), **found}


def load_text_encoders(sources: list[str | Header], kind: str) -> Found:
    """Load text encoders, of the kind that the node offers; those of shapes alone onto the meta device."""
    found, sd = {}, importlib.import_module("comfy.sd")
    options = {} if all(isinstance(each, str) for each in sources) else {"initial_device": torch.device("meta")}
    with recorded(found):
        loaded = sd.load_text_encoder_state_dicts(
            [weights_of(each)[0] for each in sources], clip_type=getattr(sd.CLIPType, kind), model_options=options
        )
    return {**found, "text_encoders": type(loaded.cond_stage_model).__name__}


def load_vae(source: str | Header) -> Found:
    """Load an autoencoder."""
    found: Found = {}
    with recorded(found):
        weights, metadata = weights_of(source)
        vae = importlib.import_module("comfy.sd").VAE(sd=weights, metadata=metadata)
        vae.throw_exception_if_invalid()
    return {**found, "vae": type(vae.first_stage_model).__name__}


def build(kind: str, config: dict[str, Any], device: str) -> Any:
    """Return a module of ComfyUI, such as `comfy.ldm.flux.model.Flux`."""
    module, _, name = kind.rpartition(".")
    operations = importlib.import_module("comfy.ops").disable_weight_init
    config = {"dtype": torch.float32, "device": device, "operations": operations, **config}
    return getattr(importlib.import_module(module), name)(**config)


def convert(file: str, output: str) -> None:
    """Write a denoiser of diffusers under the names that ComfyUI gives to its weights."""
    weights = importlib.import_module("comfy.model_detection").convert_diffusers_mmdit(load_file(file))
    if weights is None:
        raise ValueError("ComfyUI converts no denoiser of this kind")
    save_file({name: each.contiguous() for name, each in weights.items()}, output)


def names(kind: str, config: dict[str, Any]) -> Found:
    """Return the names and shapes of the weights of a module of ComfyUI."""
    return {name: list(value.shape) for name, value in build(kind, config, "meta").state_dict().items()}


def forward(file: str, inputs: str, output: str, kind: str | None, config: dict[str, Any]) -> Found:
    """Write the output of a denoiser.

    Args:
        file: its weights.
        inputs: safetensors file with the arguments of the forward pass.
        output: safetensors file to write, with one tensor `output`.
        kind: module to build from `config`; None: what ComfyUI detects.
        config: keyword arguments of the module.
    """
    found: Found = {}
    with recorded(found), torch.no_grad():
        if kind is None:
            module = (
                importlib.import_module("comfy.sd")
                .load_checkpoint_guess_config(file, output_vae=False, output_clip=False)[0]
                .model.diffusion_model
            )
        else:
            module = build(kind, config, "cpu")
            module.load_state_dict(load_file(file))
        module = module.float().eval()
        save_file({"output": module(**load_file(inputs)).contiguous()}, output)
    return {"dtype": str(next(module.parameters()).dtype), **found}


CALLS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (detect, load_checkpoint, load_diffusion_model, load_text_encoders, load_vae, convert, names, forward)
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed is no answer
    logging.getLogger().setLevel(logging.DEBUG)
    start(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": CALLS[request["call"]](**request["arguments"])}
        except Exception as error:  # it is the parent's to judge
            answer = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
