from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from single_file import open_clip_tensors, tensors_of, unet_tensors, vae_tensors, write_configs, write_file
from torch import Tensor

from condistill.config.sections import SHIPPED_CONFIGS, TeacherSettings
from condistill.errors import CondistillError
from condistill.teachers.header import Header, TensorInfo
from condistill.teachers.load import load_teacher, teacher_inputs
from condistill.teachers.single_file import SHIPPED, check_parts, complete_configs, kind_of, tie_again
from condistill.teachers.skeleton import teacher_skeleton
from condistill.utils.meta import parameters

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
V2 = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
XL = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """A tiny pipeline. Leave it as it is."""
    from tiny import build_sd

    return build_sd()


@pytest.fixture(scope="module")
def tensors(pipeline: Any) -> dict[str, Tensor]:
    return tensors_of(pipeline)


@pytest.fixture(scope="module")
def configs(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_configs(pipeline, tmp_path_factory.mktemp("configs") / "tiny")


@pytest.fixture(scope="module")
def file(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tensors, tmp_path_factory.mktemp("file") / "tiny.safetensors")


def settings(file: Path, config: Path | str | None = None, **others: Any) -> TeacherSettings:
    return TeacherSettings(pipeline=str(file), config=None if config is None else str(config), **others)


def test_a_teacher_in_one_file_makes_the_same_latents_as_its_pipeline(pipeline: Any, file: Path, configs: Path) -> None:
    from condistill.teachers.registry import FAMILIES

    original, loaded = FAMILIES["stable_diffusion"](pipeline), load_teacher(settings(file, configs))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    made = [
        family.sample(family.denoiser, ["a box", ""], noise, num_inference_steps=2, guidance_scale=3.0)
        for family in (original, loaded)
    ]
    assert torch.equal(*made)
    assert (original.decode(made[0]) == loaded.decode(made[1])).all()
    assert loaded.origin.names == ("tiny",)


@pytest.mark.slow
def test_a_teacher_with_two_text_encoders_in_one_file_has_the_weights_of_its_pipeline(tmp_path: Path) -> None:
    from tiny import build_sdxl

    pipeline = build_sdxl()
    file = write_file(tensors_of(pipeline), tmp_path / "xl.safetensors")
    loaded = load_teacher(settings(file, write_configs(pipeline, tmp_path / "configs"))).pipeline
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        weights = getattr(loaded, name).state_dict()
        expected = getattr(pipeline, name).state_dict()
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], tensor) for key, tensor in expected.items())


@pytest.mark.slow
def test_a_file_in_half_precision_is_converted_in_half_precision(
    tensors: dict[str, Tensor], configs: Path, tmp_path: Path
) -> None:
    from safetensors import safe_open

    from condistill.teachers.prepare import prepare_teacher

    half = write_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "half.safetensors")
    prepare_teacher(settings(half, configs), tmp_path / "out")
    with safe_open(tmp_path / "out/unet/diffusion_pytorch_model.safetensors", "pt") as opened:
        assert opened.get_slice("conv_in.weight").get_dtype() == "F16"


def test_the_skeleton_needs_no_weights(file: Path, configs: Path, tmp_path: Path, monkeypatch: Any) -> None:
    import safetensors.torch

    monkeypatch.setattr(safetensors.torch, "load_file", None)
    skeleton = teacher_skeleton(settings(file, configs))
    assert skeleton.family.latent_shape == (4, 8, 8)
    assert {weight.device.type for weight in skeleton.denoiser.parameters()} == {"meta"}


def test_the_inputs_are_the_contents_of_the_file_and_of_the_configs(file: Path, configs: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(configs, tmp_path / "configs"))
    before = teacher_inputs(settings(file, configs), "cpu")
    assert teacher_inputs(settings(file, copied), "cpu") == before
    assert {"teacher file tiny.safetensors", "teacher.config file tokenizer/tokenizer.json"} <= before.keys()
    (copied / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    after = teacher_inputs(settings(file, copied), "cpu")
    assert {name for name in before if before[name] != after[name]} == {
        "teacher.config file scheduler/scheduler_config.json"
    }


def refused(path: Path, message: str, config: Path | str | None = None, **others: Any) -> None:
    with pytest.raises(CondistillError, match=message):
        teacher_skeleton(settings(path, config, **others))


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ("cond_stage_model.", r"has no text_encoder \(a CLIPTextModel\); give a file that has it, or put its weights"),
        ("first_stage_model.", r"has no vae \(a AutoencoderKL\); set teacher\.vae, or give a file that has it"),
    ],
)
def test_a_file_without_a_part_names_it(
    prefixes: str, message: str, tensors: dict[str, Tensor], configs: Path, tmp_path: Path
) -> None:
    part = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefixes)}
    refused(write_file(part, tmp_path / "part.safetensors"), message, configs)


