"""A network without weights, for tests of what uses networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from condistill.errors import CondistillError
from condistill.evaluate.metrics.metric import CLIP_IMAGE, CLIP_SCORE, DINOV2
from condistill.evaluate.networks.network import NETWORKS, Features, LocatedNetwork, Network

FAKE_DIM = 6


class FakeNetwork(Network):
    """Its features are fixed projections of the mean colours of four quarters of an image; its file has a seed.

    Stands for `dinov2` unless another name is given, so that recipes can name it.
    """

    name = "dinov2"
    features = (DINOV2,)
    usual = "fake.txt"
    serves = "nothing"
    published = "fake.txt of nobody"
    weights_bytes = 3
    loads: ClassVar[list[str]] = []
    """The names of loaded networks, in order."""

    @classmethod
    def locate(cls, source: str, *, download: bool = True) -> LocatedNetwork:  # noqa: ARG003
        path = Path(source)
        if not path.is_file():
            raise CondistillError(f"evaluate.networks.{cls.name}: {path} does not exist; {cls.published} has 3 B")
        return LocatedNetwork(cls.name, source, "none", (path,))

    @classmethod
    def load(cls, located: LocatedNetwork, device: torch.device) -> Network:  # noqa: ARG003
        cls.loads.append(cls.name)
        return cls(located)

    def extract(self, images: NDArray[np.uint8], prompts: Sequence[str] | None) -> Features:  # noqa: ARG002
        generator = np.random.default_rng(int(self.located.weights[0].read_text()))
        projection = generator.standard_normal((12, FAKE_DIM))
        return {DINOV2: (quarters(images) @ projection).astype(np.float32)}


class FakeClip(FakeNetwork):
    """Stands for `clip`."""

    name = "clip"
    features = (CLIP_IMAGE, CLIP_SCORE)

    def extract(self, images: NDArray[np.uint8], prompts: Sequence[str] | None) -> Features:
        embeddings = super().extract(images, prompts)[DINOV2]
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        found: Features = {CLIP_IMAGE: embeddings}
        if prompts is not None:
            found[CLIP_SCORE] = np.array(
                [row[len(prompt) % FAKE_DIM] for row, prompt in zip(embeddings, prompts, strict=True)], np.float32
            )
        return found


def quarters(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean colours of four quarters of images, `[N, 12]`, between -1 and 1."""
    height, width = images.shape[1] // 2, images.shape[2] // 2
    rows = (slice(0, height), slice(height, None))
    columns = (slice(0, width), slice(width, None))
    parts = [images[:, row, column].mean((1, 2)) for row in rows for column in columns]
    return np.concatenate(parts, 1) / 127.5 - 1


@contextmanager
def fake_networks(*networks: type[Network]) -> Iterator[None]:
    """Replace entries of the registry."""
    before = dict(NETWORKS._entries)
    NETWORKS._entries.update({network.name: network for network in networks or (FakeNetwork, FakeClip)})
    try:
        yield
    finally:
        NETWORKS._entries.clear()
        NETWORKS._entries.update(before)
