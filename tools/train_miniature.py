"""Train the miniature from scratch: its classifier, its autoencoder, and its text encoder and denoiser.

Run as `python tools/train_miniature.py` (or `make miniature`). Every part has a fixed seed, prints its progress, writes
checkpoints to the work directory and resumes from them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from condistill.distill.checkpoints import (
    list_checkpoints,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from condistill.miniature import build, weights_path
from condistill.miniature.classifier import Classifier, classify_images, to_tensor
from condistill.miniature.world import TEMPLATES, Scene, all_scenes, render
from condistill.pipelines.sampling import SAMPLING_NAME, Sampling
from condistill.utils.atomic import write_text

console = Console()

CLASSIFIER_STEPS, CLASSIFIER_BATCH = 1500, 64
AUTOENCODER_STEPS, AUTOENCODER_BATCH = 3200, 16
DENOISER_STEPS, DENOISER_BATCH = 3600, 64
NOISY_FROM = 800  # half of the timesteps are at least this high, where only the prompt decides the object's place
SCENES = 32_000  # rendered to train the autoencoder and the denoiser
EMPTY_PROMPT_PROBABILITY = 0.1
_LOG_EVERY, _SAVE_EVERY = 100, 250


def generator(seed: int, step: int) -> np.random.Generator:
    """Return the random numbers of a step, which depend on (seed, step) alone, so that a resumed run is the same."""
    return np.random.Generator(np.random.Philox(key=[seed, step]))


def train(
    name: str,
    modules: Mapping[str, nn.Module],
    loss_at: Callable[[int], Tensor],
    *,
    steps: int,
    learning_rate: float,
    work: Path,
    ema_decay: float = 0.998,
) -> None:
    """Train `modules` with AdamW, warm-up and cosine decay, EMA and checkpoints; at the end they have the EMA weights.

    Args:
        name: of the part, and of its directory of checkpoints in `work`.
        loss_at: returns the loss of a step.
    """
    module = nn.ModuleDict(modules)
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(200, steps // 10), steps)
    ema = EMAModel(parameters, decay=ema_decay, use_ema_warmup=True, power=0.75, foreach=True)
    names = [key for key, _ in module.named_parameters()]
    first, losses, started = 0, [], time.monotonic()
    if kept := list_checkpoints(work / name):
        first, parts, ema_step = load_checkpoint(kept[-1])
        module.load_state_dict(parts["model"])
        restore_optimizer(optimizer, parts["optimizer"])
        ema.shadow_params = [parts["ema"][key] for key in names]
        ema.optimization_step = ema_step
        schedule.last_epoch = first - 1
        schedule.step()
        console.print(f"{name}: resuming from step {first} of {steps}")
    for step in range(first, steps):
        loss = loss_at(step)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(parameters)
        losses.append(loss.item())
        done = step + 1
        if done % _LOG_EVERY == 0 or done == steps:
            per_step = (time.monotonic() - started) / (done - first)
            left = per_step * (steps - done) / 60
            mean = np.mean(losses[-_LOG_EVERY:])
            console.print(f"{name} {done}/{steps}  loss {mean:.4f}  {per_step:.2f} s/step  {left:.1f} min left")
        if done % _SAVE_EVERY == 0 or done == steps:
            averages = dict(zip(names, ema.shadow_params, strict=True))
            groups = {"model": module.state_dict(), "optimizer": optimizer_tensors(optimizer), "ema": averages}
            save_checkpoint(work / name, done, groups, keep=1, meta=ema.optimization_step)
    ema.copy_to(parameters)
    module.eval().requires_grad_(False)


def train_classifier(work: Path, device: str) -> Classifier:
    """Train the classifier on rendered scenes with a little noise: the sum of one cross-entropy per attribute."""
    torch.manual_seed(0)
    classifier = Classifier().to(device)
    scenes = all_scenes()

    def loss_at(step: int) -> Tensor:
        rng = generator(1, step)
        picked = [scenes[i] for i in rng.integers(0, len(scenes), CLASSIFIER_BATCH)]
        images = to_tensor(render(picked, seed=1_000_000 + step))
        noise = rng.normal(0, 1, images.shape).astype(np.float32) * rng.uniform(0, 0.15)
        logits = classifier((images + torch.from_numpy(noise)).to(device))
        labels = torch.tensor([scene.labels() for scene in picked], device=device)
        losses = [nn.functional.cross_entropy(head, labels[:, i]) for i, head in enumerate(logits.values())]
        return torch.stack(losses).sum()

    train("classifier", {"classifier": classifier}, loss_at, steps=CLASSIFIER_STEPS, learning_rate=2e-3, work=work)
    return classifier.cpu()


def training_scenes() -> tuple[list[Scene], NDArray[np.uint8]]:
    """Return the scenes and images that train the autoencoder and the denoiser; they have every scene several times."""
    scenes = all_scenes()
    picked = [scenes[i] for i in generator(2, 0).permutation(SCENES) % len(scenes)]
    return picked, render(picked, seed=2)


def train_autoencoder(images: NDArray[np.uint8], work: Path, device: str) -> AutoencoderKL:
    """Train the autoencoder (L1, L2 and a small KL loss); set the scaling factor that gives latents unit variance."""
    torch.manual_seed(0)
    autoencoder = build.build_autoencoder().to(device, memory_format=torch.channels_last)

    def loss_at(step: int) -> Tensor:
        rng = generator(3, step)
        batch = to_tensor(images[rng.integers(0, len(images), AUTOENCODER_BATCH)]).to(device)
        batch = batch.contiguous(memory_format=torch.channels_last)
        posterior = autoencoder.encode(batch).latent_dist
        noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32)).to(device)
        restored = autoencoder.decode(posterior.mean + posterior.std * noise).sample
        difference = restored - batch
        loss: Tensor = difference.abs().mean() + 2 * difference.square().mean() + 1e-6 * posterior.kl().mean()
        return loss

    train(
        "autoencoder",
        {"autoencoder": autoencoder},
        loss_at,
        steps=AUTOENCODER_STEPS,
        learning_rate=2e-3,
        work=work,
    )
    latents = encode(autoencoder, images[:2048], device)
    autoencoder.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    return autoencoder


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, images: NDArray[np.uint8], device: str) -> Tensor:
    """Return unscaled latents `[N, 4, 8, 8]`: the means of the posterior."""
    parts = [
        autoencoder.encode(to_tensor(images[i : i + 64]).to(device)).latent_dist.mean.cpu()
        for i in range(0, len(images), 64)
    ]
    return torch.cat(parts)


def train_denoiser(
    latents: Tensor, scenes: list[Scene], work: Path, device: str
) -> tuple[UNet2DConditionModel, CLIPTextModel, CLIPTokenizer]:
    """Train denoiser and text encoder together: epsilon-prediction, 10 % empty prompts.

    The loss is the squared error in x_0: that in epsilon times (1 - alpha_bar) / alpha_bar, where this factor is at
    least 0.2. Without it, the place of the object is hardly learned, because it depends on the prompt only at high
    noise levels.
    """
    torch.manual_seed(0)
    tokenizer = build.build_tokenizer()
    text_encoder = build.build_text_encoder(tokenizer).to(device)
    denoiser = build.build_denoiser().to(device, memory_format=torch.channels_last)
    scheduler = build.build_scheduler()
    alpha_bar = scheduler.alphas_cumprod
    weight = ((1 - alpha_bar) / alpha_bar).clamp(min=0.2)

    def tokenize(captions: list[str]) -> Tensor:
        tokens: Tensor = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return tokens

    def loss_at(step: int) -> Tensor:
        rng = generator(4, step)
        picked = rng.integers(0, len(scenes), DENOISER_BATCH)
        templates = rng.integers(0, len(TEMPLATES), DENOISER_BATCH)
        empty = rng.random(DENOISER_BATCH) < EMPTY_PROMPT_PROBABILITY
        captions = ["" if e else scenes[i].caption(t) for i, t, e in zip(picked, templates, empty, strict=True)]
        earliest = np.where(rng.random(DENOISER_BATCH) < 0.5, NOISY_FROM, 0)
        timesteps = torch.from_numpy(rng.integers(earliest, 1000))
        x_0 = latents[torch.from_numpy(picked)]
        noise = torch.from_numpy(rng.standard_normal(x_0.shape, dtype=np.float32))
        x_t = scheduler.add_noise(x_0, noise, timesteps).to(device).contiguous(memory_format=torch.channels_last)
        prompt_embeds = text_encoder(tokenize(captions).to(device)).last_hidden_state
        predicted = denoiser(x_t, timesteps.to(device), prompt_embeds).sample
        error = (predicted - noise.to(device)).square().mean((1, 2, 3))
        loss: Tensor = (weight[timesteps].to(device) * error).mean()
        return loss

    modules = {"denoiser": denoiser, "text_encoder": text_encoder}
    train("denoiser", modules, loss_at, steps=DENOISER_STEPS, learning_rate=1.5e-3, work=work)
    return denoiser, text_encoder, tokenizer


def classified_accuracy(classifier: Classifier, images: NDArray[np.uint8], scenes: list[Scene]) -> dict[str, float]:
    """Return the share of images with each attribute correct, and with all attributes correct."""
    correct, _ = classify_images(classifier, images, scenes)
    return {name: round(float(values.mean()), 4) for name, values in correct.items()}


@torch.no_grad()
def score_pipeline(pipeline: Any, classifier: Classifier, *, images: int = 1000, guidance: float) -> dict[str, float]:
    """Return the classified accuracy of `images` images, generated with the pipeline's own call."""
    scenes = all_scenes()
    rng = generator(5, 0)
    picked = [scenes[i] for i in rng.permutation(len(scenes))[:images]]
    generated = []
    for start in range(0, images, 50):
        captions = [
            scene.caption(int(t))
            for scene, t in zip(picked[start : start + 50], rng.integers(0, len(TEMPLATES), 50), strict=False)
        ]
        batch = pipeline(
            captions,
            num_inference_steps=build.DEFAULT_STEPS,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(start),
            output_type="np",
        ).images
        generated.append(np.rint(batch * 255).astype(np.uint8))
    return classified_accuracy(classifier, np.concatenate(generated), picked)


