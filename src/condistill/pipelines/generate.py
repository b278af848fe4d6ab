"""Generate one image with a pipeline directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from condistill.config.sections import TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.defaults import recorded_resolution
from condistill.teachers.load import load_teacher, origin_of, read_index
from condistill.teachers.skeleton import teacher_skeleton
from condistill.utils.atomic import atomic_file
from condistill.utils.quiet import quiet_libraries
from condistill.utils.randomness import Stream, image_noise, image_seed

FORMATS = (".png", ".jpg", ".jpeg", ".webp")


@quiet_libraries()
def generate_image(
    teacher: TeacherSettings,
    prompt: str,
    out: Path,
    *,
    seed: int,
    steps: int | None = None,
    guidance: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the image of a prompt. The same seed gives all pipelines of a family the same starting noise.

    Args:
        teacher: the pipeline; its resolution is that of its `sampling.json`.
        steps: None: see `Family.default_sampling`.
        guidance: None: see `Family.default_sampling`.
        say: called with a line for the user where a file is converted.

    Raises:
        CondistillError: the pipeline does not exist, or the image format is unknown, or the
            pipeline cannot sample with this number of steps.
    """
    if out.suffix.lower() not in FORMATS:
        raise CondistillError(f"--out {out}: the file name must end in one of {', '.join(FORMATS)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    resolution = recorded_resolution(origin_of(teacher, read_index(teacher)[0]))
    settings = teacher.model_copy(update={"resolution": resolution})
    teacher_skeleton(
        settings, only_sampled=True
    )  # names the config that is damaged, where loading only shows the error of a library
    family = load_teacher(settings, device=device, only_sampled=True, say=say)
    sampling = family.default_sampling()
    steps = sampling.num_inference_steps if steps is None else steps
    family.check_sampling(steps)
    noise = torch.from_numpy(image_noise(seed, Stream.EVALUATION_NOISE, 0, family.latent_shape))[None]
    latents = family.sample(
        family.denoiser,
        [prompt],
        noise,
        num_inference_steps=steps,
        guidance_scale=sampling.guidance_scale if guidance is None else guidance,
        seeds=[image_seed(seed, Stream.EVALUATION_NOISE, 0)],
    )
    with atomic_file(out) as partial:
        Image.fromarray(family.decode(latents)[0]).save(
            partial, format=Image.registered_extensions()[out.suffix.lower()]
        )
    return out
