"""Generate an image from a directory that `condistill export ... --to onnx` or `--to openvino` wrote.

    python onnx_runner.py DIRECTORY "a large red star" --out image.png

Needs numpy, tokenizers, pillow, and onnxruntime or openvino; no torch. Copy it and change what you like. The steps are
those of DDIM for diffusion and of Euler's method for flow matching, which are the same: image and noise are estimated,
and mixed again for the next noise level.
"""

import argparse
import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer


def load_graphs(directory, threads=None):
    """Return a function that runs a graph by its name; graphs are loaded when they are first used."""
    if (directory / "denoiser.xml").is_file():
        import openvino

        core = openvino.Core()  # some processors would compute in bfloat16 otherwise
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or 0}
        load = cache(lambda name: core.compile_model(directory / f"{name}.xml", "CPU", settings))

        def run(name, inputs):
            model = load(name)
            found = model({each.any_name: inputs[each.any_name] for each in model.inputs})
            return {each.any_name: found[each] for each in model.outputs}

        return run
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    load = cache(lambda name: onnxruntime.InferenceSession(directory / f"{name}.onnx", options))

    def run(name, inputs):
        session = load(name)
        found = session.run(None, {each.name: inputs[each.name] for each in session.get_inputs()})
        return dict(zip([each.name for each in session.get_outputs()], found, strict=True))

    return run


def encode(run, directory, about, prompt):
    """Return the condition of a prompt, as inputs of the denoiser."""
    if about["class_labels"] is not None:
        label = about["class_labels"].get(prompt)
        return {"class_labels": np.array([int(prompt) if label is None else label])}
    tokens = {}
    for each in about["text"]:
        text = prompt.lower().strip() if each["lowercase"] else prompt
        length = each["length"] if text else each["empty_length"]
        tokenizer = Tokenizer.from_file(str(directory / each["tokenizer"]))
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(**{**tokenizer.padding, "length": length})
        encoding = tokenizer.encode(each["prefix"] + text if text else text)
        tokens[each["ids"]] = np.array([encoding.ids])
        if each["mask"]:
            tokens[each["mask"]] = np.array([encoding.attention_mask])
    condition = run("text_encoder", tokens)
    if not prompt and about["zeros_for_empty_prompt"]:
        return {name: np.zeros_like(value) for name, value in condition.items()}
    return condition


def schedule(config, about, steps):
    """Return timesteps, and the shares of image and noise in the latents at each of them and at the end."""
    total = config["num_train_timesteps"]
    if config["_class_name"].startswith("FlowMatch"):
        sigmas = flow_sigmas(config, about, steps)
        return (sigmas[:-1] * total).astype(np.float32), 1 - sigmas, sigmas
    start, end = config["beta_start"], config["beta_end"]
    if config["trained_betas"] is not None:
        betas = np.array(config["trained_betas"])
    elif config["beta_schedule"] == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, total) ** 2
    else:
        assert config["beta_schedule"] == "linear", config["beta_schedule"]
        betas = np.linspace(start, end, total)
    signal = np.cumprod(1 - betas)
    if config["rescale_betas_zero_snr"]:
        signal = ((signal**0.5 - signal[-1] ** 0.5) / (1 - (signal[-1] / signal[0]) ** 0.5)) ** 2
    timesteps = np.round(np.arange(total, 0, -total / steps)).astype(np.int64)[:steps] - 1
    signal = np.append(signal[timesteps], 1.0 if config["set_alpha_to_one"] else signal[0])
    return timesteps, signal**0.5, (1 - signal) ** 0.5


def flow_sigmas(config, about, steps):
    """Return the noise levels of flow matching, from 1 to 0."""
    size, total, shift = about["latents"], config["num_train_timesteps"], config["shift"]
    least = shift / total / (1 + (shift - 1) / total)  # diffusers shifts it twice
    if config["use_dynamic_shifting"]:
        tokens = size["height"] * size["width"] / size["multiple"] ** 2
        few, many = config["base_image_seq_len"], config["max_image_seq_len"]
        rise = (config["max_shift"] - config["base_shift"]) / (many - few)
        shift, least = np.exp(config["base_shift"] + rise * (tokens - few)), 1 / total
    sigmas = np.linspace(1, 1 / steps if about["uniform_sigmas"] else least, steps)
    return np.append(shift * sigmas / (1 + (shift - 1) * sigmas), 0)


def generate(directory, prompt, *, negative_prompt="", steps=None, guidance=None, noise=None, seed=0, threads=None):
    """Return an image `[H, W, 3]` of numbers from 0 to 1."""
    directory = Path(directory)
    about, config = (json.loads((directory / name).read_text()) for name in ("pipeline.json", "scheduler.json"))
    run, size = load_graphs(directory, threads), about["latents"]
    height, width = size["height"], size["width"]
    pixels = [height * about["pixels_per_latent"], width * about["pixels_per_latent"]]
    scale = about["guidance_scale"] if guidance is None else guidance
    others = {  # inputs that only some denoisers have
        "time_ids": np.array([[*pixels, 0, 0, *pixels]], np.float32),
        "guidance_scale": np.array([scale], np.float32),
        "mask": np.ones((1, 1, height, width), np.float32),
    }
    if about["takes_image"]:  # the mask covers the whole image, so the image under it is grey
        others["masked_latents"] = run("vae_encoder", {"images": np.zeros((1, 3, *pixels), np.float32)})["latents"]
    is_guided = about["guidance"] == "cfg" and scale > 1
    conditions = [
        encode(run, directory, about, each) for each in ([prompt, negative_prompt] if is_guided else [prompt])
    ]
    timesteps, a, s = schedule(config, about, steps or about["num_inference_steps"])
    if noise is None:
        noise = np.random.default_rng(seed).standard_normal((1, size["channels"], height, width))
    x = noise.astype(np.float32)
    for i, t in enumerate(timesteps):
        inputs = {"sample": x, "timestep": np.array([t]), **others}
        found = [run("denoiser", {**inputs, **each})["prediction"] for each in conditions]
        output = found[1] + scale * (found[0] - found[1]) if is_guided else found[0]
        if t.dtype == np.float32:  # flow matching: the denoiser predicts noise - image
            image, eps = x - s[i] * output, x + a[i] * output
        elif config["prediction_type"] == "epsilon":
            image, eps = (x - s[i] * output) / a[i], output
        else:  # v_prediction
            image, eps = a[i] * x - s[i] * output, s[i] * x + a[i] * output
        x = (a[i + 1] * image + s[i + 1] * eps).astype(np.float32)
    images = run("vae_decoder", {"latents": x})["images"]
    return np.clip(images[0].transpose(1, 2, 0) / 2 + 0.5, 0, 1)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Generate an image from exported graphs.")
    parser.add_argument("directory")
    parser.add_argument("prompt")
    parser.add_argument("--out", default="image.png")
    for name, kind in (("negative-prompt", str), ("steps", int), ("guidance", float), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    image = generate(**given)
    Image.fromarray((image * 255).round().astype(np.uint8)).save(out)


if __name__ == "__main__":
    main()
