"""Random conditioning: the idea, on one screen.

Kim et al., Random Conditioning with Distillation for Data-Efficient Diffusion Model Compression, CVPR 2025
(arXiv 2504.02011). The student is trained to match its teacher,

    L = E || student(x_t, t, c) - teacher(x_t, t, c) ||^2,

where x_t is a cached latent x_0 with the noise of timestep t, and c is a prompt. Plain distillation takes the prompt
that x_0 was generated for. Random conditioning replaces it, with a probability p(u) that grows with the noise level
u = t/T, by a prompt chosen at random from a much larger pool of texts. A noisy x_t contains little of its image, so
the teacher's prediction at x_t is close to its predictions on the way to an image of the new prompt. So the student
learns concepts that no cached image shows.

Losses are per sample, `[B]`; the caller reduces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Weighting = Literal["native", "epsilon", "x0", "v", "min_snr"]


# The re-pairing probability p(u): from noise levels u in [0, 1] to probabilities, `[B] -> [B]`.


def exponential(lambda_: float = 5.0) -> Callable[[Tensor], Tensor]:
    """Return p(u) = exp(-lambda (1 - u)), the paper's choice: its mean over u is 0.199 at lambda = 5."""
    return lambda noise_level: torch.exp(-lambda_ * (1 - noise_level))


def sigmoid(slope: float = 20.0, midpoint: float = 0.7) -> Callable[[Tensor], Tensor]:
    """Return p(u) = 1 / (1 + exp(-slope (u - midpoint)))."""
    return lambda noise_level: torch.sigmoid(slope * (noise_level - midpoint))


def constant(probability: float) -> Callable[[Tensor], Tensor]:
    """Return p(u) = probability; 0 is plain distillation."""
    return lambda noise_level: torch.full_like(noise_level, probability)


def effective_noise_level(noise_level: Tensor, stretch: Tensor) -> Tensor:
    """Return u' = 1 - (1 - u) * stretch, clamped to [0, 1], `[B]`: p(u') depends on the distance d of two prompts.

    With stretch = (d / mean d)**power, a random prompt that is nearer than usual to the prompt it replaces is allowed
    at less noise, and a more distant one only at more noise.
    """
    return (1 - (1 - noise_level) * stretch.to(noise_level)).clamp(0, 1)


