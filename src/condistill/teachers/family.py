"""The contract between condistill and a kind of model: all that other packages know about a teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from condistill.errors import CondistillError
from condistill.teachers.aside import encode_aside
from condistill.teachers.condition import Condition, mean_token_embedding
from condistill.teachers.configs import checked_count, checked_factor, unusable
from condistill.teachers.defaults import DefaultSampling, Origin, default_sampling
from condistill.teachers.exportable import Exportable
from condistill.teachers.noise.schedule import NoiseSchedule, is_of_consistency_model
from condistill.teachers.pixels import decode_in_slices
from condistill.teachers.traits import CallExample, GuidanceSpec, LayerList
from condistill.utils.text import first_line, shorten

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin


class Family(Exportable, ABC):
    """A teacher pipeline of one kind of model.

    A family declares the class attributes and implements the abstract methods; the other methods have defaults that
    suit most pipelines. Shapes: B samples, latents `[B, C, h, w]`, timesteps `[B]` as the denoiser takes them.
    """

    name: ClassVar[str]
    """Name of the family in recipes, `teacher.family`."""
    pipeline_classes: ClassVar[tuple[str, ...]]
    """diffusers pipelines of this family, as named in `model_index.json`."""
    denoiser_name: ClassVar[str]
    """The pipeline component that is compressed: `unet` or `transformer`."""
    denoiser_class: ClassVar[str]
    """diffusers class of the denoiser. Families with the same class must agree in the next three attributes."""
    can_cut_width: ClassVar[bool] = False
    """Whether the denoiser is a U-Net, of which students can remove blocks and channels; otherwise only layers."""
    layer_lists: ClassVar[tuple[LayerList, ...]] = ()
    """The denoiser's lists of layers, unless it is a U-Net."""
    guidance: ClassVar[GuidanceSpec] = GuidanceSpec()
    has_image_condition: ClassVar[bool] = False
    """Whether a condition holds parts of the image too; denoising paths are not possible then."""
    call_arguments: ClassVar[Mapping[str, Any]] = {}
    """Constant arguments of the pipeline's call when condistill samples."""
    call_example: ClassVar[CallExample] = CallExample()
    hub_task: ClassVar[str] = "text-to-image"
    """Task of its pipelines in the metadata of a model card, the hub's `pipeline_tag`."""
    hub_tags: ClassVar[tuple[str, ...]] = ()
    """Further tags of its pipelines on the hub."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Further packages that some pipelines of the family need: those whose tokenizer is a SentencePiece file."""
    origin: Origin = Origin()
    """Where the teacher comes from; set by what loads it."""
    _device: torch.device | None = None
    """The device, while the denoiser is elsewhere."""

    def __init__(self, pipeline: DiffusionPipeline, *, resolution: int | None = None) -> None:
        """Take a pipeline of one of `pipeline_classes`, and freeze its models.

        Args:
            resolution: height and width of the images in pixels; None: the pipeline's default.

        Raises:
            CondistillError: the family does not support this pipeline or resolution.
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
                f"teacher.resolution is {resolution}; images of this teacher must be a multiple of {multiple} pixels, "
                f"nearest: {', '.join(map(str, near))}"
            )
        if not is_of_consistency_model(pipeline.scheduler):
            self.noise  # noqa: B018 - refuses a scheduler that the family does not support

    @cached_property
    def noise(self) -> NoiseSchedule:
        """The noise schedule of the pipeline's scheduler.

        Raises:
            CondistillError: the family does not support this scheduler, or it is that of a consistency model, which
                can be sampled but cannot teach.
        """
        return self.build_noise()

    @classmethod
    def pipeline_type(cls, pipeline_class: str) -> type[DiffusionPipeline]:
        """Return one of `pipeline_classes` by its name; a family of pipelines outside diffusers overrides this."""
        import diffusers

        kind: type[DiffusionPipeline] = getattr(diffusers, pipeline_class)
        return kind

    @abstractmethod
    def build_noise(self) -> NoiseSchedule:
        """Return the noise schedule of the pipeline's scheduler.

        Raises:
            CondistillError: the family does not support this scheduler.
        """

    def check_configs(self) -> None:
        """Check that the values that are needed after training can be used, and those of the noise.

        Raises:
            CondistillError: names the file and the key.
        """
        vae = getattr(self.pipeline, "vae", None)
        if vae is not None:
            file = "vae/config.json of the teacher"
            checked_factor(vae.config.get("scaling_factor"), "scaling_factor", file)
            if vae.config.get("shift_factor"):
                checked_factor(vae.config["shift_factor"], "shift_factor", file)
        for side in self.latent_shape:
            checked_count(side, "the size of the latents", f"{self.denoiser_name}/config.json of the teacher")
        self.check_sampling(2)
        if is_of_consistency_model(self.pipeline.scheduler):
            return
        timesteps = self.noise.timesteps(torch.tensor([0.0, 0.5, 0.999]))
        levels = torch.cat([self.noise.noise_level(timesteps), self.noise.alpha_bar(timesteps)])
        if not bool(levels.isfinite().all()) or len(self.noise.solver_timesteps(2)) != 2:
            raise unusable("scheduler/scheduler_config.json of the teacher", "its noise levels are not finite")

    def check_sampling(self, num_inference_steps: int) -> None:
        """Check that the pipeline's scheduler has this number of steps.

        Raises:
            CondistillError: it has not; the message begins with the name of the scheduler.
        """
        scheduler = self.pipeline.scheduler
        mu = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
        try:
            type(scheduler).from_config(scheduler.config).set_timesteps(num_inference_steps, **mu)
        except Exception as error:  # schedulers raise many kinds of exceptions
            reason = shorten(first_line(error), 200)
            raise CondistillError(
                f"{type(scheduler).__name__} (scheduler/scheduler_config.json) cannot sample with "
                f"{num_inference_steps} steps: {reason}; its config has {scheduler.config.get('num_train_timesteps')} "
                "timesteps"
            ) from error

    @property
    def denoiser(self) -> ModelMixin:
        """The teacher's denoiser."""
        return getattr(self.pipeline, self.denoiser_name)

    @property
    def device(self) -> torch.device:
        """The device of the pipeline, also while the denoiser waits on the host."""
        device: torch.device = self._device or next(self.denoiser.parameters()).device
        return device

    @contextmanager
    def denoiser_on_host(self) -> Iterator[None]:
        """Keep the denoiser in the memory of the host for a while; nothing moves if the device is a CPU."""
        denoiser, device = self.denoiser, self.device
        if device.type == "cpu" or self._device is not None:
            yield
            return
        denoiser.to("cpu")
        self._device = device
        try:
            yield
        finally:
            denoiser.to(device)
            self._device = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the teacher's denoiser."""
        return dtype_of(self.denoiser)

    def to(self, device: torch.device | str) -> Family:
        """Move the whole pipeline, and return this family."""
        self.pipeline.to(device)
        return self

    @property
    def latent_channels(self) -> int:
        """C of the latents."""
        return int(self.denoiser.config.in_channels)

    @property
    def default_latent_size(self) -> tuple[int, int]:
        """(h, w) of the latents at the pipeline's default resolution."""
        size: Any = getattr(self.denoiser.config, "sample_size", None)
        sides = (size, size) if isinstance(size, int) else size
        file = f"{self.denoiser_name}/config.json of the teacher"
        if not isinstance(sides, list | tuple) or len(sides) != 2:
            raise CondistillError(
                f"{file} has the sample_size {size!r}, which is no height and width of latents; set teacher.resolution"
            )
        height, width = (checked_count(side, "sample_size", file) for side in sides)
        return height, width

    @property
    def pixels_per_latent(self) -> int:
        """Pixels per latent along one side."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def latent_multiple(self) -> int:
        """The number that the height and width of the latents must be multiples of."""
        config = self.denoiser.config
        stages = config.get("block_out_channels")
        return 2 ** (len(stages) - 1) if stages else int(config.get("patch_size") or 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one image at the resolution of the recipe, or else at the pipeline's default."""
        if self.resolution is None:
            return self.latent_channels, *self.default_latent_size
        size = self.resolution // self.pixels_per_latent
        return self.latent_channels, size, size

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        height, width = (size * self.pixels_per_latent for size in self.latent_shape[1:])
        return height, width

    @property
    def image_tokens(self) -> int:
        """Tokens of one image in a transformer: patches of `latent_multiple` latents along a side."""
        height, width = (size // self.latent_multiple for size in self.latent_shape[1:])
        return height * width

    @property
    @abstractmethod
    def text_length(self) -> int:
        """Tokens of text that the denoiser attends to; its cost depends on them."""

    @property
    def prompt_reader(self) -> tuple[Any, int] | None:
        """The tokenizer of the text encoder that reads most of a prompt, and the number of tokens that it reads.

        None where the family has no tokenizer.
        """
        tokenizer = self.pipeline.components.get("tokenizer")
        return None if tokenizer is None else (tokenizer, self.text_length)

    @classmethod
    @abstractmethod
    def example_inputs(cls, denoiser: ModelMixin, size: tuple[int, int], text_length: int) -> dict[str, Any]:
        """Return keyword arguments for one forward pass of one sample on the meta device.

        They depend on the denoiser's config alone, so the denoiser may be on the meta device too.

        Args:
            size: (h, w) of the latents.
            text_length: tokens of the prompt.

        Raises:
            CondistillError: the denoiser needs a condition that the family does not support.
        """

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Condition:
        """Return the condition of each prompt, length B.

        Raises:
            CondistillError: a prompt cannot be encoded.
        """

    def check_prompts(self, prompts: Iterable[str]) -> None:
        """Check that all prompts can be encoded, without encoding them.

        Raises:
            CondistillError: a prompt cannot be encoded.
        """

    def unconditional(self, condition: Condition) -> Condition:
        """Return the condition of the empty prompt, length B, with the image condition of `condition` if it has one."""
        return encode_aside(self, [""] * len(condition))

    def training_condition(self, condition: Condition, x_0: Tensor, uniform: Tensor) -> Condition:  # noqa: ARG002
        """Return the condition in training, with an image condition made from x_0 where the denoiser takes one.

        Args:
            x_0: latents `[B, C, h, w]`.
            uniform: random numbers in [0, 1), float64 `[B]` on the CPU, that decide the image condition.
        """
        return condition

    @torch.no_grad()
    def text_embedding(self, prompts: Sequence[str]) -> Tensor:
        """Return an embedding per prompt for measuring distances between prompts.

        Returns:
            float32 `[B, D]` of unit length; zeros for the empty prompt.
        """
        return mean_token_embedding(self.encode([*prompts, ""]), prompts)

    @abstractmethod
    def predict(self, denoiser: ModelMixin, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Return the denoiser's prediction `[B, C, h, w]` in float32, of the kind `noise.prediction_type`.

        A guidance scale in the condition is used only by denoisers that take one as an input.

        Args:
            denoiser: the teacher's, or a student's of the same class.
        """

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Return the images `[B, H, W, 3]` of latents; `PIXELS_AT_ONCE` bounds the memory that this needs."""
        return decode_in_slices(latents, self.decode_to_tensor, self.image_size)

    @contextmanager
    def using(self, denoiser: nn.Module, scheduler: SchedulerMixin | None = None) -> Iterator[DiffusionPipeline]:
        """Put another denoiser, and optionally another scheduler, into the pipeline for a while."""
        replacements = {self.denoiser_name: denoiser} | ({"scheduler": scheduler} if scheduler else {})
        originals = {name: getattr(self.pipeline, name) for name in replacements}
        for name, component in replacements.items():
            setattr(self.pipeline, name, component)
        try:
            yield self.pipeline
        finally:
            for name, component in originals.items():
                setattr(self.pipeline, name, component)

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
        scheduler: SchedulerMixin | None = None,
    ) -> Tensor:
        """Sample latents `[B, C, h, w]` with the pipeline's call, scaled as x_0 is in training.

        Args:
            noise: starting noise `[B, C, h, w]`, standard normal.
            seeds: one per image, for schedulers that add noise in their steps.
            scheduler: replaces the pipeline's scheduler.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds] if seeds else None
        with self.using(denoiser, scheduler) as pipeline:
            latents = pipeline(
                **self.arguments_of_call(prompts),
                latents=self.pack_latents(noise.to(self.device, dtype_of(denoiser))),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=generators,
                output_type="latent",
            ).images
        return self.unpack_latents(latents).float()

    def default_sampling(self) -> DefaultSampling:
        """Return the steps and the guidance scale of the teacher's `sampling.json`, else of the pipeline's own call.

        Teachers that are distilled to few steps are recognised, and sampled with few steps and without guidance.

        Raises:
            CondistillError: `sampling.json` cannot be read.
        """
        return default_sampling(self.pipeline, self.denoiser, self.guidance, self.origin)

    def arguments_of_call(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the arguments of the pipeline's call for prompts and image size, and `call_arguments`."""
        height, width = self.image_size
        return {"prompt": list(prompts), "height": height, "width": width, **self.call_arguments}

    def pack_latents(self, latents: Tensor) -> Tensor:
        """Return latents `[B, C, h, w]` in the layout of the pipeline's call."""
        return latents

    def unpack_latents(self, latents: Tensor) -> Tensor:
        """Return latents `[B, C, h, w]` from the layout of the pipeline's call: the inverse of `pack_latents`."""
        return latents


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype of a module's parameters."""
    return next(module.parameters()).dtype
