"""The choice of the random prompt that a sample is re-paired with; everything here is off by default.

Sampling-importance resampling (Rubin, 1988): a few candidates come from the pool at random, and one is kept with a
probability in proportion to its score. So nothing has to be computed beforehand for a pool of millions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from condistill.config.conditioning import PromptChoiceSettings
from condistill.distill.batches import Batch, BatchSource
from condistill.distill.history import BINS
from condistill.errors import CondistillError
from condistill.prompts.pool import PromptPool
from condistill.prompts.sources import SourceMix, check_pool
from condistill.teachers.family import Family
from condistill.utils.randomness import Stream, generator

_SAME = 1e-5
"""Two encodings of one prompt may differ by this much, by rounding."""
_SAMPLED = 4096
"""Prompts that the mean distance is estimated from."""
_SAMPLED_PER_CLUSTER, _MOST_SAMPLED = 256, 65_536
_BATCH = 256
"""Prompts per forward of the text encoder."""


# Distances are 1 - cosine of embeddings of unit length.


def nearest_distance(queries: Tensor, known: Tensor, *, chunk: int = 16_384) -> Tensor:
    """Return the distance `[Q]` from each query `[Q, D]` to the nearest of `[N, D]`; 0 if the query is among them."""
    cosine = torch.full((len(queries),), -1.0, device=queries.device)
    for start in range(0, len(known), chunk):
        cosine = torch.maximum(cosine, (queries @ known[start : start + chunk].T).amax(1))
    return torch.where(cosine > 1 - _SAME, 0.0, 1 - cosine)


def mean_distance(embeddings: Tensor) -> Tensor:
    """Return the mean distance between two different rows of `[N, D]`, float64."""
    rows = embeddings.double()
    n, norms = len(rows), rows.square().sum()
    return 1 - (rows.sum(0).square().sum() - norms) / (n * (n - 1))


def probabilities(*factors: tuple[Tensor, float]) -> Tensor:
    """Return probabilities of n candidates `[B, n]`, float64, in proportion to the product of factor**power.

    If the products of all candidates are 0, they are equally likely.

    Args:
        factors: values of at least 0 `[B, n]`, and their power above 0.
    """
    log = torch.stack([power * values.double().log() for values, power in factors]).sum(0)
    all_zero = torch.isneginf(log).all(1, keepdim=True)
    return torch.where(all_zero, 0.0, log).softmax(1)


def pick(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return the candidate `[B]` that a number in [0, 1) `[B]` selects, by probabilities `[B, n]`."""
    cumulative = probabilities.cumsum(1)
    return (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(1)


def k_means(points: Tensor, k: int, rng: np.random.Generator, *, rounds: int = 50) -> Tensor:
    """Return the centres `[k, D]`, of unit length, of clusters of `[N, D]` by cosine (Lloyd's algorithm)."""
    centers = points[torch.from_numpy(rng.choice(len(points), k, replace=False))]
    for _ in range(rounds):
        index = (points @ centers.T).argmax(1)
        sums = torch.zeros_like(centers).index_add_(0, index, points)
        norms = sums.norm(dim=1, keepdim=True)
        moved = torch.where(norms > 0, sums / norms.clamp_min(1e-12), centers)  # the centre of an empty cluster stays
        if torch.equal(moved, centers):
            break
        centers = moved
    return centers


class RunningMeans:
    """Running means of values by index, each over about the last hundred values."""

    MEMORY = 100

    def __init__(self, size: int, device: torch.device, *, prior: float) -> None:
        self.sums = torch.full((size,), prior, dtype=torch.float64, device=device)
        self.weights = self.sums.clone()
        """A prior of 1 counts as one value of 1; with a prior of 0, a mean is undefined until its first value."""

    def add(self, index: Tensor, values: Tensor) -> None:
        """Add values `[M]` by index; several values at once weigh as much as one after the other."""
        counts = torch.zeros_like(self.weights).index_add_(0, index, torch.ones_like(values))
        kept = (1 - 1 / self.MEMORY) ** counts
        self.sums = (self.sums * kept).index_add_(0, index, values)
        self.weights = self.weights * kept + counts

    @property
    def means(self) -> Tensor:
        return self.sums / self.weights


class Disagreement:
    """Running losses of clusters of prompts, relative to the mean loss at the same noise level."""

    def __init__(self, centers: Tensor) -> None:
        self.centers = centers
        """`[k, D]`, of unit length."""
        self.loss = RunningMeans(len(centers), centers.device, prior=1.0)
        """By cluster: output loss over the mean output loss in the same tenth of the noise level."""
        self.level = RunningMeans(BINS, centers.device, prior=0.0)
        """By tenth of the noise level: output loss."""

    def cluster(self, embeddings: Tensor) -> Tensor:
        """Return the cluster `[...]` of each embedding `[..., D]`."""
        return (embeddings @ self.centers.T).argmax(-1)

    def add(self, clusters: Tensor, tenths: Tensor, output: Tensor) -> None:
        """Add the output losses `[M]` of re-paired samples."""
        self.level.add(tenths, output)
        mean = self.level.means[tenths]
        self.loss.add(clusters, torch.where(mean > 0, output / mean, 1.0))

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint."""
        parts = {"loss": self.loss, "level": self.level}
        tensors = {f"{name}_{key}": getattr(means, key) for name, means in parts.items() for key in ("sums", "weights")}
        return {"centers": self.centers, **tensors}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the tensors that `state` returned."""
        self.centers = tensors["centers"].to(self.centers)
        for name, means in {"loss": self.loss, "level": self.level}.items():
            means.sums = tensors[f"{name}_sums"].to(means.sums)
            means.weights = tensors[f"{name}_weights"].to(means.weights)


class PromptChoice:
    """Chooses the random prompts of a training. The embeddings for it are computed once, at the start."""

    def __init__(
        self,
        family: Family,
        settings: PromptChoiceSettings,
        source: BatchSource,
        accelerator: Accelerator,
    ) -> None:
        """Embed the cached prompts and a random part of the pool, as far as the settings need them.

        Raises:
            CondistillError: the pool has too few prompts, or their embeddings do not differ.
        """
        cache, pool = source.cache, source.pool
        check_pool(pool, settings)
        self.family, self.settings, self.accelerator = family, settings, accelerator
        self.known: Tensor | None = None
        """Embeddings of the cached prompts `[N, D]`."""
        self.mean_distance: Tensor | None = None
        """Between two random prompts of the pool; a float64 scalar."""
        self.disagreement: Disagreement | None = None
        self._noted: list[Tensor] = []
        if settings.novelty:
            self.known = self.embed(list(dict.fromkeys(cache[i][1] for i in range(len(cache)))))
        rng = generator(source.seed, Stream.PROMPT_CHOICE)
        if settings.distance:
            embeddings, inverse = self._sample(pool, _SAMPLED, rng)
            self.mean_distance = broadcast(mean_distance(embeddings[inverse]))
            if self.mean_distance < _SAME:
                raise CondistillError(
                    "distill.conditioning.prompt_choice.distance needs prompts that differ, and the teacher embeds all "
                    "prompts of the pool alike; set it to 0 or give more prompts"
                )
        if settings.disagreement:
            self.disagreement = Disagreement(broadcast(self._centers(pool, rng)))

    def _sample(self, pool: PromptPool, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return embeddings `[N, D]` of the different ones of `count` random prompts, and indices of all `[count]`."""
        indices = SourceMix.of(pool, self.settings.source_weights).indices(rng.random((count, 2)))
        unique, inverse = np.unique(indices, return_inverse=True)
        return self.embed(pool.take(unique)), torch.from_numpy(inverse)

    def _centers(self, pool: PromptPool, rng: np.random.Generator) -> Tensor:
        k = self.settings.clusters
        points, _ = self._sample(pool, max(4 * k, min(_SAMPLED_PER_CLUSTER * k, _MOST_SAMPLED)), rng)
        if len(points) < k:
            raise CondistillError(
                f"distill.conditioning.prompt_choice.clusters is {k}, and a large sample of the pool has {len(points)} "
                "different prompts; lower it, or make the source weights more alike"
            )
        return k_means(points.cpu(), k, rng).to(points.device)  # on the CPU sums have one order

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Return the embeddings `[N, D]` of prompts."""
        starts = range(0, len(prompts), _BATCH)
        return torch.cat([self.family.text_embedding(prompts[start : start + _BATCH]) for start in starts])

    def choose(self, batch: Batch) -> Batch:
        """Return the batch with one of the candidates as the random prompt of each sample."""
        settings = self.settings
        if settings.candidates == 1 and self.mean_distance is None:
            return batch
        count, n = len(batch.random_prompts), settings.candidates
        cached = batch.cached_prompts if self.mean_distance is not None else []
        embeddings = self.embed([prompt for prompts in batch.candidates for prompt in prompts] + list(cached))
        candidates = embeddings[: count * n].view(count, n, -1)
        kept = torch.zeros(count, dtype=torch.long)
        if n > 1:
            assert batch.draws.prompt_choice is not None
            kept = pick(self._probabilities(candidates).cpu(), batch.draws.prompt_choice.pick)
        chosen = candidates[torch.arange(count), kept.to(candidates.device)]
        stretch = None
        if self.mean_distance is not None:
            distance = (1 - (embeddings[count * n :] * chosen).sum(1)).clamp_min(0)
            stretch = ((distance / self.mean_distance) ** settings.distance).cpu()
        return replace(
            batch,
            random_prompts=[prompts[i] for prompts, i in zip(batch.candidates, kept.tolist(), strict=True)],
            stretch=stretch,
            clusters=self.disagreement.cluster(chosen) if self.disagreement else None,
        )

    def _probabilities(self, candidates: Tensor) -> Tensor:
        """Return the probability of every candidate `[B, n]`, from their embeddings `[B, n, D]`."""
        factors = []
        if self.known is not None:
            distances = nearest_distance(candidates.flatten(0, 1), self.known)
            factors.append((distances.view(candidates.shape[:2]), self.settings.novelty))
        if self.disagreement:
            losses = self.disagreement.loss.means[self.disagreement.cluster(candidates)]
            factors.append((losses, self.settings.disagreement))
        return probabilities(*factors)

    def note(self, batch: Batch, output: Tensor, noise_level: Tensor, counted: Tensor) -> None:
        """Keep the output losses of a micro-batch `[B]` for `update`.

        Args:
            counted: which losses are used: those of isolated, re-paired samples without a blend, bool `[B]`.
        """
        if batch.clusters is None:
            return
        device = output.device
        tenths = (noise_level * BINS).long().clamp(0, BINS - 1)
        columns = [counted, batch.clusters, tenths, output.detach()]
        self._noted.append(torch.stack([column.to(device, torch.float64) for column in columns], 1))

    def update(self) -> None:
        """Add the losses that all processes noted in this step."""
        if self.disagreement is None:
            return
        rows = self.accelerator.gather(torch.cat(self._noted))
        self._noted = []
        rows = rows[rows[:, 0] > 0]
        self.disagreement.add(rows[:, 1].long(), rows[:, 2].long(), rows[:, 3])

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint, the same on every process; none if training does not change them."""
        kept = {} if self.mean_distance is None else {"mean_distance": self.mean_distance}
        return kept | (self.disagreement.state() if self.disagreement else {})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the tensors that `state` returned."""
        if self.mean_distance is not None:
            self.mean_distance = tensors["mean_distance"].to(self.mean_distance)
        if self.disagreement:
            self.disagreement.restore(tensors)
