"""In-painting variants of Stable Diffusion 1.x and 2.x: the U-Net also takes a mask and the masked image.

The teacher generates whole images, with a mask that covers the whole image. In training, a sample's mask is a random
rectangle, or the whole image for one sample in four, as in the training of these models. The masked latents are cut
out of x_0, while the pipeline encodes an image with a grey hole; the two differ only near the edge of the rectangle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from condistill.teachers.condition import Condition
from condistill.teachers.families.stable_diffusion import StableDiffusion
from condistill.teachers.traits import CallExample
from condistill.utils.transfer import on_device

WHOLE_IMAGE = 0.25
"""Share of the training masks that cover the whole image."""


class StableDiffusionInpaint(StableDiffusion):
    """A `StableDiffusionInpaintPipeline` whose U-Net takes 9 channels: latents, mask and masked latents.

    The mask is 1 where the image is generated.
    """

    name = "stable_diffusion_inpaint"
    pipeline_classes = ("StableDiffusionInpaintPipeline",)
    has_image_condition = True
    call_example = CallExample(
        arguments='{prompt}, image=load_image("image.png"), mask_image=load_image("mask.png")',
        imports="from diffusers.utils import load_image\n",
    )
    hub_task = "image-to-image"  # the hub has no task for in-painting
    hub_tags = ("inpainting",)
    _grey_latents_cache: Tensor | None = None

    @property
    def input_channels(self) -> int:
        return 2 * self.latent_channels + 1

    @torch.inference_mode(False)  # the cached tensor must be usable in training, even if sampling needs it first
    def _grey_latents(self) -> Tensor:
        """Return latents `[1, C, h, w]` of a grey image: the masked latents of a mask that covers the whole image."""
        if self._grey_latents_cache is None:
            vae = self.pipeline.vae
            grey = torch.zeros(1, 3, *self.image_size, device=self.device, dtype=vae.dtype)
            self._grey_latents_cache = vae.encode(grey).latent_dist.mode() * vae.config.scaling_factor
        return self._grey_latents_cache.to(self.device)

    def encode(self, prompts: Sequence[str]) -> Condition:
        n, grey = len(prompts), self._grey_latents()
        mask = torch.ones_like(grey[:, :1])
        tensors = super().encode(prompts).tensors
        return Condition({**tensors, "mask": mask.repeat(n, 1, 1, 1), "masked_latents": grey.repeat(n, 1, 1, 1)})

    def unconditional(self, condition: Condition) -> Condition:
        image_condition = {name: condition.tensors[name] for name in ("mask", "masked_latents")}
        return Condition({**super().unconditional(condition).tensors, **image_condition})

    def training_condition(self, condition: Condition, x_0: Tensor, uniform: Tensor) -> Condition:
        mask = on_device(random_masks(uniform, (x_0.shape[-2], x_0.shape[-1])).to(x_0.dtype), x_0.device)
        masked_latents = torch.where(mask > 0, self._grey_latents().to(x_0), x_0)
        return Condition({**condition.tensors, "mask": mask, "masked_latents": masked_latents})

    def denoiser_input(self, x_t: Tensor, condition: Condition) -> Tensor:
        image_condition = [condition.tensors[name].to(x_t) for name in ("mask", "masked_latents")]
        return torch.cat([x_t, *image_condition], dim=1)

    def arguments_of_call(self, prompts: Sequence[str]) -> dict[str, Any]:
        image = torch.full((1, 3, *self.image_size), 0.5)  # grey, for pixels in [0, 1]
        return {
            **super().arguments_of_call(prompts),
            "image": image,
            "mask_image": torch.ones_like(image[:, :1]),
            "masked_image_latents": self._grey_latents(),
            "strength": 1.0,
        }


def random_masks(uniform: Tensor, size: tuple[int, int]) -> Tensor:
    """Return rectangular masks of ones `[B, 1, h, w]`; the share `WHOLE_IMAGE` of them covers the whole image.

    Height, width and position of the others are uniform.

    Args:
        uniform: numbers in [0, 1) `[B]`, float64; five numbers of ten bits are read from each.
        size: (h, w).
    """
    digits = []
    for _ in range(5):
        digits.append((uniform * 1024).floor() / 1024)
        uniform = (uniform * 1024).frac()
    is_whole = digits[0] < WHOLE_IMAGE
    inside = []
    for length, side, position in zip(size, digits[1:3], digits[3:5], strict=True):
        extent = torch.where(is_whole, length, 1 + (side * length).floor())[:, None]
        start = (position[:, None] * (length - extent + 1)).floor()
        index = torch.arange(length)
        inside.append((index >= start) & (index < start + extent))
    rows, columns = inside
    return (rows[:, :, None] & columns[:, None, :])[:, None].float()
