"""The classifiers that `evaluate.classifier` can name, and the features that they compute for metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from condistill.errors import CondistillError


class ImageClassifier(Protocol):
    """Knows what an image of a prompt should show; the miniature has one."""

    @property
    def attributes(self) -> Sequence[str]:
        """The keys that `classify` returns, `all_correct` included."""

    def classify(
        self, images: NDArray[np.uint8], prompts: Sequence[str]
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64]]:
        """Return which attributes of uint8 images `[N, H, W, 3]` are correct, and the images' features.

        Returns:
            for each attribute and for `all_correct` a bool array `[N]`; features float64 `[N, D]`.
        """

    def reference(self, prompts: Sequence[str], *, seed: int) -> NDArray[np.float64]:
        """Return the features `[N, D]` of true images of the prompts."""


def choose_classifier(name: str, prompts: Iterable[str]) -> ImageClassifier | None:
    """Return the classifier of `evaluate.classifier`, or None for `none`.

    Args:
        prompts: every prompt whose images it will classify.

    Raises:
        CondistillError: the miniature's classifier is chosen and a prompt is not a caption of the miniature's world.
    """
    if name == "none":
        return None
    from condistill.miniature.classifier import MiniatureClassifier
    from condistill.miniature.world import parse

    for prompt in prompts:
        try:
            parse(prompt)
        except ValueError as error:
            raise CondistillError(f"evaluate.classifier is 'miniature', and {error}; set it to 'none'") from error
    return MiniatureClassifier()
