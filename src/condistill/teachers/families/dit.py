"""DiT: a transformer conditioned on a class of ImageNet. A prompt is a label of the pipeline, or its number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from condistill.errors import CondistillError, nearest
from condistill.teachers.condition import Condition
from condistill.teachers.family import Family, dtype_of
from condistill.teachers.noise.diffusion import DiffusionSchedule
from condistill.teachers.noise.schedule import NoiseSchedule
from condistill.teachers.traits import CallExample, LayerList

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin

NULL_CLASS = 1000
"""The class of the unconditional prediction in the pipeline's call."""


class DiT(Family):
    """A `DiTPipeline`; the empty prompt is the null class."""

    name = "dit"
    pipeline_classes = ("DiTPipeline",)
    denoiser_name = "transformer"
    denoiser_class = "DiTTransformer2DModel"
    graph_limit = "a DiT takes square images of one size only, and the sizes of exported graphs are free"
    layer_lists = (LayerList("transformer_blocks", "num_layers"),)
    call_example = CallExample("class_labels=pipeline.get_label_ids([{prompt}])", takes_size=False)
    hub_task = "unconditional-image-generation"  # the hub has no task for images of a class
    hub_tags = ("class-conditional",)

    def __init__(self, pipeline: DiffusionPipeline, *, resolution: int | None = None) -> None:
        super().__init__(pipeline)
        default = self.default_latent_size[0] * self.pixels_per_latent
        if resolution not in (None, default):
            raise CondistillError(
                f"teacher.resolution is {resolution}; a DiTPipeline generates only images of its default {default} "
                "pixels; leave it out"
            )
        if self.denoiser.config.num_embeds_ada_norm != NULL_CLASS:
            raise CondistillError(
                f"the teacher has {self.denoiser.config.num_embeds_ada_norm} classes; DiTPipeline's call uses class "
                f"{NULL_CLASS} for the unconditional prediction, so guidance needs exactly {NULL_CLASS} classes"
            )
        if float(pipeline.scheduler.init_noise_sigma) != 1:
            raise CondistillError(
                f"the teacher's scheduler is {type(pipeline.scheduler).__name__}, whose starting noise is not standard "
                "normal; DiTPipeline's call does not scale the noise, so its images are wrong; set DDIMScheduler"
            )
        names: dict[int, list[str]] = {}
        for label, number in pipeline.labels.items():
            names.setdefault(number, []).append(label)
        # diffusers reads id2label and does not save it
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
    def example_inputs(
        cls,
        denoiser: ModelMixin,
        size: tuple[int, int],
        text_length: int,  # noqa: ARG003
    ) -> dict[str, Any]:
        return {
            "hidden_states": torch.empty(1, denoiser.config.in_channels, *size, device="meta"),
            "timestep": torch.empty(1, dtype=torch.int64, device="meta"),
            "class_labels": torch.empty(1, dtype=torch.int64, device="meta"),
        }

    def encode(self, prompts: Sequence[str]) -> Condition:
        labels = [self._class_number(prompt) for prompt in prompts]
        return Condition({"class_labels": torch.tensor(labels, device=self.device)})

    @property
    def class_labels(self) -> Mapping[str, int]:
        return {**self.pipeline.labels, "": NULL_CLASS}

    def encode_tokens(self, tokens: Mapping[str, Tensor]) -> Condition:
        return Condition({"class_labels": tokens["class_labels"]})

    def check_prompts(self, prompts: Iterable[str]) -> None:
        for prompt in prompts:
            self._class_number(prompt)

    def _class_number(self, prompt: str) -> int:
        """Return the class of a prompt.

        Raises:
            CondistillError: the prompt is neither a label nor the number of a class.
        """
        labels: dict[str, int] = self.pipeline.labels
        if not prompt:
            return NULL_CLASS
        if prompt in labels:
            return labels[prompt]
        if prompt.isdecimal() and int(prompt) < NULL_CLASS:
            return int(prompt)
        suggestion = nearest(prompt, labels) if labels else ""
        if not suggestion.startswith("; did"):  # a list of all labels would be too long
            suggestion = "; give one of the labels in its model_index.json"
        raise CondistillError(
            f"the prompt {prompt!r} is not a label of this teacher, nor a number from 0 to {NULL_CLASS - 1}{suggestion}"
        )

    @torch.no_grad()
    def text_embedding(self, prompts: Sequence[str]) -> Tensor:
        table = self.denoiser.transformer_blocks[0].norm1.emb.class_embedder.embedding_table
        rows = table(self.encode([*prompts, ""]).tensors["class_labels"]).float()
        return nn.functional.normalize(rows[:-1] - rows[-1])

    def predict(self, denoiser: ModelMixin, x_t: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        from diffusers.models.embeddings import LabelEmbedding

        for module in denoiser.modules():
            if isinstance(module, LabelEmbedding):
                module.eval()  # in training mode it would drop labels at random, which the recipe does already
        output: Tensor = denoiser(
            x_t.to(dtype_of(denoiser)), timestep=timesteps, class_labels=condition.tensors["class_labels"]
        ).sample
        return output[:, : x_t.shape[1]].float()  # without the learned variance

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
        """Sample as the pipeline's call does, which neither takes nor returns latents."""
        scheduler = scheduler or self.pipeline.scheduler
        takes_generator = seeds and "generator" in signature(scheduler.step).parameters
        extra = {"generator": [torch.Generator().manual_seed(s) for s in seeds or ()]} if takes_generator else {}
        condition, is_guided = self.encode(prompts), guidance_scale > 1
        if is_guided:
            condition = Condition.cat([condition, self.unconditional(condition)])
        scheduler.set_timesteps(num_inference_steps)
        latents = noise.to(self.device, torch.float32)
        for t in scheduler.timesteps:
            x_t = scheduler.scale_model_input(latents.repeat(2, 1, 1, 1) if is_guided else latents, t)
            prediction = self.predict(denoiser, x_t, t.to(self.device).expand(len(x_t)), condition)
            if is_guided:
                conditional, unconditional = prediction.chunk(2)
                prediction = unconditional + guidance_scale * (conditional - unconditional)
            latents = scheduler.step(prediction, t, latents, **extra).prev_sample
        return latents
