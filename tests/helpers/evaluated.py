"""Models to evaluate whose latents are a function of noise and prompt, and what an engine needs of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from condistill.config.evaluate import EvaluateSettings
from condistill.evaluate.batches import Arrays
from condistill.evaluate.engine import Engine, Task
from condistill.evaluate.features import FeatureSource
from condistill.evaluate.models import EvaluatedModel
from condistill.evaluate.rounds import Round
from condistill.pipelines.sampling import Sampling
from condistill.run.stage_directory import Inputs, StageDir

SHAPE = (4, 2, 2)


class ToyFamily:
    """A pipeline whose denoiser is a number that is added to the noise, and whose images show the first latent."""

    latent_shape = SHAPE
    image_size = (2, 2)
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.denoiser: Any = nn.Identity()
        self.sampled = self.decoded = 0

    @contextmanager
    def denoiser_on_host(self) -> Iterator[None]:
        yield

    def sample(self, denoiser: Any, prompts: Sequence[str], noise: torch.Tensor, **_: Any) -> torch.Tensor:
        self.sampled += len(prompts)
        lengths = torch.tensor([len(prompt) for prompt in prompts])[:, None, None, None]
        return noise + lengths + getattr(denoiser, "offset", 0.0)

    def decode(self, latents: torch.Tensor) -> NDArray[np.uint8]:
        self.decoded += len(latents)
        first = (latents[:, :1, :1, :1].numpy() * 10 % 256).astype(np.uint8)
        return np.broadcast_to(first, (len(latents), 2, 2, 3)).copy()


class ToyNetwork:
    """Reads the mean of an image and its square."""

    def __init__(self, name: str = "toy") -> None:
        self.name = name
        self.read = 0

    def extract(self, images: NDArray[np.uint8], _prompts: Sequence[str] | None, /) -> Arrays:
        self.read += len(images)
        mean = images.astype(np.float32).mean((1, 2, 3))
        return {self.name: np.stack([mean, mean**2, np.sqrt(mean)], 1)}

    def source(self) -> FeatureSource:
        return FeatureSource(self.name, (self.name,), lambda: {"network": self.name}, lambda _: self)


class ToyHost:
    """What an engine uses of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.accelerator = SimpleNamespace(
            num_processes=1, process_index=0, is_main_process=True, device=torch.device("cpu")
        )
        self.printed: list[str] = []
        self._stages: dict[str, StageDir] = {}

    def say(self, text: str, **_: Any) -> None:
        self.printed.append(text)

    @contextmanager
    def progress(self, *_: Any, **__: Any) -> Iterator[Callable[..., None]]:
        yield lambda *_, **__: None

    def stage(self, name: str, inputs: Callable[[], Inputs]) -> StageDir:
        if name not in self._stages:
            self._stages[name] = StageDir(self.folder, name, inputs, say=self.say)
        return self._stages[name]


def toy_rounds(images: int = 11, seeds: Sequence[int] = (7, 8)) -> list[Round]:
    """Return rounds of a seen and an unseen split; the last third is unseen."""
    cut = images - images // 3
    splits = {"seen": slice(0, cut), "unseen": slice(cut, images), "all": slice(0, images)}
    return [Round(seed, [f"prompt {'x' * (i % 5)} {i}" for i in range(images)], splits) for seed in seeds]


def toy_model(host: ToyHost, family: Any, name: str, *, offset: float = 0.0) -> EvaluatedModel:
    """Return a model whose latents differ from the noise by the length of the prompt and an offset."""
    denoiser: Any = nn.Identity()
    denoiser.offset = offset
    latents = host.stage(f"evaluation/latents/{name}", lambda: {"model": name, "offset": offset})
    return EvaluatedModel(name, lambda: family, Sampling(1, 1.0), latents, load=lambda _: denoiser)


def toy_engine(
    folder: Path, family: Any, networks: Sequence[ToyNetwork] = (), *, batch_size: int = 4, rounds: Any = None
) -> Engine:
    """Return the engine of a teacher and a student."""
    host = ToyHost(folder)
    settings = EvaluateSettings.model_validate({"batch_size": batch_size})
    sources = [network.source() for network in networks]
    models = [toy_model(host, family, "teacher"), toy_model(host, family, "small", offset=1.5)]
    return Engine(host, settings, [Task(model, rounds or toy_rounds(), sources) for model in models])
