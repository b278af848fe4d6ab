"""Draw one picture with a pipeline directory."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from condistill.config.sections import MINIATURE, TeacherSettings
from condistill.errors import CondistillError
from condistill.miniature import weights_path
from condistill.pipelines.sampling import read_sampling
from condistill.teachers.load import load_teacher
from condistill.utils.atomic import atomic_file
from condistill.utils.quiet import quiet_libraries
from condistill.utils.randomness import Stream, image_noise, image_seed

FORMATS = (".png", ".jpg", ".jpeg", ".webp")


@quiet_libraries()
def draw_picture(
    pipeline: str, prompt: str, out: Path, *, seed: int, steps: int | None = None, guidance: float | None = None
) -> Path:
    """Write the picture of a prompt; the same seed gives every pipeline of one family the same starting noise.

    Args:
        steps: None: as many as the pipeline was made for.
        guidance: None: what the pipeline was made for.

    Raises:
        CondistillError: there is no pipeline, or the picture's format is unknown.
    """
    if out.suffix.lower() not in FORMATS:
        raise CondistillError(f"--out {out}: a picture's name ends in one of {', '.join(FORMATS)}")
    if not pipeline.strip():
        raise CondistillError("no pipeline is named; give its directory, a hub name, or miniature")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made_for = read_sampling(weights_path() / "teacher" if pipeline == MINIATURE else Path(pipeline))
    family = load_teacher(TeacherSettings(pipeline=pipeline, resolution=made_for.resolution), device=device)
    noise = torch.from_numpy(image_noise(seed, Stream.EVALUATION_NOISE, 0, family.latent_shape))[None]
    latents = family.sample(
        family.denoiser,
        [prompt],
        noise,
        num_inference_steps=made_for.num_inference_steps if steps is None else steps,
        guidance_scale=made_for.guidance_scale if guidance is None else guidance,
        seeds=[image_seed(seed, Stream.EVALUATION_NOISE, 0)],
    )
    with atomic_file(out) as partial:
        Image.fromarray(family.decode(latents)[0]).save(
            partial, format=Image.registered_extensions()[out.suffix.lower()]
        )
    return out