@pytest.mark.slow
def test_a_part_that_the_file_has_not_comes_from_the_directory_of_the_configs(
    pipeline: Any, tensors: dict[str, Tensor], configs: Path, tmp_path: Path
) -> None:
    part = write_file(unet_tensors(pipeline.unet), tmp_path / "part.safetensors")
    copied = Path(shutil.copytree(configs, tmp_path / "configs"))
    pipeline.text_encoder.save_pretrained(copied / "text_encoder")
    pipeline.vae.save_pretrained(copied / "vae")
    loaded = load_teacher(settings(part, copied)).pipeline
    for name in ("unet", "vae", "text_encoder"):
        weights = getattr(loaded, name).state_dict()
        assert all(torch.equal(weights[k], tensor) for k, tensor in getattr(pipeline, name).state_dict().items())


@pytest.mark.slow
def test_a_given_autoencoder_makes_that_of_the_file_needless(
    pipeline: Any, tensors: dict[str, Tensor], configs: Path, tmp_path: Path
) -> None:
    part = {name: tensor for name, tensor in tensors.items() if not name.startswith("first_stage_model.")}
    file = write_file(part, tmp_path / "part.safetensors")
    vae = write_file(vae_tensors(pipeline.vae), tmp_path / "vae.safetensors")
    loaded = load_teacher(settings(file, configs, vae=str(vae))).pipeline.vae.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in pipeline.vae.state_dict().items())


def test_an_autoencoder_of_a_variant_only_replaces_that_of_the_file(
    pipeline: Any, file: Path, configs: Path, tmp_path: Path
) -> None:
    pipeline.vae.save_pretrained(tmp_path / "vae", variant="fp16", max_shard_size="200KB")
    loaded = load_teacher(settings(file, configs, vae=str(tmp_path / "vae"))).pipeline.vae.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in pipeline.vae.state_dict().items())


def test_shapes_that_do_not_fit_the_configs_are_refused_with_both_files(
    tensors: dict[str, Tensor], configs: Path, tmp_path: Path
) -> None:
    wide = write_file({**tensors, FIRST: torch.ones(16, 9, 3, 3)}, tmp_path / "wide.safetensors")
    refused(
        wide,
        r"wide\.safetensors and .*unet/config\.json do not fit: conv_in\.weight is \[16, 9, 3, 3\] in the file and "
        r"\[16, 4, 3, 3\] by the config; give the configs of this model as teacher\.config",
        configs,
    )
    fewer = {name: tensor for name, tensor in tensors.items() if ".middle_block.2." not in name}
    refused(write_file(fewer, tmp_path / "fewer.safetensors"), r"is missing in the file and .*and \d+ more", configs)
    copied = Path(shutil.copytree(configs, tmp_path / "configs"))
    config = json.loads((copied / "text_encoder" / "config.json").read_text())
    (copied / "text_encoder" / "config.json").write_text(json.dumps({**config, "intermediate_size": 16}))
    refused(
        write_file(tensors, tmp_path / "a.safetensors"), r"text_encoder/config\.json do not fit: .*mlp\.fc1", copied
    )


@pytest.mark.slow
def test_layers_that_the_config_has_not_are_refused(tensors: dict[str, Tensor], configs: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(configs, tmp_path / "configs"))
    config = json.loads((copied / "unet" / "config.json").read_text())
    shallow = {**config, "mid_block_type": None}
    (copied / "unet" / "config.json").write_text(json.dumps(shallow))
    refused(
        write_file(tensors, tmp_path / "a.safetensors"), "is in the file and not in the model of the config", copied
    )


def test_configs_that_are_no_pipeline_are_refused(file: Path, tmp_path: Path) -> None:
    refused(file, r"teacher\.config .* is no directory with a model_index\.json; give a directory", tmp_path)
    refused(file, r"teacher\.config sd-3 is no directory .*; or one of sd-1, ", "sd-3")


def header(*names: str, metadata: dict[str, str] | None = None, **shapes: tuple[int, ...]) -> Header:
    tensors = dict.fromkeys(names, TensorInfo((1,), "F16"))
    return Header(Path("a"), {**tensors, FIRST: TensorInfo(shapes.get("first", (320, 4, 3, 3)), "F16")}, metadata or {})


