"""ComfyUI's own code as an oracle: what its detection finds, what its loaders read, what its denoisers compute.

It runs in a process of its own, with a checkout named by `CONDISTILL_COMFYUI` and a Python named by
`CONDISTILL_COMFYUI_PYTHON`, which needs torch, safetensors, transformers, einops, psutil, scipy and tqdm. Tests are
skipped without them. ComfyUI is under the GPL: nothing of it is part of this repository.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

CHECKOUT = "CONDISTILL_COMFYUI"
PYTHON = "CONDISTILL_COMFYUI_PYTHON"
CHILD = Path(__file__).with_name("comfyui_child.py")
SECONDS = 300.0
"""Longest time of one answer."""
Found = dict[str, Any]
Weights = Path | Mapping[str, torch.Tensor]
"""A file, or weights of which the names, shapes and dtypes count, such as on the meta device."""


class ComfyUIError(RuntimeError):
    """ComfyUI raised an error."""


class ComfyUI:
    """A process with ComfyUI. Loading returns `model_class`, `unet_config`, `prediction`, `loads` and `log`.

    `loads` has one entry for each module that was filled: its class as `module`, the number of names `loaded`, those
    that are `missing` in the file, and the `unexpected` ones.
    """

    def __init__(self, checkout: Path, python: Path) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [str(python), str(CHILD), str(checkout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        atexit.register(self.close)

    def detect(self, source: Weights, metadata: dict[str, str] | None = None) -> Found | None:
        """Return what is detected for the names and shapes of a file or of weights; None: no model.

        Also the names that are `missing` and `unexpected`, and `wrong_shapes`: [that of the file, that of ComfyUI].
        Needs no memory for weights, so that they may be of real size and on the meta device.
        """
        if isinstance(source, Path):
            with safe_open(source, "pt") as file:
                source = {name: file.get_tensor(name).to("meta") for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata()
        header = _header(source)
        found: Found | None = self._call("detect", header=header, metadata=metadata)
        return found

    def load_checkpoint(self, file: Path) -> Found:
        """Load a checkpoint (`CheckpointLoaderSimple`); also returns the classes `text_encoders` and `vae`."""
        return dict(self._call("load_checkpoint", file=str(file)))

    def load_diffusion_model(self, file: Path) -> Found:
        """Load a denoiser alone (`UNETLoader`)."""
        return dict(self._call("load_diffusion_model", file=str(file)))

    def load_text_encoders(self, sources: Sequence[Weights], kind: str) -> Found:
        """Load text encoders (`CLIPLoader`, `DualCLIPLoader`, `TripleCLIPLoader`), such as of kind `FLUX`.

        Weights that are given by their shapes alone need no memory.
        """
        return dict(self._call("load_text_encoders", sources=[_sent(each) for each in sources], kind=kind))

    def load_vae(self, source: Weights) -> Found:
        """Load an autoencoder (`VAELoader`)."""
        return dict(self._call("load_vae", source=_sent(source)))

    def convert(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the weights of a denoiser of diffusers under the names that ComfyUI itself gives them.

        It knows FLUX, Stable Diffusion 3, PixArt (of the real width) and AuraFlow.
        """
        with tempfile.TemporaryDirectory() as folder:
            given, output = Path(folder, "weights.safetensors"), Path(folder, "converted.safetensors")
            save_file({name: each.contiguous() for name, each in weights.items()}, given)
            self._call("convert", file=str(given), output=str(output))
            return load_file(output)

    def names(self, kind: str, config: Mapping[str, Any]) -> dict[str, list[int]]:
        """Return the names and shapes of the weights of a module, such as `comfy.ldm.flux.model.Flux`."""
        return dict(self._call("names", kind=kind, config=dict(config)))

    def forward(
        self,
        file: Path,
        inputs: Mapping[str, torch.Tensor],
        *,
        kind: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> torch.Tensor:
        """Return the output of a denoiser in float32.

        Args:
            file: its weights, or a checkpoint.
            inputs: keyword arguments of the forward pass, as ComfyUI's module takes them.
            kind: build this module from `config`, with exactly these weights; None: what is detected.
            config: keyword arguments of the module.
        """
        with tempfile.TemporaryDirectory() as folder:
            given, output = Path(folder, "inputs.safetensors"), Path(folder, "output.safetensors")
            save_file({name: each.contiguous() for name, each in inputs.items()}, given)
            arguments = {"inputs": str(given), "output": str(output), "kind": kind, "config": dict(config or {})}
            self._call("forward", file=str(file), **arguments)
            return load_file(output)["output"]

    def _call(self, call: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"call": call, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ComfyUIError(self._errors()) from error
        ready, _, _ = select.select([self._process.stdout], [], [], SECONDS)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise ComfyUIError(f"no answer within {SECONDS:g} s\n" * (not ready) + self._errors())
        answer = json.loads(line)
        if "error" in answer:
            raise ComfyUIError(answer["error"] + "\n" + answer["traceback"])
        return answer["result"]

    def _errors(self) -> str:
        self._log.seek(0)
        return self._log.read()[-5000:]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def _sent(source: Weights) -> str | dict[str, list[Any]]:
    return str(source) if isinstance(source, Path) else _header(source)


def _header(weights: Mapping[str, torch.Tensor]) -> dict[str, list[Any]]:
    return {name: [list(each.shape), str(each.dtype).removeprefix("torch.")] for name, each in weights.items()}


@cache
def _process(checkout: str, python: str) -> ComfyUI:
    return ComfyUI(Path(checkout), Path(python))


def comfyui() -> ComfyUI:
    """Return ComfyUI, in one process for all tests; skips the test without it."""
    checkout, python = os.environ.get(CHECKOUT), os.environ.get(PYTHON)
    if not checkout or not python:
        pytest.skip(f"set {CHECKOUT} to a checkout of ComfyUI and {PYTHON} to a Python with its requirements")
    return _process(checkout, python)
