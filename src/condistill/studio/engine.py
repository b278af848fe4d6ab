"""Generate images for the page: every model from the same noise, one image at a time, stoppable at every step.

Nothing here knows gradio, and nothing uses a random state of the process: noise and seeds are functions of the seed of
a request, so requests of several users do not change each other's images.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from condistill.errors import CondistillError
from condistill.profiling.memory import peak_bytes
from condistill.studio.loading import LoadedModel, Models
from condistill.utils.quiet import quiet_libraries
from condistill.utils.randomness import Stream, image_noise, image_seed
from condistill.utils.text import first_line, shorten

LONGEST_PROMPT = 2000
"""Characters; every text encoder reads far fewer."""
MOST_STEPS = 1000
MOST_GUIDANCE = 100.0
LARGEST_SEED = 2**53 - 1
"""The largest whole number that a browser keeps exactly."""


class Cancelled(Exception):  # noqa: N818 - a user who stops a request makes no error
    """The request was stopped by its user."""


@dataclass(frozen=True)
class ImageRequest:
    """What one press of the button generates."""

    prompt: str
    models: tuple[str, ...]
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None
    """None: every model is sampled as it was trained, or as its pipeline's call does."""


@dataclass(frozen=True)
class ModelImage:
    """The image of one model, and what it cost."""

    model: str
    pixels: NDArray[np.uint8]
    """`[H, W, 3]`."""
    seconds: float
    """From the prompt to the pixels."""
    memory_bytes: int
    """Weights of all parts, and the peak of what one step and the decoding need beyond them."""
    steps: int
    guidance: float


@dataclass(frozen=True)
class ModelFailure:
    """Why a model has no image."""

    model: str
    message: str


@dataclass
class Watch:
    """Follows a generation from another thread, and stops it between two denoising steps."""

    on_step: Callable[[str, int, int], None] = lambda _model, _done, _total: None
    """Called with the model, the steps that are done and their number, when a step begins."""
    cancelled: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise `Cancelled` if the request was stopped."""
        if self.cancelled.is_set():
            raise Cancelled


def check_request(
    prompt: object, models: object, *, seed: object, steps: object = None, guidance: object = None
) -> ImageRequest:
    """Return the request for values that a user typed, or that a program sent.

    Args:
        steps: None: those of each model.
        guidance: None: that of each model.

    Raises:
        CondistillError: a value cannot be used; the message says which values can.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise CondistillError("the prompt is empty; write what the image shows")
    if len(prompt) > LONGEST_PROMPT:
        raise CondistillError(
            f"the prompt has {len(prompt):,} characters; write at most {LONGEST_PROMPT:,}, of which text encoders read "
            "the first few hundred"
        )
    names = tuple(dict.fromkeys(map(str, models))) if isinstance(models, list | tuple) else ()
    if not names:
        raise CondistillError("no model is chosen; choose at least one")
    return ImageRequest(
        prompt.strip(),
        names,
        int(_number(seed, "the seed", 0, LARGEST_SEED, whole=True)),
        None if steps is None else int(_number(steps, "the number of steps", 1, MOST_STEPS, whole=True)),
        None if guidance is None else _number(guidance, "the guidance scale", 0, MOST_GUIDANCE),
    )


def _number(value: object, what: str, least: float, most: float, *, whole: bool = False) -> float:
    """Return a number in a range.

    Raises:
        CondistillError: it is none, or outside.
    """
    kind = "a whole number" if whole else "a number"
    allowed = f"{kind} from {least:,} to {round(most):,}"
    if value is None:
        raise CondistillError(f"{what} is empty; give {allowed}")
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not least <= number <= most or (whole and number != int(number)):  # NaN is in no range
        raise CondistillError(f"{what} is {shorten(str(value), 40)}; give {allowed}")
    return number


