"""How a checkpoint is loaded and sampled in other programs: what its header says, and what the user has to choose."""

from __future__ import annotations

from condistill.export.single_file.layout import CONFIGS_NAME
from condistill.export.single_file.unet_structure import UNetStructure, complete, kind_of
from condistill.export.source import Shape

_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
}
_VELOCITY_2 = "stable-diffusion-v2-768-v"
_SAMPLERS = {
    "LCMScheduler": ("lcm", "sgm_uniform"),
    "EulerDiscreteScheduler": ("euler", "normal"),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "normal"),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", "normal"),
    "UniPCMultistepScheduler": ("uni_pc", "normal"),
    "HeunDiscreteScheduler": ("heun", "normal"),
    "DDIMScheduler": ("ddim", "ddim_uniform"),
    "PNDMScheduler": ("euler", "normal"),
}
"""By scheduler: the nearest sampler and scheduler of ComfyUI."""
_SPACINGS = {"trailing": "simple"}
"""Timesteps from the last one downwards: `simple` takes the same."""
_WIDTH = 320
_LCM_STEPS = 50
"""Of the solver that ComfyUI's lcm assumes."""


def prediction_of(shape: Shape) -> str:
    """Return what the U-Net predicts, as diffusers names it; epsilon where the scheduler is not known."""
    return str(shape.components.get("scheduler", {}).get("prediction_type", "epsilon"))


def architecture(shape: Shape) -> dict[str, str]:
    """Return the kind of the model, as the header of a file names it (modelspec)."""
    kind, prediction = kind_of(shape.denoiser), prediction_of(shape)
    name = _VELOCITY_2 if kind == "sd2" and prediction == "v_prediction" else _ARCHITECTURES[kind]
    if complete(shape.denoiser)["in_channels"] != 4:
        name += "-inpainting"
    found = {
        "modelspec.architecture": name,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else "epsilon",
    }
    if size := shape.sampling.get("resolution"):
        found["modelspec.resolution"] = f"{size}x{size}"
    return found


def in_comfyui(shape: Shape) -> str:
    """Return where the file belongs in ComfyUI, and with which settings it is sampled, as Markdown."""
    lines = [
        "**ComfyUI**: copy the file to `models/checkpoints`, and choose it in the node *Load Checkpoint* "
        "(CheckpointLoaderSimple).",
        *_model_sampling(shape),
        *_ksampler(shape),
        *_in_diffusers(shape),
    ]
    return "\n\n".join(lines)


def _model_sampling(shape: Shape) -> list[str]:
    """Return the node that says what the model predicts, where ComfyUI does not find it."""
    scheduler, kind = shape.components.get("scheduler", {}), kind_of(shape.denoiser)
    ends_without_signal = bool(scheduler.get("rescale_betas_zero_snr"))
    if scheduler.get("_class_name") == "LCMScheduler":
        steps = scheduler.get("original_inference_steps", _LCM_STEPS)
        line = "Put the node *ModelSamplingDiscrete* with `sampling: lcm` behind it."
        if steps != _LCM_STEPS:
            line += (
                f" The model was trained along a solver of {steps} steps, and the node assumes {_LCM_STEPS}, so that "
                "images differ from those of diffusers."
            )
        return [line]
    if prediction_of(shape) == "v_prediction" and kind != "sdxl":  # an SDXL has the names v_pred and ztsnr in the file
        zero = ", `zsnr: true`" if ends_without_signal else ""
        return [
            f"The model predicts the velocity, which a checkpoint of this kind cannot say: put the node "
            f"*ModelSamplingDiscrete* with `sampling: v_prediction`{zero} behind it."
        ]
    if ends_without_signal and kind != "sdxl":
        return ["Put the node *ModelSamplingDiscrete* with `sampling: eps`, `zsnr: true` behind it."]
    return []


def _ksampler(shape: Shape) -> list[str]:
    scheduler = shape.components.get("scheduler")
    if scheduler is None:
        return []
    sampler, spacing = _SAMPLERS.get(scheduler.get("_class_name", ""), ("euler", "normal"))
    spacing = _SPACINGS.get(scheduler.get("timestep_spacing", ""), spacing) if sampler != "lcm" else spacing
    if scheduler.get("use_karras_sigmas"):
        spacing = "karras"
    settings = [*_sampling_settings(shape), f"`sampler_name: {sampler}`", f"`scheduler: {spacing}`"]
    return [f"*KSampler*: {', '.join(settings)}."]


def _sampling_settings(shape: Shape) -> list[str]:
    steps, scale = shape.sampling.get("num_inference_steps"), guidance_scale(shape)
    return [
        *([f"`steps: {steps}`"] if steps else []),
        *([f"`cfg: {scale:g}`"] if scale is not None else []),
    ]


def guidance_scale(shape: Shape) -> float | None:
    """Return the guidance scale with which programs evaluate the denoiser; None: unknown.

    A denoiser that has learnt one scale is evaluated once per step, which programs do at a scale of 1.
    """
    if shape.denoiser.get("time_cond_proj_dim"):
        return 1.0
    scale = shape.sampling.get("guidance_scale")
    return None if scale is None else max(float(scale), 1.0)


def _in_diffusers(shape: Shape) -> list[str]:
    if len(set(UNetStructure.of(shape.denoiser).layers)) > 1:
        return [
            "**diffusers**: `from_single_file` cannot read this file, since its blocks have different numbers of "
            "layers; load the pipeline's directory with `from_pretrained`."
        ]
    return [
        f'**diffusers**: `{shape.pipeline_class}.from_single_file("FILE", config="{CONFIGS_NAME}")`; the folder has '
        "the configs and the tokenizer."
    ]


def in_sdcpp(shape: Shape) -> str:
    """Return how stable-diffusion.cpp loads the file, and with which settings it is sampled, as Markdown."""
    scheduler = shape.components.get("scheduler", {})
    options = ["sd-cli -m FILE", '-p "PROMPT"']
    if steps := shape.sampling.get("num_inference_steps"):
        options.append(f"--steps {steps}")
    if (scale := guidance_scale(shape)) is not None:
        options.append(f"--cfg-scale {scale:g}")
    if size := shape.sampling.get("resolution"):
        options.append(f"-H {size} -W {size}")
    if scheduler.get("_class_name") == "LCMScheduler":
        options.append("--sampling-method lcm --scheduler lcm")
    elif scheduler.get("timestep_spacing") == "trailing":
        options.append("--sampling-method euler --scheduler simple")
    if prediction_of(shape) == "v_prediction":
        options.append("--prediction v")
    lines = [f"**stable-diffusion.cpp**: `{' '.join(options)}`"]
    if scheduler.get("rescale_betas_zero_snr"):
        lines.append(
            "The noise schedule of this model ends without signal (rescale_betas_zero_snr), which stable-diffusion.cpp "
            "does not know, so that images differ from those of diffusers."
        )
    if complete(shape.denoiser)["block_out_channels"][0] != _WIDTH:
        lines.append(
            f"Versions that do not read the width from the file (before June 2026) know {_WIDTH} channels only."
        )
    return "\n\n".join(lines)
