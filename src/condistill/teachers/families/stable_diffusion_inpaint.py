"""In-painting variants of Stable Diffusion 1.x and 2.x: the U-Net also sees a mask and what the mask leaves.

The teacher draws whole images, as if the mask were everywhere. In training a sample's mask is a random rectangle or,
every fourth time, everywhere, as in the models' own training; what it leaves is then cut out of the latents, where the
pipeline encodes an image with a grey hole: the same but near the rectangle's edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from condistill.teachers.condition import Condition
from condistill.teachers.families.stable_diffusion import StableDiffusion

WHOLE = 0.25
"""Share of the training's masks that cover the image."""


class StableDiffusionInpaint(StableDiffusion):
    """A `StableDiffusionInpaintPipeline` whose U-Net takes 9 channels: latents, mask (1: to be drawn), what is left."""

    name = "stable_diffusion_inpaint"
    pipeline_classes = ("StableDiffusionInpaintPipeline",)
    has_image_condition = True
    _blank: Tensor | None = None

    @property
    def _input_channels(self) -> int:
        return 2 * self.latent_channels + 1

    @property
    def _image_size(self) -> tuple[int, int]:
        height, width = (size * self.pixels_per_latent for size in self.latent_shape[1:])
        return height, width

    @torch.inference_mode(False)  # the first to ask may only draw, and a training goes on with them
    def _blank_latents(self) -> Tensor:
        """Latents `[1, C, h, w]` of an image that is grey all over, which is what a mask leaves of it."""
        if self._blank is None:
            vae = self.pipeline.vae
            grey = torch.zeros(1, 3, *self._image_size, device=self.device, dtype=vae.dtype)
            self._blank = vae.encode(grey).latent_dist.mode() * vae.config.scaling_factor
        return self._blank.to(self.device)

    def encode(self, prompts: Sequence[str]) -> Condition:
        n, blank = len(prompts), self._blank_latents()
        everywhere = torch.ones_like(blank[:, :1])
        tensors = super().encode(prompts).tensors
        return Condition({**tensors, "mask": everywhere.repeat(n, 1, 1, 1), "masked_latents": blank.repeat(n, 1, 1, 1)})

    def unconditional(self, condition: Condition) -> Condition:
        kept = {name: condition.tensors[name] for name in ("mask", "masked_latents")}
        return Condition({**self.encode([""] * len(condition)).tensors, **kept})

    def training_condition(self, condition: Condition, x_0: Tensor, uniform: Tensor) -> Condition:
        mask = random_masks(uniform, (x_0.shape[-2], x_0.shape[-1])).to(x_0)
        masked_latents = torch.where(mask > 0, self._blank_latents().to(x_0), x_0)
        return Condition({**condition.tensors, "mask": mask, "masked_latents": masked_latents})

    def _seen(self, x_t: Tensor, condition: Condition) -> Tensor:
        beside = [condition.tensors[name].to(x_t) for name in ("mask", "masked_latents")]
        return torch.cat([x_t, *beside], dim=1)

    def _asked(self, prompts: Sequence[str]) -> dict[str, Any]:
        image = torch.full((1, 3, *self._image_size), 0.5)  # of pixels in [0, 1]
        return {
            **super()._asked(prompts),
            "image": image,
            "mask_image": torch.ones_like(image[:, :1]),
            "masked_image_latents": self._blank_latents(),
            "strength": 1.0,
        }


def random_masks(uniform: Tensor, size: tuple[int, int]) -> Tensor:
    """Rectangles of ones `[B, 1, h, w]`, every side and place equally likely, and `WHOLE` of them everywhere.

    Args:
        uniform: numbers in [0, 1) `[B]`, float64: five of ten bits are read from each.
        size: (h, w).
    """
    digits = []
    for _ in range(5):
        digits.append((uniform * 1024).floor() / 1024)
        uniform = (uniform * 1024).frac()
    whole = digits[0] < WHOLE
    inside = []
    for length, side, place in zip(size, digits[1:3], digits[3:5], strict=True):
        extent = torch.where(whole, length, 1 + (side * length).floor())[:, None]
        start = (place[:, None] * (length - extent + 1)).floor()
        here = torch.arange(length)
        inside.append((here >= start) & (here < start + extent))
    rows, columns = inside
    return (rows[:, :, None] & columns[:, None, :])[:, None].float()