def write_card(out: Path, scores: Mapping[str, Mapping[str, float]]) -> None:
    """Write the card, which states how the miniature was made and how good it is.

    Args:
        scores: accuracy per attribute, of the classifier and of the teacher.
    """
    rows = "\n".join(
        f"| {who} | " + " | ".join(f"{100 * value:.1f} %" for value in row.values()) + " |"
        for who, row in scores.items()
    )
    heads = " | ".join(next(iter(scores.values()))).replace("_", " ")
    rule = "|---" * (1 + len(next(iter(scores.values())))) + "|"
    text = f"""# The condistill miniature

A miniature Stable Diffusion pipeline for demos and tests. It generates images of 64x64 pixels from 8x8 latents of 4
channels. Its world has 7,200 captioned scenes of one object with a shape, colour, size, place and background.
`make miniature` trains it from scratch on procedurally rendered scenes with fixed seeds. No images or texts of other
people were used.

- Classifier: {CLASSIFIER_STEPS} steps at batch size {CLASSIFIER_BATCH}.
- Autoencoder: {AUTOENCODER_STEPS} steps at batch size {AUTOENCODER_BATCH}.
- Denoiser and text encoder: {DENOISER_STEPS} steps at batch size {DENOISER_BATCH}, with epsilon-prediction and
  10 % empty prompts.

Weights are float16 safetensors. Licence: Apache-2.0.

The table shows the share of images in which the classifier finds the attribute that the caption names. The teacher
generated images of 1,000 captions in {build.DEFAULT_STEPS} steps with guidance scale {build.DEFAULT_GUIDANCE}.
The classifier itself was tested on 2,000 held-out renders. These are miniature figures, not FID on MS-COCO.

| | {heads} |
{rule}
{rows}
"""
    (out / "README.md").write_text(text, encoding="utf-8")


