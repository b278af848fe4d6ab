"""How the file of a denoiser alone is loaded in ComfyUI: its folder, the other files it needs, and the settings."""

from __future__ import annotations

from dataclasses import dataclass

from condistill.export.single_file.layout import CONFIGS_NAME
from condistill.export.source import Shape

CLIP_NAMES = (
    "A CLIP `model.safetensors` that transformers 5 wrote has names that ComfyUI does not read: its weights start "
    "with `embeddings` instead of `text_model.embeddings`."
)


def sdcpp_command(shape: Shape, files: str, *, cfg: bool = True, guidance: bool = False) -> str:
    """Return the command with which stable-diffusion.cpp samples with a denoiser alone, as Markdown.

    Args:
        files: options with the other files.
        cfg: whether it is sampled with classifier-free guidance.
        guidance: whether the guidance scale is an input of the denoiser.
    """
    steps, scale = shape.sampling.get("num_inference_steps"), shape.sampling.get("guidance_scale")
    parts = [f"sd-cli --diffusion-model FILE {files}", '-p "PROMPT"', "--sampling-method euler"]
    parts += [] if steps is None else [f"--steps {steps}"]
    if not cfg:
        parts += ["--cfg-scale 1"]
    if scale is not None and (cfg or guidance):
        parts += [f"--guidance {scale:g}" if guidance else f"--cfg-scale {scale:g}"]
    return f"**stable-diffusion.cpp**: `{' '.join(parts)}`"


@dataclass(frozen=True)
class Companions:
    """What ComfyUI needs besides a denoiser, whose text encoders and autoencoder are those of the teacher."""

    text_encoders: str
    """The files, as they are usually named."""
    loader: str
    """The node that loads them, and its type."""
    autoencoder: str
    """The file, as it is usually named."""
    own_text_encoder: str = ""
    """File of the pipeline's directory that the node reads as it is; empty: none."""
    own_autoencoder: str = "vae/diffusion_pytorch_model.safetensors"
    """File of the pipeline's directory that ComfyUI reads as it is; empty: none."""
    settings: str = ""
    """What is to be set, as sentences."""
    has_clip: bool = False
    """Whether one of the text encoders is a CLIP."""
    diffusers_reads: bool = True
    """Whether the class has `from_single_file`."""

    def how_to_load(self, shape: Shape, *settings: str) -> str:
        """Return where the files belong, as Markdown.

        Args:
            settings: more sentences.
        """
        own_autoencoder = f", or `{self.own_autoencoder}` of the pipeline" if self.own_autoencoder else ""
        own_text_encoder = (
            f", or `{self.own_text_encoder}` of the pipeline where it is one file" if self.own_text_encoder else ""
        )
        lines = [
            "- **ComfyUI**: the file holds the denoiser alone. Copy it to `models/diffusion_models`, and load it with "
            "the node Load Diffusion Model.",
            f"- Text encoders are those of the teacher: {self.text_encoders}{own_text_encoder}, in "
            f"`models/text_encoders`. Node: {self.loader}." + (f" {CLIP_NAMES}" if self.has_clip else ""),
            f"- The autoencoder is that of the teacher: {self.autoencoder}{own_autoencoder}, in `models/vae`. Node: "
            "Load VAE.",
            *self._settings(shape, settings),
            *self._in_diffusers(shape),
        ]
        return "\n".join(lines)

    def _in_diffusers(self, shape: Shape) -> list[str]:
        if not self.diffusers_reads:
            return []
        return [
            f'- **diffusers**: `{shape.denoiser_class}.from_single_file("FILE", config="{CONFIGS_NAME}", '
            f'subfolder="{shape.denoiser_name}")`; the folder has its config.'
        ]

    def _settings(self, shape: Shape, more: tuple[str, ...]) -> list[str]:
        steps, scale = shape.sampling.get("num_inference_steps"), shape.sampling.get("guidance_scale")
        known = [] if steps is None else [f"{steps} steps"]
        known += [] if scale is None else [f"guidance scale {scale:g}"]
        sampled = f"The pipeline is sampled with {' and '.join(known)}." if known else ""
        text = " ".join(part for part in (sampled, self.settings, *more) if part)
        return [f"- {text}"] if text else []