@dataclass(frozen=True)
class RandomConditioning:
    """The choice of which samples of a batch get a random prompt.

    Use it in your own training loop::

        prompts, replaced = RandomConditioning()(cached, random, noise_level, coin=torch.rand(len(cached)))
    """

    probability: Callable[[Tensor], Tensor] = field(default_factory=exponential)
    empty_prompt_probability: float = 0.1

    def __call__(
        self,
        cached_prompts: Sequence[str],
        random_prompts: Sequence[str],
        noise_level: Tensor,
        *,
        coin: Tensor,
        empty_coin: Tensor | None = None,
    ) -> tuple[list[str], Tensor]:
        """Choose the prompt of every sample.

        Args:
            cached_prompts: the prompts that the latents were generated for, length B.
            random_prompts: prompts from the whole pool, length B.
            noise_level: u = t/T in [0, 1], `[B]`.
            coin: uniform in [0, 1), `[B]`; a prompt is replaced if coin < p(u).
            empty_coin: uniform in [0, 1), `[B]`; after re-pairing, a prompt becomes "" if its coin is below
                `empty_prompt_probability`, so that classifier-free guidance keeps working. None: no prompt does.

        Returns:
            The prompts, and which of them are not the cached ones, bool `[B]`.
        """
        if not len(cached_prompts) == len(random_prompts) == len(noise_level) == len(coin):
            raise ValueError(
                f"{len(cached_prompts)} cached and {len(random_prompts)} random prompts, {len(noise_level)} noise "
                f"levels and {len(coin)} coins: give one of each per sample"
            )
        replaced = coin < self.probability(noise_level)
        pairs = zip(cached_prompts, random_prompts, replaced.tolist(), strict=True)
        prompts = [random if is_replaced else cached for cached, random, is_replaced in pairs]
        if empty_coin is not None:
            empty = empty_coin < self.empty_prompt_probability
            prompts = ["" if is_empty else prompt for prompt, is_empty in zip(prompts, empty.tolist(), strict=True)]
            replaced = replaced | empty
        return prompts, replaced


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error of each sample, in float32: `[B, ...] -> [B]`."""
    return (student.float() - teacher.float()).square().flatten(1).mean(1)


def output_weight(
    weighting: Weighting,
    alpha_bar: Tensor,
    *,
    prediction_type: str = "epsilon",
    clip: tuple[float, float] = (0.1, 10.0),
    gamma: float = 5.0,
) -> Tensor:
    """Return the factor `[B]` that moves the output loss from the teacher's parametrisation into another.

    `native` is 1, as in the paper. At one x_t, an error e in epsilon is an error of -sqrt((1 - a) / a) e in x_0 and
    of e / sqrt(a) in v, where a = alpha_bar. So for an epsilon-predicting teacher `x0` is (1 - a) / a, clipped, which
    favours high noise levels, where the prompt decides; `v` is 1 / a; `min_snr` is min(SNR, gamma) / SNR (Hang et
    al., ICCV 2023, arXiv 2303.09556). For a flow, which predicts noise - x_0 at x_t = (1 - s) x_0 + s noise, an error
    e is an error of (1 - s) e in epsilon and of -s e in x_0.
    """
    if weighting == "native":
        return torch.ones_like(alpha_bar)
    a, snr = alpha_bar, alpha_bar / (1 - alpha_bar)
    if prediction_type == "flow":
        s = (1 - a).sqrt() / (a.sqrt() + (1 - a).sqrt())
        return {
            "epsilon": lambda: (1 - s) ** 2,
            "x0": lambda: (s**2).clamp(*clip),
            "v": lambda: (1 - s) ** 2 + s**2,
            "min_snr": lambda: snr.clamp(max=gamma) * s**2,
        }[weighting]()
    if prediction_type == "v_prediction":  # an epsilon error is sqrt(a) times the v error, and a may be 0
        return {
            "epsilon": lambda: a,
            "x0": lambda: (1 - a).clamp(*clip),
            "v": lambda: torch.ones_like(a),
            "min_snr": lambda: snr.clamp(max=gamma) * (1 - a),
        }[weighting]()
    return {
        "epsilon": lambda: torch.ones_like(a),
        "x0": lambda: (1 / snr).clamp(*clip),
        "v": lambda: 1 / a,
        "min_snr": lambda: snr.clamp(max=gamma) / snr,
    }[weighting]()


def feature_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    *,
    weights: Sequence[float] | None = None,
    normalized: bool = False,
) -> Tensor:
    """Return the sum over paired layers of the MSE between their feature maps, `[B]`.

    Args:
        weights: one factor per layer; None: 1.
        normalized: divide each layer's loss by the mean square of the teacher's feature map, so that no layer
            outweighs the others.
    """
    losses = [mse(s, t) for s, t in zip(student, teacher, strict=True)]
    if normalized:
        losses = [loss / mse(t, torch.zeros_like(t)).clamp_min(1e-12) for loss, t in zip(losses, teacher, strict=True)]
    if weights is not None:
        losses = [weight * loss for loss, weight in zip(losses, weights, strict=True)]
    return torch.stack(losses).sum(0)


def guidance_loss(
    student: Tensor, student_unconditional: Tensor, teacher: Tensor, teacher_unconditional: Tensor
) -> Tensor:
    """Return the MSE between the guidance directions, which sampling multiplies by the guidance scale, `[B]`."""
    return mse(student - student_unconditional, teacher - teacher_unconditional)


def task_loss(student: Tensor, target: Tensor, replaced: Tensor) -> Tensor:
    """Return the MSE to the true noise (or velocity), `[B]`: 0 for a replaced prompt, which has no true target."""
    return torch.where(replaced, 0.0, mse(student, target))
