"""Features of generated images: decode latents, resize the images, and let every network read them, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from condistill.config.evaluate import EvaluateSettings
from condistill.evaluate.batches import LATENTS_NAME, Arrays, BatchFiles
from condistill.evaluate.generate import Watch
from condistill.evaluate.metrics.classifier import ImageClassifier
from condistill.evaluate.metrics.metric import CLASSIFIER_FEATURES
from condistill.evaluate.models import EvaluatedModel
from condistill.evaluate.networks.network import NETWORKS, HashOf, LocatedNetwork
from condistill.evaluate.networks.resize import resize
from condistill.evaluate.rounds import Round
from condistill.run.stage_directory import Inputs, StageDir
from condistill.utils.malloc import release_freed_memory

CLASSIFIER = "classifier"
"""The name of the classifier among the sources of features."""
Resize = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""Images uint8 `[N, H, W, 3]` to images of the size of `evaluate.resize`."""


class Extractor(Protocol):
    """A network in memory that reads images."""

    def extract(self, images: NDArray[np.uint8], prompts: Sequence[str] | None, /) -> Mapping[str, NDArray[Any]]:
        """Return features of images `[N, H, W, 3]`, by name, each with N rows.

        Without prompts, features that need a prompt are left out.
        """


@dataclass(frozen=True)
class FeatureSource:
    """A network, or a classifier, whose features metrics read."""

    name: str
    features: tuple[str, ...]
    """The names of the features."""
    inputs: Callable[[], Inputs]
    """Returns what the features of an image depend on: the hash of the weights, and how an image becomes their input.
    Called on the main process only."""
    load: Callable[[torch.device], Extractor]
    """Returns the network on a device."""
    reads_resized: bool = True
    """Whether it reads the images after `evaluate.resize`; a classifier reads them as generated."""


def classifier_source(name: str, classifier: ImageClassifier) -> FeatureSource:
    """Return the classifier of `evaluate.classifier` as a source of features."""

    class Classifying:
        def extract(self, images: NDArray[np.uint8], prompts: Sequence[str] | None, /) -> Mapping[str, NDArray[Any]]:
            assert prompts is not None
            correct, features = classifier.classify(images, prompts)
            return {**correct, CLASSIFIER_FEATURES: features}

    features = (*classifier.attributes, CLASSIFIER_FEATURES)
    return FeatureSource(CLASSIFIER, features, lambda: {"evaluate.classifier": name}, lambda _: Classifying(), False)


def network_source(located: LocatedNetwork, hash_of: HashOf) -> FeatureSource:
    """Return a network that was found as a source of features.

    Args:
        hash_of: returns the SHA-256 of a file.
    """

    def inputs() -> Inputs:
        return {f"evaluate.networks.{located.name} {key}": value for key, value in located.inputs(hash_of).items()}

    return FeatureSource(located.name, NETWORKS[located.name].features, inputs, located.load)


def feature_inputs(latents: StageDir, source: FeatureSource, settings: EvaluateSettings) -> dict[str, Any]:
    """Return what the features of a model's images depend on."""
    inputs: dict[str, Any] = {latents.name: latents.key, **source.inputs()}
    if source.reads_resized and settings.resize is not None:
        inputs |= {"evaluate.resize": settings.resize, "evaluate.resize_filter": settings.resize_filter}
    return inputs


@dataclass
class Loaded:
    """The networks that are on the device; each is loaded when it is first needed, and stays for all models."""

    _extractors: dict[str, Extractor] = field(default_factory=dict)

    def get(self, source: FeatureSource, device: torch.device) -> Extractor:
        """Return a network on the device."""
        if source.name not in self._extractors:
            self._extractors[source.name] = source.load(device)
        return self._extractors[source.name]

    def release(self) -> None:
        """Free all of them."""
        self._extractors.clear()
        release_freed_memory()


@dataclass(frozen=True)
class Reading:
    """How images are read."""

    loaded: Loaded
    resize: Resize
    batch_size: int
    """Images that are decoded and read at once."""


def extract_features(
    model: EvaluatedModel,
    rounds: Sequence[Round],
    directories: Mapping[str, StageDir],
    sources: Sequence[FeatureSource],
    *,
    reading: Reading,
    part: tuple[int, int] = (0, 1),
    watch: Watch = Watch(),  # noqa: B008 - frozen
) -> None:
    """Extract the features of a model's images that are missing or damaged; the directories were begun before.

    An image is decoded once for all networks that miss it. Nothing is decoded or loaded where nothing is missing.

    Args:
        directories: by the name of the source, where its features are kept.
        part: see `BatchFiles.part`.
    """
    latents = BatchFiles.of(model.latents)
    files = {source.name: BatchFiles.of(directories[source.name]) for source in sources}
    jobs: dict[tuple[int, int, int], list[FeatureSource]] = {}
    for source in sources:
        for number, rows in missing_batches(files[source.name], model.name, rounds, part, watch):
            jobs.setdefault((number, rows.start, rows.stop), []).append(source)
    if not jobs:
        return
    with model.decoding() as family:
        used = {source.name: source for readers in jobs.values() for source in readers}
        extractors = {name: reading.loaded.get(source, family.device) for name, source in used.items()}
        for (number, start, stop), readers in sorted(jobs.items(), key=lambda job: job[0]):
            each, rows = rounds[number], range(start, stop)
            found: dict[str, list[Arrays]] = {source.name: [] for source in readers}
            for first in rows[:: reading.batch_size]:
                piece = range(first, min(first + reading.batch_size, stop))
                images = family.decode(torch.from_numpy(latents.read(each, piece)[LATENTS_NAME]))
                prompts = [each.prompts[row] for row in piece]
                resized = reading.resize(images) if any(source.reads_resized for source in readers) else images
                for source in readers:
                    shown = resized if source.reads_resized else images
                    found[source.name].append(dict(extractors[source.name].extract(shown, prompts)))
            for source in readers:
                files[source.name].write(each, rows, join_rows(found[source.name]))
                watch.on_images(len(rows), model.name)


def missing_batches(
    files: BatchFiles, model: str, rounds: Sequence[Round], part: tuple[int, int], watch: Watch
) -> Iterator[tuple[int, range]]:
    """Yield the number of the round and the rows of the files of a process that are missing or damaged."""
    for number, rows in files.part(rounds, part):
        if files.has(rounds[number], rows):
            watch.on_found(len(rows), model)
            continue
        if (path := files.path(rounds[number], rows)).exists():
            watch.on_damaged(path)
        yield number, rows


def join_rows(parts: Sequence[Arrays]) -> Arrays:
    """Return the rows of several pieces one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def resizer(settings: EvaluateSettings) -> Resize:
    """Return the function that gives images the size of `evaluate.resize`."""
    if settings.resize is None:
        return lambda images: images
    return partial(resize, pixels=settings.resize, filter_name=settings.resize_filter)
