"""Random conditioning: the idea, on one screen.

Kim et al., Random Conditioning with Distillation for Data-Efficient Diffusion Model Compression, CVPR 2025
(arXiv 2504.02011). A cached latent x_0 is noised to x_t, and with a probability p(u) that grows with the noise
level u = t/T its own prompt is thrown away for one drawn at random from a far larger pool of texts. Teacher and
student both see (x_t, t, prompt), and the student matches the teacher: so it learns concepts that no image shows.

Losses are per sample, `[B]`; the caller reduces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Weighting = Literal["native", "epsilon", "x0", "v", "min_snr"]


# p(u): how likely a prompt is thrown away at noise level u in [0, 1], `[B] -> [B]`.


def exponential(lambda_: float = 5.0) -> Callable[[Tensor], Tensor]:
    """p(u) = exp(-lambda (1 - u)), the paper's choice: mean 0.199 at lambda = 5."""
    return lambda noise_level: torch.exp(-lambda_ * (1 - noise_level))


def sigmoid(slope: float = 20.0, midpoint: float = 0.7) -> Callable[[Tensor], Tensor]:
    """p(u) = 1 / (1 + exp(-slope (u - midpoint)))."""
    return lambda noise_level: torch.sigmoid(slope * (noise_level - midpoint))


def constant(probability: float) -> Callable[[Tensor], Tensor]:
    """p(u) = probability; 0 is plain distillation."""
    return lambda noise_level: torch.full_like(noise_level, probability)


@dataclass(frozen=True)
class RandomConditioning:
    """Decides which samples of a batch meet a random prompt.

    Use it in a loop of your own::

        prompts, replaced = RandomConditioning()(own, random, noise_level, coin=torch.rand(len(own)))
    """

    probability: Callable[[Tensor], Tensor] = field(default_factory=exponential)
    empty_prompt_probability: float = 0.1

    def __call__(
        self,
        own: Sequence[str],
        random: Sequence[str],
        noise_level: Tensor,
        *,
        coin: Tensor,
        empty_coin: Tensor | None = None,
    ) -> tuple[list[str], Tensor]:
        """Choose the prompt of every sample.

        Args:
            own: the prompts the latents were drawn for, B of them.
            random: as many, drawn from the whole pool.
            noise_level: u = t/T in [0, 1], `[B]`.
            coin: uniform in [0, 1), `[B]`; a sample is re-paired where coin < p(u).
            empty_coin: uniform in [0, 1), `[B]`; where below `empty_prompt_probability` the prompt becomes "",
                after re-pairing, so that classifier-free guidance keeps working. None: never.

        Returns:
            the prompts, and which samples no longer have their own prompt, bool `[B]`.
        """
        if not len(own) == len(random) == len(noise_level) == len(coin):
            raise ValueError(
                f"{len(own)} own and {len(random)} random prompts, {len(noise_level)} noise levels and "
                f"{len(coin)} coins: give one of each per sample"
            )
        replaced = coin < self.probability(noise_level)
        prompts = [r if new else o for o, r, new in zip(own, random, replaced.tolist(), strict=True)]
        if empty_coin is not None:
            empty = empty_coin < self.empty_prompt_probability
            prompts = ["" if e else prompt for prompt, e in zip(prompts, empty.tolist(), strict=True)]
            replaced = replaced | empty
        return prompts, replaced


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of each sample, in float32: `[B, ...] -> [B]`."""
    return (student.float() - teacher.float()).square().flatten(1).mean(1)


def output_weight(
    weighting: Weighting,
    alpha_bar: Tensor,
    *,
    prediction_type: str = "epsilon",
    clip: tuple[float, float] = (0.1, 10.0),
    gamma: float = 5.0,
) -> Tensor:
    """Factor `[B]` that moves the output loss from the teacher's parametrisation into another.

    `native` leaves it there, as the paper does. For one x_t an error e in epsilon is an error of -sqrt((1 - a) / a) e
    in x_0 and of e / sqrt(a) in v, where a = alpha_bar: so from an epsilon teacher `x0` is (1 - a) / a, clipped, and
    favours noisy timesteps, where the prompt decides; `v` is 1 / a; `min_snr` is min(SNR, gamma) / SNR (Hang et al.,
    ICCV 2023, arXiv 2303.09556). From a flow, whose prediction is noise - x_0 at x_t = (1 - s) x_0 + s noise, an error
    is (1 - s) of it in epsilon and -s of it in x_0.
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
    """Sum over paired layers of the MSE between feature maps, `[B]`.

    Args:
        weights: one factor per layer; None: 1.
        normalized: divide each by the teacher's mean square there, so that no layer drowns the others.
    """
    losses = [mse(s, t) for s, t in zip(student, teacher, strict=True)]
    if normalized:
        losses = [loss / mse(t, torch.zeros_like(t)).clamp_min(1e-12) for loss, t in zip(losses, teacher, strict=True)]
    if weights is not None:
        losses = [weight * loss for loss, weight in zip(losses, weights, strict=True)]
    return torch.stack(losses).sum(0)


def guidance_loss(student: Tensor, student_null: Tensor, teacher: Tensor, teacher_null: Tensor) -> Tensor:
    """MSE between the guidance directions, `[B]`: what sampling multiplies by the guidance scale."""
    return mse(student - student_null, teacher - teacher_null)


def task_loss(student: Tensor, target: Tensor, replaced: Tensor) -> Tensor:
    """MSE to the true noise (or velocity), `[B]`: 0 where the prompt was replaced, which has no true target."""
    return torch.where(replaced, 0.0, mse(student, target))
