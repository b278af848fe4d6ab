"""The classifier: a small classifier that names every attribute of an image of the miniature's world."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from condistill.miniature import weights_path
from condistill.miniature.world import ATTRIBUTES, Scene, parse, render

WEIGHTS_NAME = "classifier.safetensors"


class Classifier(nn.Module):
    """Convolutions, one feature vector, one linear head per attribute.

    `features` is where the Fréchet distance of the miniature is measured.
    """

    def __init__(self, *, width: int = 24, feature_size: int = 128) -> None:
        super().__init__()
        channels = (3, width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 16, feature_size))
        self.heads = nn.ModuleDict(
            {attribute: nn.Linear(feature_size, len(names)) for attribute, names in ATTRIBUTES.items()}
        )

    def features(self, images: Tensor) -> Tensor:
        """Images `[B, 3, 64, 64]` in [-1, 1] to features `[B, 128]`."""
        features: Tensor = self.body(images)
        return features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images `[B, 3, 64, 64]` in [-1, 1] to logits `[B, names]` per attribute."""
        features = nn.functional.silu(self.features(images))
        return {attribute: head(features) for attribute, head in self.heads.items()}

    def save(self, directory: Path) -> None:
        """Write the weights as float16 safetensors."""
        tensors = {name: tensor.half().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, directory / WEIGHTS_NAME, metadata={"attributes": json.dumps(ATTRIBUTES)})

    @classmethod
    def load(cls, directory: Path) -> Classifier:
        """Read what `save` wrote; weights become float32."""
        classifier = cls()
        state = load_file(directory / WEIGHTS_NAME)
        classifier.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        return classifier.eval().requires_grad_(False)


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """uint8 `[B, H, W, 3]` to float32 `[B, 3, H, W]` in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def classify_images(
    classifier: Classifier, images: NDArray[np.uint8], scenes: Sequence[Scene], *, batch_size: int = 128
) -> tuple[dict[str, NDArray[np.bool_]], NDArray[np.float64]]:
    """Which attributes of each image are as its scene says, and the classifier's features.

    Args:
        images: uint8 `[N, 64, 64, 3]`.
        scenes: what each of the N images should show.

    Returns:
        per attribute, and under `all_correct`, a boolean `[N]`; features float64 `[N, 128]`.
    """
    if len(images) != len(scenes):
        raise ValueError(f"{len(images)} images for {len(scenes)} scenes; give one scene per image")
    labels = np.array([scene.labels() for scene in scenes])
    right: dict[str, list[NDArray[np.bool_]]] = {attribute: [] for attribute in ATTRIBUTES}
    features = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        seen = classifier.features(to_tensor(images[part]))
        features.append(seen.double().numpy())
        for column, (attribute, head) in enumerate(classifier.heads.items()):
            predicted = head(nn.functional.silu(seen)).argmax(1).numpy()
            right[attribute].append(predicted == labels[part, column])
    joined = {attribute: np.concatenate(parts) for attribute, parts in right.items()}
    joined["all_correct"] = np.logical_and.reduce(list(joined.values()))
    return joined, np.concatenate(features)


class MiniatureClassifier:
    """What `evaluate.classifier: miniature` means: images are classified by what their captions say."""

    name = "miniature"

    def __init__(self, directory: Path | None = None) -> None:
        self._classifier = Classifier.load(directory or weights_path())

    def classify(
        self, images: NDArray[np.uint8], prompts: Sequence[str]
    ) -> tuple[dict[str, NDArray[np.bool_]], NDArray[np.float64]]:
        """See `classify_images`; raises ValueError for a prompt that is no caption of the miniature's world."""
        return classify_images(self._classifier, images, [parse(prompt) for prompt in prompts])

    def reference(self, prompts: Sequence[str], *, seed: int) -> NDArray[np.float64]:
        """Features float64 `[N, 128]` of renders of the same prompts."""
        scenes = [parse(prompt) for prompt in prompts]
        return classify_images(self._classifier, render(scenes, seed=seed), scenes)[1]
