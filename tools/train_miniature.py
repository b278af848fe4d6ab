"""Train the miniature from scratch: its classifier, its autoencoder, its text encoder and denoiser.

Run as `python tools/train_miniature.py` (or `make miniature`). Every stage has a fixed seed, shows its
progress, keeps checkpoints in the work directory and goes on where it was stopped.
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
NOISY_FROM = 800  # half of the timesteps are drawn from here on, where the prompt alone says what goes where
SCENES = 32_000  # rendered for the autoencoder and the denoiser
EMPTY_PROMPT_PROBABILITY = 0.1
_LOG_EVERY, _SAVE_EVERY = 100, 250


def draw(seed: int, step: int) -> np.random.Generator:
    """The random numbers of one step depend on (seed, step) alone, so a resumed run goes on the same way."""
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
    """The training loop all parts share: AdamW, warm-up and cosine decay, EMA, checkpoints.

    Leaves the averaged weights in `modules`.
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
        console.print(f"{name}: going on from step {first} of {steps}")
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
    """Rendered scenes, a little noise and brightness change, one cross-entropy per attribute."""
    torch.manual_seed(0)
    classifier = Classifier().to(device)
    scenes = all_scenes()

    def loss_at(step: int) -> Tensor:
        rng = draw(1, step)
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
    """The scenes and renders the autoencoder and the denoiser learn from: every combination several times."""
    scenes = all_scenes()
    picked = [scenes[i] for i in draw(2, 0).permutation(SCENES) % len(scenes)]
    return picked, render(picked, seed=2)


def train_autoencoder(images: NDArray[np.uint8], work: Path, device: str) -> AutoencoderKL:
    """Reconstruction (L1 and L2) and a small KL; then the scaling factor that gives latents unit variance."""
    torch.manual_seed(0)
    autoencoder = build.build_autoencoder().to(device, memory_format=torch.channels_last)

    def loss_at(step: int) -> Tensor:
        rng = draw(3, step)
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
    """Unscaled latents `[N, 4, 8, 8]`: the mean of the posterior."""
    parts = [
        autoencoder.encode(to_tensor(images[i : i + 64]).to(device)).latent_dist.mean.cpu()
        for i in range(0, len(images), 64)
    ]
    return torch.cat(parts)


def train_denoiser(
    latents: Tensor, scenes: list[Scene], work: Path, device: str
) -> tuple[UNet2DConditionModel, CLIPTextModel, CLIPTokenizer]:
    """Epsilon prediction, 10 % empty prompts, text encoder trained along.

    The loss is the error in x_0, that is the error in epsilon times (1 - abar) / abar, but at least 0.2 of the latter:
    unweighted, the place of an object is hardly learned, since only the noisiest timesteps leave it to the prompt.
    """
    torch.manual_seed(0)
    tokenizer = build.build_tokenizer()
    text_encoder = build.build_text_encoder(tokenizer).to(device)
    denoiser = build.build_denoiser().to(device, memory_format=torch.channels_last)
    scheduler = build.build_scheduler()
    abar = scheduler.alphas_cumprod
    weight = ((1 - abar) / abar).clamp(min=0.2)

    def tokenize(captions: list[str]) -> Tensor:
        tokens: Tensor = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return tokens

    def loss_at(step: int) -> Tensor:
        rng = draw(4, step)
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


def judge_accuracy(classifier: Classifier, images: NDArray[np.uint8], scenes: list[Scene]) -> dict[str, float]:
    """Share of images with each attribute right, and with all right."""
    right, _ = classify_images(classifier, images, scenes)
    return {name: round(float(values.mean()), 4) for name, values in right.items()}


@torch.no_grad()
def score_pipeline(pipeline: Any, classifier: Classifier, *, images: int = 1000, guidance: float) -> dict[str, float]:
    """Classified accuracy of `images` captions drawn with the pipeline's own call."""
    scenes = all_scenes()
    rng = draw(5, 0)
    picked = [scenes[i] for i in rng.permutation(len(scenes))[:images]]
    drawn = []
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
        drawn.append(np.rint(batch * 255).astype(np.uint8))
    return judge_accuracy(classifier, np.concatenate(drawn), picked)


def write_card(out: Path, scores: Mapping[str, Mapping[str, float]]) -> None:
    """The card says how the miniature was made and how good it is."""
    rows = "\n".join(
        f"| {who} | " + " | ".join(f"{100 * value:.1f} %" for value in row.values()) + " |"
        for who, row in scores.items()
    )
    heads = " | ".join(next(iter(scores.values())))
    rule = "|---" * (1 + len(next(iter(scores.values())))) + "|"
    text = f"""# The condistill miniature

A Stable Diffusion pipeline in miniature, for demos and tests: 64x64 pixels, 8x8 latents of 4 channels, a world
of 7,200 captioned scenes (one object with a shape, colour, size, place and background). Trained from scratch on
procedurally drawn scenes by `make miniature` with fixed seeds; no image or text of anybody else was used.

Classifier: {CLASSIFIER_STEPS} steps of {CLASSIFIER_BATCH}. Autoencoder: {AUTOENCODER_STEPS} of {AUTOENCODER_BATCH}.
Denoiser and text encoder: {DENOISER_STEPS} of {DENOISER_BATCH}, epsilon prediction, 10 % empty
prompts. Weights are float16 safetensors. Licence: Apache-2.0.

Classified accuracy over 1,000 captions, {build.DEFAULT_STEPS} steps, guidance {build.DEFAULT_GUIDANCE}; the classifier
itself on 2,000 held-out renders. These are miniature figures, not FID on MS-COCO.

| | {heads} |
{rule}
{rows}
"""
    (out / "README.md").write_text(text, encoding="utf-8")


def main(
    out: Annotated[Path, typer.Option(help="Where the miniature is written.")] = weights_path(),  # noqa: B008
    work: Annotated[Path, typer.Option(help="Checkpoints; training goes on from here.")] = Path("runs/miniature"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train the miniature's classifier, autoencoder, text encoder and denoiser from scratch."""
    classifier = train_classifier(work, device)
    held_out = [all_scenes()[i] for i in draw(6, 0).permutation(7200)[:2000]]
    scores = {"classifier": judge_accuracy(classifier, render(held_out, seed=7), held_out)}
    console.print("classifier", scores["classifier"])

    scenes, images = training_scenes()
    autoencoder = train_autoencoder(images, work, device)
    latents = encode(autoencoder, images, device) * autoencoder.config.scaling_factor
    with torch.no_grad():
        decoded = autoencoder.decode(latents[:500].to(device) / autoencoder.config.scaling_factor).sample.cpu()
    restored = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    console.print("restored", judge_accuracy(classifier, restored, scenes[:500]))
    denoiser, text_encoder, tokenizer = train_denoiser(latents, scenes, work, device)

    pipeline = build.assemble(autoencoder, text_encoder, tokenizer, denoiser)
    pipeline.to("cpu", torch.float16).save_pretrained(out / "teacher", safe_serialization=True)
    write_text(out / "teacher" / SAMPLING_NAME, Sampling(build.DEFAULT_STEPS, build.DEFAULT_GUIDANCE).to_json())
    classifier.save(out)
    pipeline.to(torch.float32)
    scores["teacher"] = score_pipeline(pipeline, classifier, guidance=build.DEFAULT_GUIDANCE)
    console.print("teacher", scores["teacher"])
    write_card(out, scores)
    if not math.isclose(1.0, scores["classifier"]["all_correct"], abs_tol=0.01):
        raise SystemExit("the classifier is below 99 % on held-out renders; train it longer")


if __name__ == "__main__":
    typer.run(main)
