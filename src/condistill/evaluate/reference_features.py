"""Features of the user's reference images, in files of one batch each like those of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from condistill.config.evaluate import EvaluateSettings
from condistill.evaluate.batches import BatchFiles
from condistill.evaluate.features import Extractor, FeatureSource, Reading, join_rows, missing_batches
from condistill.evaluate.generate import Watch
from condistill.evaluate.mapped import Order, map_features
from condistill.evaluate.metrics.metric import ReferenceSet
from condistill.evaluate.networks.network import HashOf
from condistill.evaluate.record import ReferenceImagesRecord
from condistill.evaluate.reference_images import ReferenceFolder, ReferenceImages
from condistill.evaluate.reference_sets import compared_features, moments_of
from condistill.evaluate.rounds import ALL, Round
from condistill.run.stage_directory import StageDir

REFERENCE_IMAGES = "reference.images"
"""The name of the reference images among the models that have features."""


@dataclass(frozen=True)
class ReferenceTask:
    """The reference images of an evaluation, and the networks that read them."""

    images: ReferenceImages
    sources: Sequence[FeatureSource]
    """Those whose features some metric compares with reference images; none read a statistics file."""
    hash_of: HashOf

    @classmethod
    def of(cls, settings: EvaluateSettings, sources: Sequence[FeatureSource], hash_of: HashOf) -> ReferenceTask | None:
        """Return the reference images of `evaluate.reference`; None if it is empty.

        Raises:
            CondistillError: they cannot be used.
        """
        if settings.reference is None:
            return None
        images = ReferenceImages.open(settings.reference, settings)
        read = [each for each in sources if each.reads_resized and {*each.features}.intersection(compared_features())]
        return cls(images, read if isinstance(images, ReferenceFolder) else [], hash_of)

    def inputs(self, source: FeatureSource) -> dict[str, Any]:
        """Return what the features of the images depend on; called on the main process only."""
        own = {f"evaluate.reference {name}": value for name, value in self.images.inputs(self.hash_of).items()}
        return {**own, **source.inputs()}

    def record(self) -> ReferenceImagesRecord:
        """Return what `metrics.json` says about the images."""
        return self.images.record(self.hash_of)

    @cached_property
    def round_(self) -> Round:
        """The images as a round, whose prompts are the names of the files."""
        names = [file.name for file in self.images.files] if isinstance(self.images, ReferenceFolder) else []
        return Round(0, names, {ALL: slice(0, len(names))})

    def extract(
        self,
        directories: Mapping[str, StageDir],
        names: Sequence[str],
        *,
        reading: Reading,
        device: torch.device,
        part: tuple[int, int] = (0, 1),
        watch: Watch = Watch(),  # noqa: B008 - frozen
    ) -> None:
        """Extract the features that are missing or damaged; the directories were begun before.

        Args:
            directories: by the name of the network, where its features are kept.
            names: of the networks that miss images.
            part: see `BatchFiles.part`.
        """
        assert isinstance(self.images, ReferenceFolder)
        for source in self.sources:
            if source.name not in names:
                continue
            files = BatchFiles.of(directories[source.name])
            extractor: Extractor | None = None
            for _, rows in missing_batches(files, REFERENCE_IMAGES, [self.round_], part, watch):
                extractor = extractor or reading.loaded.get(source, device)
                starts = rows[:: reading.batch_size]
                pieces = [range(first, min(first + reading.batch_size, rows.stop)) for first in starts]
                found = [dict(extractor.extract(self.images.take(piece), None)) for piece in pieces]
                files.write(self.round_, rows, join_rows(found))
                watch.on_images(len(rows), REFERENCE_IMAGES)

    def sets(self, directories: Mapping[str, StageDir], folder: Path) -> dict[str, ReferenceSet]:
        """Return the reference set of each feature; their arrays are mapped from files in `folder`."""
        known = {name: self.images.moments(name) for name in compared_features()}
        sets = {name: ReferenceSet(moments) for name, moments in known.items() if moments is not None}
        files = {name: BatchFiles.of(directory) for name, directory in directories.items()}
        if files:
            mapped = map_features(folder / REFERENCE_IMAGES, Order([self.round_]), files)
            compared = (name for name in compared_features() if name in mapped)
            sets |= {name: ReferenceSet(moments_of(mapped[name]), mapped[name]) for name in compared}
        return sets
