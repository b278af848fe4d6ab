"""The classifier of the miniature: predicts every attribute of an image."""

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
ALL_CORRECT = "all_correct"
"""The key of `classify` that says whether every attribute is correct."""


class Classifier(nn.Module):
    """A convolutional network with one linear head per attribute.

    The miniature's Fréchet distance is computed from `features`.
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
        """Return features `[B, 128]` of images `[B, 3, 64, 64]` in [-1, 1]."""
        features: Tensor = self.body(images)
        return features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return logits `[B, words]` per attribute, of images `[B, 3, 64, 64]` in [-1, 1]."""
        features = nn.functional.silu(self.features(images))
        return {attribute: head(features) for attribute, head in self.heads.items()}

    def save(self, directory: Path) -> None:
        """Write the weights as float16 safetensors."""
        tensors = {name: tensor.half().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, directory / WEIGHTS_NAME, metadata={"attributes": json.dumps(ATTRIBUTES)})

    @classmethod
    def load(cls, directory: Path) -> Classifier:
        """Read a directory that `save` wrote; the weights become float32."""
        classifier = cls()
        state = load_file(directory / WEIGHTS_NAME)
        classifier.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        return classifier.eval().requires_grad_(False)


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Convert uint8 images `[B, H, W, 3]` to float32 `[B, 3, H, W]` in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def classify_images(
    classifier: Classifier, images: NDArray[np.uint8], scenes: Sequence[Scene], *, batch_size: int = 128
) -> tuple[dict[str, NDArray[np.bool_]], NDArray[np.float64]]:
    """Return which attributes of each image are correct, and the classifier's features.

    Args:
        images: uint8 `[N, 64, 64, 3]`.
        scenes: the N scenes that the images should show.

    Returns:
        for each attribute and for `all_correct` a bool array `[N]`; features float64 `[N, 128]`.

    Raises:
        ValueError: the numbers of images and scenes differ.
    """
    if len(images) != len(scenes):
        raise ValueError(f"{len(images)} images for {len(scenes)} scenes; give one scene per image")
    labels = np.array([scene.labels() for scene in scenes])
    correct: dict[str, list[NDArray[np.bool_]]] = {attribute: [] for attribute in ATTRIBUTES}
    features = []
    for start in range(0, len(images), batch_size):
        part = slice(start, start + batch_size)
        batch_features = classifier.features(to_tensor(images[part]))
        features.append(batch_features.double().numpy())
        for column, (attribute, head) in enumerate(classifier.heads.items()):
            predicted = head(nn.functional.silu(batch_features)).argmax(1).numpy()
            correct[attribute].append(predicted == labels[part, column])
    joined = {attribute: np.concatenate(parts) for attribute, parts in correct.items()}
    joined[ALL_CORRECT] = np.logical_and.reduce(list(joined.values()))
    return joined, np.concatenate(features)


class MiniatureClassifier:
    """The classifier of `evaluate.classifier: miniature`: compares images with their captions."""

    attributes = (*ATTRIBUTES, ALL_CORRECT)

    def __init__(self, directory: Path | None = None) -> None:
        self._classifier = Classifier.load(directory or weights_path())

    def classify(
        self, images: NDArray[np.uint8], prompts: Sequence[str]
    ) -> tuple[dict[str, NDArray[np.bool_]], NDArray[np.float64]]:
        """See `classify_images`; raises ValueError for a prompt that is not a caption of the miniature's world."""
        return classify_images(self._classifier, images, [parse(prompt) for prompt in prompts])

    def reference(self, prompts: Sequence[str], *, seed: int) -> NDArray[np.float64]:
        """Return features float64 `[N, 128]` of renders of the prompts."""
        scenes = [parse(prompt) for prompt in prompts]
        return classify_images(self._classifier, render(scenes, seed=seed), scenes)[1]
