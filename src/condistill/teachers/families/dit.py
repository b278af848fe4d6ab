"""DiT: a transformer that is told a class of ImageNet. A prompt is one of the pipeline's labels, or its number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from condistill.errors import CondistillError, nearest
from condistill.teachers.condition import Condition
from condistill.teachers.family import Family
from condistill.teachers.noise.diffusion import DiffusionSchedule
from condistill.teachers.noise.schedule import NoiseSchedule

_NULL = 1000
"""The class that diffusers' own call guides against."""


class DiT(Family):
    """A `DiTPipeline`; the empty prompt is the null class."""

    name = "dit"
    pipeline_classes = ("DiTPipeline",)
    denoiser_name = "transformer"
    denoiser_class = "DiTTransformer2DModel"

    def __init__(self, pipeline: Any, *, resolution: int | None = None) -> None:
        super().__init__(pipeline)
        own = self.own_latent_size[0] * self.pixels_per_latent
        if resolution not in (None, own):
            raise CondistillError(
                f"teacher.resolution is {resolution}; a DiTPipeline draws at its own {own} pixels only; leave it out"
            )
        if self.denoiser.config.num_embeds_ada_norm != _NULL:
            raise CondistillError(
                f"the teacher knows {self.denoiser.config.num_embeds_ada_norm} classes; a DiTPipeline takes class "
                f"{_NULL} for none, so it can guide with {_NULL} classes only"
            )
        if float(pipeline.scheduler.init_noise_sigma) != 1:
            raise CondistillError(
                f"the teacher's scheduler is {type(pipeline.scheduler).__name__}, which starts from noise that is not "
                "standard normal; DiTPipeline's own call does not scale it, so it draws wrongly; set DDIMScheduler"
            )
        names: dict[int, list[str]] = {}
        for label, number in pipeline.labels.items():
            names.setdefault(number, []).append(label)
        # diffusers reads them and does not save them
        pipeline.register_to_config(id2label={number: ", ".join(labels) for number, labels in names.items()})

    def build_noise(self) -> NoiseSchedule:
        return DiffusionSchedule(self.pipeline.scheduler, family=self.name)

    @property
    def pixels_per_latent(self) -> int:
        return int(2 ** (len(self.pipeline.vae.config.block_out_channels) - 1))

    @property
    def text_length(self) -> int:
        return 0

    @classmethod
    def example_inputs(cls, denoiser: Any, size: tuple[int, int], text_length: int) -> dict[str, Any]:  # noqa: ARG003
        return {
            "hidden_states": torch.empty(1, denoiser.config.in_channels, *size, device="meta"),
            "timestep": torch.empty(1, dtype=torch.int64, device="meta"),
            "class_labels": torch.empty(1, dtype=torch.int64, device="meta"),
        }

    def encode(self, prompts: Sequence[str]) -> Condition:
        """The condition of each label, length B.

        Raises:
            CondistillError: a prompt is no label.
        """
        return Condition({"class_labels": torch.tensor([self._number(p) for p in prompts], device=self.device)})

    def check_prompts(self, prompts: Iterable[str]) -> None:
        for prompt in prompts:
            self._number(prompt)

    def _number(self, prompt: str) -> int:
        labels: dict[str, int] = self.pipeline.labels
        if not prompt:
            return _NULL
        if prompt in labels:
            return labels[prompt]
        if prompt.isdecimal() and int(prompt) < _NULL:
            return int(prompt)
        near = nearest(prompt, labels) if labels else ""
        raise CondistillError(
            f"{prompt!r} is no label of this teacher, nor a number from 0 to {_NULL - 1}"
            f"{near if near.startswith('; did') else '; give one of those that its model_index.json lists'}"
        )

    @torch.no_grad()
    def text_embedding(self, prompts: Sequence[str]) -> Tensor:
        table = self.denoiser.transformer_blocks[0].norm1.emb.class_embedder.embedding_table
        rows = table(self.encode([*prompts, ""]).tensors["class_labels"]).float()
        return nn.functional.normalize(rows[:-1] - rows[-1])

    def predict(self, denoiser: nn.Module, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        from diffusers.models.embeddings import LabelEmbedding

        for module in denoiser.modules():
            if isinstance(module, LabelEmbedding):
                module.eval()  # in training it would drop labels by chance, which the recipe already does
        output: Tensor = denoiser(
            x_t.to(self._dtype(denoiser)), timestep=timesteps, class_labels=condition.tensors["class_labels"]
        ).sample
        return output[:, : x_t.shape[1]].float()  # a learned variance follows the mean

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
        """As the pipeline's own call draws, which takes no latents and gives none."""
        scheduler = scheduler or self.pipeline.scheduler
        takes_generator = seeds and "generator" in signature(scheduler.step).parameters
        extra = {"generator": [torch.Generator().manual_seed(s) for s in seeds or ()]} if takes_generator else {}
        condition, guided = self.encode(prompts), guidance_scale > 1
        if guided:
            condition = Condition.cat([condition, self.encode([""] * len(prompts))])
        scheduler.set_timesteps(num_inference_steps)
        latents = noise.to(self.device, torch.float32)
        for t in scheduler.timesteps:
            x_t = scheduler.scale_model_input(latents.repeat(2, 1, 1, 1) if guided else latents, t)
            prediction = self.predict(denoiser, x_t, t.to(self.device).expand(len(x_t)), condition)
            if guided:
                with_label, null = prediction.chunk(2)
                prediction = null + guidance_scale * (with_label - null)
            latents = scheduler.step(prediction, t, latents, **extra).prev_sample
        return latents
