"""The one contract between condistill and a kind of model. Nothing outside `teachers/` looks inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from condistill.errors import CondistillError
from condistill.teachers.condition import Condition, mean_token_embedding
from condistill.teachers.noise.schedule import NoiseSchedule


class Family(ABC):
    """A teacher pipeline and how to speak to its denoiser.

    Shapes: B samples, latents `[B, C, h, w]`, timesteps `[B]` as the denoiser takes them.
    """

    name: ClassVar[str]
    pipeline_classes: ClassVar[tuple[str, ...]]
    """diffusers pipelines this family stands for, as in `model_index.json`."""
    denoiser_name: ClassVar[str]
    """The pipeline's component that is compressed: `unet` or `transformer`."""
    denoiser_class: ClassVar[str]
    """What diffusers calls its class."""
    has_image_condition: ClassVar[bool] = False
    """Whether a condition holds parts of the image too; denoising paths are not possible then."""

    def __init__(self, pipeline: Any, *, resolution: int | None = None) -> None:
        """Take over a pipeline of one of `pipeline_classes`.

        Args:
            resolution: height and width of the images in pixels; None: the pipeline's own.

        Raises:
            CondistillError: the pipeline, or the resolution, is not of a kind that the family can teach.
        """
        self.pipeline = pipeline
        self.resolution = resolution
        pipeline.set_progress_bar_config(disable=True)
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)
        multiple = 1 if resolution is None else self.pixels_per_latent * self.latent_multiple
        if resolution is not None and resolution % multiple:
            near = sorted({max(resolution // multiple, 1) * multiple, (resolution // multiple + 1) * multiple})
            raise CondistillError(
                f"teacher.resolution is {resolution}; this teacher draws in multiples of {multiple} pixels, "
                f"nearest: {', '.join(map(str, near))}"
            )
        self.noise = self.build_noise()

    @abstractmethod
    def build_noise(self) -> NoiseSchedule:
        """Return the noise schedule of the pipeline's scheduler.

        Raises:
            CondistillError: the family cannot teach with this scheduler.
        """

    @property
    def denoiser(self) -> Any:
        """The teacher's denoiser."""
        return getattr(self.pipeline, self.denoiser_name)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.denoiser.parameters()).device
        return device

    def to(self, device: torch.device | str) -> Family:
        """Move the whole pipeline."""
        self.pipeline.to(device)
        return self

    @property
    def latent_channels(self) -> int:
        """C of a latent."""
        return int(self.denoiser.config.in_channels)

    @property
    def own_latent_size(self) -> tuple[int, int]:
        """(h, w) of a latent at the pipeline's own size."""
        size = self.denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return int(height), int(width)

    @property
    def pixels_per_latent(self) -> int:
        """How many pixels a latent stands for, along one side."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def latent_multiple(self) -> int:
        """What a latent's height and width must be multiples of, for the denoiser."""
        config = self.denoiser.config
        stages = config.get("block_out_channels")
        return 2 ** (len(stages) - 1) if stages else int(config.get("patch_size") or 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image at the pipeline's own size, or at the one asked for."""
        if self.resolution is None:
            return self.latent_channels, *self.own_latent_size
        size = self.resolution // self.pixels_per_latent
        return self.latent_channels, size, size

    @property
    def image_tokens(self) -> int:
        """Tokens of one image in the denoiser: patches of `latent_multiple` latents along a side."""
        height, width = (size // self.latent_multiple for size in self.latent_shape[1:])
        return height * width

    @property
    @abstractmethod
    def text_length(self) -> int:
        """Tokens of text the denoiser attends to: what its cost depends on beside the latents."""

    @classmethod
    @abstractmethod
    def example_inputs(cls, denoiser: Any, size: tuple[int, int], text_length: int) -> dict[str, Any]:
        """Keyword arguments of one forward pass of one sample, on the meta device, from the denoiser's config alone.

        Args:
            size: (h, w) of the latents.
            text_length: tokens of the prompt.

        Raises:
            CondistillError: the denoiser asks for a condition that the family does not give.
        """

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Condition:
        """The condition of each prompt, length B."""

    def check_prompts(self, prompts: Iterable[str]) -> None:  # noqa: B027 - any text can be encoded
        """Whether all prompts can be encoded.

        Raises:
            CondistillError: one cannot.
        """

    def unconditional(self, condition: Condition) -> Condition:
        """Return the condition of the empty prompt, length B, with the image condition of `condition` if it has one."""
        return self.encode([""] * len(condition))

    def training_condition(self, condition: Condition, x_0: Tensor, uniform: Tensor) -> Condition:  # noqa: ARG002
        """Return the condition in training, with an image condition made from x_0 where the denoiser takes one.

        Args:
            x_0: latents `[B, C, h, w]`.
            uniform: random numbers in [0, 1), float64 `[B]` on the CPU, that decide the image condition.
        """
        return condition

    @torch.no_grad()
    def text_embedding(self, prompts: Sequence[str]) -> Tensor:
        """What tells prompts apart: float32 `[B, D]` of unit length, and zeros for the empty prompt."""
        return mean_token_embedding(self.encode([*prompts, ""]), prompts)

    @abstractmethod
    def predict(self, denoiser: nn.Module, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The denoiser's prediction `[B, C, h, w]` in float32, in its own parametrisation.

        A guidance scale in the condition goes to denoisers that take one; others are asked without.
        """

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents to images `[B, H, W, 3]`."""
        vae = self.pipeline.vae
        scaled = latents.to(self.device, vae.dtype) / vae.config.scaling_factor
        shift = getattr(vae.config, "shift_factor", None)  # of flows, whose latents are centred
        return to_pixels(vae.decode(scaled if shift is None else scaled + shift, return_dict=False)[0])

    @contextmanager
    def using(self, denoiser: nn.Module, scheduler: Any = None) -> Iterator[Any]:
        """The pipeline with another denoiser, and perhaps another scheduler, in place."""
        parts = {self.denoiser_name: denoiser} | ({"scheduler": scheduler} if scheduler else {})
        own = {name: getattr(self.pipeline, name) for name in parts}
        for name, part in parts.items():
            setattr(self.pipeline, name, part)
        try:
            yield self.pipeline
        finally:
            for name, part in own.items():
                setattr(self.pipeline, name, part)

    @torch.inference_mode()
    def sample(
        self,
        denoiser: nn.Module,
        prompts: Sequence[str],
        noise: Tensor,
        *,
        num_inference_steps: int,
        guidance_scale: float,
        seeds: Sequence[int] | None = None,
        scheduler: Any = None,
    ) -> Tensor:
        """Draw with the pipeline's own call and scheduler: latents `[B, C, h, w]`, scaled as x_0 is.

        Args:
            noise: starting noise `[B, C, h, w]`, standard normal.
            seeds: one per image, for schedulers that add noise on the way.
            scheduler: in place of the pipeline's own.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds] if seeds else None
        with self.using(denoiser, scheduler) as pipeline:
            latents = pipeline(
                **self._asked(prompts),
                latents=self._pack(noise.to(self.device, self._dtype(denoiser))),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=generators,
                output_type="latent",
            ).images
        return self._unpack(latents).float()

    def _asked(self, prompts: Sequence[str]) -> dict[str, Any]:
        """What the pipeline's own call is asked to draw."""
        height, width = (size * self.pixels_per_latent for size in self.latent_shape[1:])
        return {"prompt": list(prompts), "height": height, "width": width}

    def _pack(self, latents: Tensor) -> Tensor:
        """Latents `[B, C, h, w]` as the pipeline's own call takes them."""
        return latents

    def _unpack(self, latents: Tensor) -> Tensor:
        """What `_pack` packed."""
        return latents

    @staticmethod
    def _dtype(module: nn.Module) -> torch.dtype:
        return next(module.parameters()).dtype


def to_pixels(images: Tensor) -> NDArray[np.uint8]:
    """Images `[B, 3, H, W]` in [-1, 1] as bytes `[B, H, W, 3]`."""
    clamped = images.float().clamp(-1, 1)
    pixels: NDArray[np.uint8] = ((clamped + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels
