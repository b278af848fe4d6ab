"""The models that an evaluation measures: a teacher, its students, and finished pipelines of any family.

At most one denoiser is on the device at a time: while a student generates, the denoiser of the pipeline that it is put
into waits in the memory of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from condistill.pipelines.sampling import Sampling
from condistill.run.stage_directory import StageDir
from condistill.teachers.family import Family
from condistill.utils.malloc import release_freed_memory
from condistill.utils.randomness import Stream


@dataclass(frozen=True)
class EvaluatedModel:
    """A model that generates images of the prompts of an evaluation."""

    name: str
    """Unique in its evaluation. Names with a dot are of models that condistill adds, such as references."""
    family: Callable[[], Family]
    """Returns its pipeline, on the device of the process that calls. Called where latents or features are missing; it
    may return the same object each time, or load the pipeline anew, which is then freed after use."""
    sampling: Sampling
    latents: StageDir
    """The directory of its latents. Its inputs are everything that they depend on: weights, prompts, seeds, sampling.
    """
    load: Callable[[Family], nn.Module] | None = None
    """Returns its denoiser on the family's device; None: it is the denoiser of the pipeline."""
    stream: Stream = Stream.EVALUATION_NOISE
    """Of its starting noise. The noise of a row is a function of (seed, stream, number, latent shape)."""
    latent_space: str = ""
    """Latents are compared between models with the same one, and with latents of the same shape. A run's models share
    an autoencoder, and so the empty name; for other pipelines, such as the hash of the autoencoder."""

    @contextmanager
    def loaded(self) -> Iterator[tuple[Family, nn.Module]]:
        """Yield its family and its denoiser, which is the only one on the device for that long."""
        family = self.family()
        if self.load is None:
            yield family, family.denoiser
        else:
            denoiser = self.load(family)
            with family.denoiser_on_host():
                yield family, denoiser
            del denoiser
        del family
        release_freed_memory()

    @contextmanager
    def decoding(self) -> Iterator[Family]:
        """Yield its family, whose denoiser waits in the memory of the host while images are decoded and measured."""
        family = self.family()
        with family.denoiser_on_host():
            yield family
        del family
        release_freed_memory()