class Engine:
    """Generates images with the models of a studio. One thread at a time calls it."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self._peaks: dict[tuple[str, bool], int] = {}

    def generate(self, request: ImageRequest, watch: Watch) -> Iterator[ModelImage | ModelFailure]:
        """Yield the image of every model, or why it has none, as soon as it is known.

        Raises:
            Cancelled: the request was stopped; images that were yielded stay.
        """
        for name in request.models:
            watch.check()
            try:
                yield self._image(self.models.get(name), request, watch)
            except Cancelled:
                raise
            except CondistillError as error:
                yield ModelFailure(name, str(error))
            except Exception as error:  # libraries raise many kinds; the other models may still work
                yield ModelFailure(name, _library_message(error))

    @quiet_libraries()
    def _image(self, model: LoadedModel, request: ImageRequest, watch: Watch) -> ModelImage:
        family = model.family
        steps = model.steps if request.steps is None else request.steps
        guidance = model.guidance if request.guidance is None else request.guidance
        family.check_prompts([request.prompt])
        family.check_sampling(steps)
        watch.on_step(model.name, 0, steps)
        memory = model.weight_bytes + self._peak(model, request.prompt, guidance, watch)
        started = _now(family.device)
        with _watched(family.denoiser, watch, model.name, steps):
            latents = _sample(model, request.prompt, request.seed, steps, guidance)
        watch.check()
        pixels = family.decode(latents)[0]
        return ModelImage(model.name, pixels, _now(family.device) - started, memory, steps, guidance)

    def _peak(self, model: LoadedModel, prompt: str, guidance: float, watch: Watch) -> int:
        """Return the peak memory of two steps and the decoding, which is measured once; a warm-up as well."""
        key = (model.name, guidance > 1)
        if key not in self._peaks:
            with _watched(model.family.denoiser, watch):
                self._peaks[key] = peak_bytes(
                    lambda: model.family.decode(_sample(model, prompt, 0, min(2, model.steps), guidance)),
                    model.family.device,
                )
        return self._peaks[key]

    def decode(self, model: str, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the image `[H, W, 3]` of latents `[C, h, w]`, with the autoencoder of a model."""
        family = self.models.get(model).family
        pixels: NDArray[np.uint8] = family.decode(torch.from_numpy(latents)[None])[0]
        return pixels


def _sample(model: LoadedModel, prompt: str, seed: int, steps: int, guidance: float) -> torch.Tensor:
    """Return latents `[1, C, h, w]` from the noise of a seed: those of `condistill sample` with the same seed."""
    family = model.family
    return family.sample(
        family.denoiser,
        [prompt],
        torch.from_numpy(image_noise(seed, Stream.EVALUATION_NOISE, 0, family.latent_shape))[None],
        num_inference_steps=steps,
        guidance_scale=guidance,
        seeds=[image_seed(seed, Stream.EVALUATION_NOISE, 0)],
        scheduler=copy.deepcopy(family.pipeline.scheduler),
    )


@contextmanager
def _watched(denoiser: nn.Module, watch: Watch, name: str = "", steps: int = 0) -> Iterator[None]:
    """Let every evaluation of a denoiser begin with a look at the watch.

    Args:
        name: of the model whose steps are reported; empty: none are.
    """
    evaluations = 0

    def look(_module: nn.Module, _inputs: Sequence[Any]) -> None:
        nonlocal evaluations
        watch.check()
        if name:
            watch.on_step(name, min(evaluations, steps - 1), steps)
        evaluations += 1

    handle = denoiser.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def _now(device: torch.device) -> float:
    """Return seconds, once a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _library_message(error: Exception) -> str:
    text = first_line(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "the device is out of memory; start the studio with fewer models, or with --device cpu"
    return f"the image cannot be generated: {shorten(text, 300)}"


def describe(request: ImageRequest) -> str:
    """Return a request as one line for the terminal."""
    chosen = [f"seed {request.seed}", f"{len(request.models)} model(s)"]
    if request.steps is not None:
        chosen.append(f"{request.steps} steps")
    if request.guidance is not None:
        chosen.append(f"guidance {request.guidance:g}")
    return f"{shorten(' '.join(request.prompt.split()), 80)!r}, {', '.join(chosen)}"