def main(
    out: Annotated[Path, typer.Option(help="Directory to write the miniature to.")] = weights_path(),  # noqa: B008
    work: Annotated[Path, typer.Option(help="Directory of checkpoints to resume from.")] = Path("runs/miniature"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train the classifier, the autoencoder, the text encoder and the denoiser of the miniature from scratch."""
    classifier = train_classifier(work, device)
    held_out = [all_scenes()[i] for i in generator(6, 0).permutation(7200)[:2000]]
    scores = {"classifier": classified_accuracy(classifier, render(held_out, seed=7), held_out)}
    console.print("classifier", scores["classifier"])

    scenes, images = training_scenes()
    autoencoder = train_autoencoder(images, work, device)
    latents = encode(autoencoder, images, device) * autoencoder.config.scaling_factor
    with torch.no_grad():
        decoded = autoencoder.decode(latents[:500].to(device) / autoencoder.config.scaling_factor).sample.cpu()
    restored = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    console.print("restored", classified_accuracy(classifier, restored, scenes[:500]))
    denoiser, text_encoder, tokenizer = train_denoiser(latents, scenes, work, device)

    pipeline = build.assemble(autoencoder, text_encoder, tokenizer, denoiser)
    pipeline.to("cpu", torch.float16).save_pretrained(out / "teacher", safe_serialization=True)
    # transformers loads the dtype that the config names, and diffusers float32: both must be the same
    config = out / "teacher" / "text_encoder" / "config.json"
    write_text(config, config.read_text(encoding="utf-8").replace('"dtype": "float16"', '"dtype": "float32"'))
    write_text(out / "teacher" / SAMPLING_NAME, Sampling(build.DEFAULT_STEPS, build.DEFAULT_GUIDANCE).to_json())
    classifier.save(out)
    pipeline.to(torch.float32)
    scores["teacher"] = score_pipeline(pipeline, classifier, guidance=build.DEFAULT_GUIDANCE)
    console.print("teacher", scores["teacher"])
    write_card(out, scores)
    if not math.isclose(1.0, scores["classifier"]["all_correct"], abs_tol=0.01):
        raise SystemExit("the classifier is correct on less than 99 % of held-out renders; train it longer")


if __name__ == "__main__":
    typer.run(main)
