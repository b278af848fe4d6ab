"""Metrics whose values per image were computed in another environment."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import Field

from condistill.evaluate.metrics.mean import MeanMetric
from condistill.evaluate.metrics.metric import Metric, Samples
from condistill.utils.record import Record


class OutsideRecord(Record):
    """What a metric of outside scores is."""

    label: str = Field(min_length=1, max_length=60)
    """As tables show it."""
    direction: Literal["higher", "lower"]
    """Which values are better."""
    description: str = Field(default="", max_length=300)
    """The rest of a sentence that begins with the label, such as "agreement of image and prompt"."""


def outside_feature(name: str) -> str:
    """Return the name of the feature that holds the values of an outside metric, `[N]`."""
    return f"outside_{name}"


@lru_cache(maxsize=1024)
def outside_metric(metric: str, record: OutsideRecord) -> type[Metric]:
    """Return the metric of an outside score: the mean of its values. It is not in the registry."""

    class Outside(MeanMetric):
        name = metric
        label = record.label
        description = record.description or "computed by another program"
        direction = record.direction
        needs = (outside_feature(metric),)

        def per_image(self, samples: Samples) -> NDArray[Any]:
            return samples.features[self.needs[0]]

    return Outside