def write_header(folder: Path, names: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    tensors = {name: torch.zeros(shape) for name, shape in names.items()}
    return write_file(tensors, folder / "model.safetensors", metadata)


@pytest.mark.parametrize(
    ("names", "metadata", "config"),
    [
        ({FIRST: (2, 4, 1, 1)}, {}, "sd-1"),
        ({FIRST: (2, 9, 1, 1)}, {}, "sd-1-inpaint"),
        ({FIRST: (2, 9, 1, 1), V2: (1, 1024)}, {}, "sd-2-inpaint"),
        ({FIRST: (2, 4, 1, 1), V2: (1, 1024)}, {"modelspec.prediction_type": "epsilon"}, "sd-2"),
        ({FIRST: (2, 4, 1, 1), V2: (1, 1024)}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "sd-2-v"),
        ({FIRST: (2, 4, 1, 1), XL: (1,)}, {}, "sdxl"),
        ({FIRST: (2, 4, 1, 1), XL: (1,), "v_pred": (), "ztsnr": ()}, {}, "sdxl-v"),
    ],
)
def test_the_configs_are_chosen_by_the_header(
    names: dict[str, tuple[int, ...]], metadata: dict[str, str], config: str, tmp_path: Path
) -> None:
    from condistill.teachers.locate import locate

    assert locate(settings(write_header(tmp_path, names, metadata))) == SHIPPED / config


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({FIRST: (2, 4, 1, 1), V2: (1, 1024)}, r"is a Stable Diffusion 2, .*; set teacher\.config: sd-2 .* or sd-2-v"),
        ({FIRST: (2, 4, 1, 1), XL: (1,), "v_pred": ()}, r"\(it has no ztsnr\); set teacher\.config: sdxl-v"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (1,)}, r"is a FLUX\.1-schnell, whose .* set teacher\.config"),
        ({"model.diffusion_model.x": (1,)}, r"of the kind 'unknown', for which condistill has no configs; set teacher"),
        ({FIRST: (1, 8, 1, 1), "model.diffusion_model.input_blocks.10.0.skip_connection.bias": (1,)}, "kind 'upscale'"),
        ({"lora_unet_x.lora_down.weight": (1, 1)}, r"is a LoRA; give its base model as teacher\.pipeline, and this"),
        ({"down_blocks.0.resnets.0.conv1.weight": (1,)}, "is the denoiser of a pipeline alone; give the directory"),
        ({"input_blocks.0.0.weight": (1,)}, "is a U-Net alone; give a file that also has"),
        ({"decoder.up.0.block.0.norm1.bias": (1,)}, r"is an autoencoder; it can be teacher\.vae"),
        ({"text_model.encoder.layers.0.mlp.fc1.bias": (1,)}, "is a text encoder alone; give a pipeline"),
        ({"encoder.block.0.layer.0.SelfAttention.q.weight": (1,)}, "is a text encoder alone; give a pipeline"),
        ({"control_model.time_embed.0.weight": (1,)}, "is a ControlNet; give the pipeline that it was made for"),
        ({"emb_params": (1,)}, "is a textual inversion; give the pipeline"),
        ({f"{FIRST}.absmax": (1,)}, r"are quantised \(it has model\.diffusion.*\.absmax\); give a file in float32"),
    ],
)
def test_a_file_that_is_no_usable_pipeline_is_named(
    names: dict[str, tuple[int, ...]], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(write_header(tmp_path, names), message)


def test_quantised_and_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_file({FIRST: torch.ones(4, 4).to(torch.float8_e4m3fn)}, path)
    refused(path, r"are quantised \(most of them are F8_E4M3\)")
    whole = write_file({FIRST: torch.ones(4, 4)}, path).read_bytes()
    path.write_bytes(whole[:-8])
    refused(path, rf"is cut off: it has {len(whole) - 8} bytes of {len(whole)}; download it again")
    entry = '{"a": {"dtype": "F16", "shape": [%s], "data_offsets": [0, 2]}}'
    texts = ["[]", '{"a"', '{"a": 3}', '{"a": {"dtype": "F16"}}', entry % -1, entry % '"x"', entry % 1.5]
    contents = [len(text).to_bytes(8, "little") + text.encode() + bytes(2) for text in texts]
    for content in (b"", b"x", b"\xff" * 20, *contents):
        path.write_bytes(content)
        refused(path, r"model\.safetensors is no safetensors file, or is damaged; download or save it again")
    path.with_suffix(".gguf").write_bytes(b"GGUF" + bytes(100))
    refused(path.with_suffix(".gguf"), "is a GGUF file, whose weights are quantised")


def test_small_files_of_the_hub_are_used_where_it_answers(
    configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from condistill.teachers.locate import locate

    found: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        found.update(options, name=name)
        return str(configs)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    file = write_header(tmp_path, {"double_blocks.0.img_attn.norm.key_norm.scale": (1,)})
    assert locate(settings(file)) == configs
    assert found["name"] == "black-forest-labs/FLUX.1-schnell"
    assert not any("safetensors" in pattern for pattern in found["allow_patterns"])


@pytest.mark.parametrize(
    ("name", "unet", "text", "size"),
    [
        ("sd-1", 859_520_964, 123_060_480, 512),
        ("sd-1-inpaint", 859_535_364, 123_060_480, 512),
        ("sd-2", 865_910_724, 340_387_840, 512),
        ("sd-2-v", 865_910_724, 340_387_840, 768),
        ("sd-2-inpaint", 865_925_124, 340_387_840, 512),
        ("sdxl", 2_567_463_684, 123_060_480, 1024),
        ("sdxl-v", 2_567_463_684, 123_060_480, 1024),
    ],
)
@pytest.mark.slow
def test_shipped_configs_have_the_published_sizes(name: str, unet: int, text: int, size: int) -> None:
    skeleton = teacher_skeleton(TeacherSettings(pipeline=str(SHIPPED / name)))
    assert parameters(skeleton.denoiser) == unet
    assert skeleton.components["text_encoder"] == text
    assert skeleton.components["vae"] == 83_653_863
    assert skeleton.family.image_size == (size, size)
    assert skeleton.family.text_length == 77


def test_every_shipped_config_can_be_named() -> None:
    assert {path.name for path in SHIPPED.iterdir() if path.is_dir()} == {*SHIPPED_CONFIGS, "clip"}


@pytest.mark.parametrize(("name", "pads"), [("sd-1", {"tokenizer": 49407}), ("sd-2", {"tokenizer": 0})])
def test_shipped_tokenizers_pad_as_the_original_ones(name: str, pads: dict[str, int]) -> None:
    from transformers import CLIPTokenizer

    with complete_configs(SHIPPED / name) as folder:
        for tokenizer, pad in pads.items():
            loaded = CLIPTokenizer.from_pretrained(folder / tokenizer)
            assert loaded.pad_token_id == pad
            tokens = loaded("a cat", padding="max_length", truncation=True).input_ids
            assert tokens == [49406, 320, 2368, 49407, *[pad] * 73]
        assert not (SHIPPED / name / "tokenizer" / "vocab.json").exists()


def test_a_kind_that_only_seems_to_be_the_first_is_unknown() -> None:
    assert kind_of(header()) == "v1"
    assert kind_of(Header(Path("a"), {"x": TensorInfo((1,), "F32")})) == "unknown"


def header_of(tensors: dict[str, Tensor], *others: str) -> Header:
    """Return the header of a file with these tensors, and with others that files of its kind also have."""
    infos = {name: TensorInfo(tuple(tensor.shape), "F16") for name, tensor in tensors.items()}
    return Header(Path("model.safetensors"), {**infos, **dict.fromkeys(others, TensorInfo((1, 77), "I64"))})


BUFFERS = (
    "alphas_cumprod",
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
    "conditioner.embedders.1.model.logit_scale",
    "cond_stage_model.model.logit_scale",
    "model_ema.decay",
)


def real_size(name: str) -> tuple[Header, Any, dict[str, Any]]:
    """Return the header of a file of a published size, its models on the meta device, and its index."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    models = teacher_skeleton(TeacherSettings(pipeline=str(SHIPPED / name))).family.pipeline
    if name.startswith("sd-2"):  # the file has all 24 layers of OpenCLIP's text encoder, and the pipeline uses 23
        config = {**models.text_encoder.config.to_dict(), "num_hidden_layers": 24, "projection_dim": 1024}
        with torch.device("meta"):
            encoder = CLIPTextModelWithProjection(CLIPTextConfig(**config))
        tensors = {**unet_tensors(models.unet), **vae_tensors(models.vae)}
        tensors |= open_clip_tensors(encoder, "cond_stage_model.model.")
    else:
        tensors = tensors_of(models)
    index = json.loads((SHIPPED / name / "model_index.json").read_text(encoding="utf-8"))
    return header_of(tensors, *BUFFERS), models, index


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd-1", "v1"),
        ("sd-1-inpaint", "inpainting"),
        ("sd-2-v", "v2"),
        ("sd-2-inpaint", "inpainting_v2"),
        ("sdxl", "xl_base"),
    ],
)
def test_files_of_published_sizes_fit_the_shipped_configs(name: str, kind: str) -> None:
    header, models, index = real_size(name)
    assert kind_of(header) == kind
    found = check_parts(header, SHIPPED / name, index, models.components, replaced=set())
    assert set(found) == {name for name, model in models.components.items() if isinstance(model, torch.nn.Module)}
    assert all(found.values())


def flux_shapes(double: int = 19, single: int = 38, width: int = 3072) -> dict[str, tuple[int, ...]]:
    """Return the shapes of FLUX.1-dev's transformer as its authors' code names them."""
    layers: dict[str, tuple[int, int]] = {
        "img_in": (width, 64),
        "txt_in": (width, 4096),
        "time_in.in_layer": (width, 256),
        "time_in.out_layer": (width, width),
        "vector_in.in_layer": (width, 768),
        "vector_in.out_layer": (width, width),
        "guidance_in.in_layer": (width, 256),
        "guidance_in.out_layer": (width, width),
        "final_layer.linear": (64, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    norms = []
    for number in range(double):
        for side in ("img", "txt"):
            block = f"double_blocks.{number}.{side}"
            layers |= {
                f"{block}_mod.lin": (6 * width, width),
                f"{block}_attn.qkv": (3 * width, width),
                f"{block}_attn.proj": (width, width),
                f"{block}_mlp.0": (4 * width, width),
                f"{block}_mlp.2": (width, 4 * width),
            }
            norms += [f"{block}_attn.norm.{part}_norm.scale" for part in ("query", "key")]
    for number in range(single):
        block = f"single_blocks.{number}"
        layers |= {
            f"{block}.linear1": (7 * width, width),
            f"{block}.linear2": (width, 5 * width),
            f"{block}.modulation.lin": (3 * width, width),
        }
        norms += [f"{block}.norm.{part}_norm.scale" for part in ("query", "key")]
    weights = {f"{layer}.weight": shape for layer, shape in layers.items()}
    return weights | {f"{layer}.bias": shape[:1] for layer, shape in layers.items()} | dict.fromkeys(norms, (128,))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_transformer_of_published_size_fits_the_configs_of_its_pipeline(prefix: str) -> None:
    from full_size import DATA

    models = teacher_skeleton(TeacherSettings(pipeline=str(DATA / "flux_dev"))).family.pipeline
    index = json.loads((DATA / "flux_dev" / "model_index.json").read_text(encoding="utf-8"))
    tensors = {prefix + name: TensorInfo(shape, "BF16") for name, shape in flux_shapes().items()}
    header = Header(Path("flux.safetensors"), tensors)
    assert kind_of(header) == "flux-dev"
    transformer = {"transformer": models.transformer}
    assert check_parts(header, DATA / "flux_dev", index, transformer, replaced=set()) == {"transformer": True}
    with pytest.raises(
        CondistillError, match=r"flux\.safetensors has no vae \(a AutoencoderKL\); set teacher\.vae, or"
    ):
        check_parts(header, DATA / "flux_dev", index, {"vae": models.vae}, replaced=set())


@pytest.mark.slow
def test_a_text_encoder_whose_file_has_a_shared_weight_once_is_loaded(tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import create_diffusers_t5_model_from_checkpoint
    from tiny import build_sd3
    from transformers import T5EncoderModel

    pipeline = build_sd3()
    configs = write_configs(pipeline, tmp_path / "configs")
    original = pipeline.text_encoder_3.eval()
    state = {k: weight for k, weight in original.state_dict().items() if k != "encoder.embed_tokens.weight"}
    tensors = {f"text_encoders.t5xxl.transformer.{name}": weight for name, weight in state.items()}
    index = json.loads((configs / "model_index.json").read_text(encoding="utf-8"))
    models = {"text_encoder_3": original}
    assert check_parts(header_of(tensors), configs, index, models, replaced=set()) == {"text_encoder_3": True}
    place = {"config": str(configs), "subfolder": "text_encoder_3", "local_files_only": True}
    loaded = create_diffusers_t5_model_from_checkpoint(T5EncoderModel, tensors, **place)
    tie_again("text_encoder_3", loaded, tmp_path / "a.safetensors")
    tokens = torch.tensor([[3, 4, 5]])
    assert torch.equal(loaded.eval()(tokens)[0], original(tokens)[0])
    with torch.device("meta"):
        empty = T5EncoderModel(original.config)
    with pytest.raises(CondistillError, match=r"a\.safetensors has no shared\.weight of the text_encoder_3; download"):
        tie_again("text_encoder_3", empty, tmp_path / "a.safetensors")
