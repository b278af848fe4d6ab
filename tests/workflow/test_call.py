from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from single_file import tensors_of, write_configs, write_file
from torch import nn

import condistill
from condistill import CondistillError, Recipe, StudentSettings, compress
from condistill.teachers.family import Family
from condistill.teachers.skeleton import Skeleton
from condistill.workflow import call as call_module
from condistill.workflow import given

PROMPTS = [f"a {word} ball" for word in "abcdefgh"]
KNOBS = {"cache.num_inference_steps": 1, "evaluate.prompts_per_split": 2, "evaluate.grid": 1}

RecipeOf = Callable[..., Recipe]


@pytest.fixture
def recipe_of_call(
    monkeypatch: pytest.MonkeyPatch, tiny_family: Family, tiny_skeleton: Skeleton, tmp_path: Path
) -> RecipeOf:
    """The recipe of a call of `compress`, which is neither checked nor run."""
    seen: list[Recipe] = []

    def keep(recipe: Recipe, out: Path, **_: Any) -> Path:
        seen.append(recipe)
        return out

    def call(teacher: Any = None, **arguments: Any) -> Recipe:
        with monkeypatch.context() as patch:
            patch.setattr(call_module, "run_recipe", keep)
            patch.setattr(call_module, "teacher_skeleton", lambda _: Skeleton("tiny", copy.copy(tiny_skeleton.family)))
            patch.setattr(call_module, "preflight", lambda *_: {})
            whole = {"prompts": PROMPTS, "out": tmp_path / "run", **arguments}
            compress(tiny_family.pipeline if teacher is None else teacher, **whole)
        return seen[-1]

    return call


def test_a_pipeline_and_prompts_become_a_recipe_with_usual_settings(recipe_of_call: RecipeOf, tmp_path: Path) -> None:
    recipe = recipe_of_call()
    assert recipe.teacher.pipeline == str(tmp_path / "run" / "teacher")
    assert recipe.student.preset == "b-base"
    assert recipe.cache.size == len(PROMPTS) // 2
    assert (recipe.distill.steps, recipe.distill.batch_size, recipe.distill.micro_batch_size) == (50_000, 256, 8)
    assert recipe.evaluate.prompts_per_split == len(PROMPTS)


def test_one_safetensors_file_becomes_a_recipe(
    recipe_of_call: RecipeOf, tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_file(tensors_of(tiny_family.pipeline), tmp_path / "mine.safetensors")
    configs = write_configs(tiny_family.pipeline, tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of_call("mine.safetensors", settings={"teacher.config": "configs"})
    assert (recipe.teacher.pipeline, recipe.teacher.config) == (str(file), str(configs))


@pytest.mark.parametrize(("name", "sampled"), [("org/model", (50, 7.5)), ("org/model-turbo", (4, 1.0))])
def test_the_teacher_samples_as_the_name_that_it_was_loaded_from_says(
    recipe_of_call: RecipeOf,
    tiny_family: Family,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    sampled: tuple[int, float],
) -> None:
    monkeypatch.setattr(tiny_family.pipeline, "_internal_dict", {**tiny_family.pipeline.config, "_name_or_path": name})
    cache = recipe_of_call().cache
    assert (cache.num_inference_steps, cache.guidance_scale) == sampled


def test_arguments_and_settings_change_the_recipe(recipe_of_call: RecipeOf) -> None:
    recipe = recipe_of_call(
        student={"width": 0.5},
        steps=7,
        batch_size=6,
        cache_size=3,
        settings={"distill.optimizer.learning_rate": 1e-4, "student.weights": "random", "teacher.resolution": 64},
    )
    assert recipe.student == StudentSettings(width=0.5, weights="random")
    assert (recipe.distill.steps, recipe.distill.batch_size, recipe.distill.micro_batch_size) == (7, 6, 6)
    assert recipe.cache.size == 3
    assert recipe.distill.optimizer.learning_rate == 1e-4
    assert recipe.teacher.resolution == 64


@pytest.mark.parametrize("student", ["b-small", 0.5, StudentSettings(width=0.25), {"target": {"macs": 0.5}}])
def test_a_student_is_chosen_in_each_short_form(recipe_of_call: RecipeOf, student: Any) -> None:
    chosen = recipe_of_call(student=student).student
    assert chosen.model_dump(exclude_unset=True) == call_module.student_settings(
        student, can_cut_width=True
    ).model_dump(exclude_unset=True)


def test_prompts_are_texts_a_path_or_paths(recipe_of_call: RecipeOf, tmp_path: Path) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text(f"{file.stem} star\n{file.stem} ball\n", encoding="utf-8")
    assert recipe_of_call(prompts=files).prompts.files == tuple(map(str, files))
    assert recipe_of_call(prompts=str(files[0])).prompts.files == (str(files[0]),)
    assert recipe_of_call(prompts=files[0]).cache.size == 1
    texts = [recipe_of_call(prompts=iter(prompts)).prompts.files for prompts in (PROMPTS, PROMPTS, PROMPTS[:-1])]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_a_teacher_can_be_a_directory(recipe_of_call: RecipeOf, tiny_pipeline_dir: Path) -> None:
    for teacher in (tiny_pipeline_dir, str(tiny_pipeline_dir)):
        assert recipe_of_call(teacher).teacher.pipeline == str(tiny_pipeline_dir)


def test_settings_of_the_teacher_count_when_it_is_examined_and_paths_start_at_the_working_directory(
    tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"teacher.vae": Path("vae"), "teacher.resolution": 64}
    with pytest.raises(CondistillError, match=rf"teacher\.vae {tmp_path / 'vae'} is no directory"):
        compress(tiny_pipeline_dir, "run", prompts=PROMPTS, settings=settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": None}, "compress needs prompts: a list of texts, or the path of a prompt file"),
        ({"prompts": []}, "prompts has no text; give at least one prompt"),
        ({"prompts": ["  "]}, "prompts has no text"),
        ({"prompts": ["a star", 3]}, r"prompts\[1\] is a int; give a list of texts, a path, or a list of paths"),
        ({"prompts": "no-such-file.txt"}, "there is no prompt file"),
        ({"student": "b-huge"}, "the student 'b-huge' is no preset"),
        ({"steps": 3, "settings": {"distill.steps": 4}}, "got steps and 'distill.steps' in settings; leave out one"),
        ({"settings": {"distill.step": 4}}, "distill.step"),
        ({"settings": {"distill": 4, "distill.steps": 4}}, "settings has a value for 'distill' and one for"),
        ({"settings": {"distill.steps": 4, "distill": 4}}, "settings has a value for 'distill' and others inside it"),
        ({"settings": {"teacher.variant": "fp16"}}, "settings has teacher.variant, and the teacher is the pipeline"),
        ({"settings": {"teacher": 3}}, "teacher"),
        ({"teacher": 3}, "compress got a int; give a recipe, a pipeline of diffusers"),
        ({"until": "tests"}, "there is no stage 'tests'"),
    ],
)
def test_arguments_that_make_no_run_are_refused_and_nothing_is_written(
    tiny_family: Family, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    whole = {"teacher": tiny_family.pipeline, "prompts": PROMPTS, "out": tmp_path / "run", **arguments}
    with pytest.raises(CondistillError, match=message):
        compress(whole.pop("teacher"), **whole)
    assert not (tmp_path / "run").exists()


def test_the_name_of_a_prompt_file_in_a_list_of_texts_is_refused(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a star\n", encoding="utf-8")
    with pytest.raises(CondistillError, match=r"prompts\[0\] is the name of a file; give Path\('a.txt'\)"):
        compress(tiny_family.pipeline, "run", prompts=["a.txt"])


def test_a_recipe_takes_no_further_settings(tmp_path: Path, recipe_of: Callable[..., Recipe]) -> None:
    with pytest.raises(CondistillError, match="compress got a recipe and student, steps, which a recipe has already"):
        compress(recipe_of("miniature", {"width": 0.5}), tmp_path, student="b-base", steps=3)  # type: ignore[call-overload]


class _WithLora(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.lora_A = nn.ModuleDict({"default": nn.Linear(2, 2)})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("lora", r"the pipeline's unet has a LoRA that is not fused; call pipeline.fuse_lora\(\)"),
        ("meta", "the weights of the pipeline's unet are not in memory, as after enable_sequential_cpu_offload"),
        ("quantised", "the pipeline's unet is quantised"),
    ],
)
def test_a_pipeline_whose_weights_cannot_be_saved_as_they_are_is_refused(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    unet = tiny_family.denoiser
    if fault == "lora":
        monkeypatch.setitem(unet._modules, "conv_act", _WithLora(unet.conv_act))  # setattr would not be undone
    elif fault == "meta":
        monkeypatch.setitem(unet.conv_in._parameters, "weight", nn.Parameter(torch.empty(1, device="meta")))
    else:
        monkeypatch.setattr(unet, "hf_quantizer", object(), raising=False)
    with pytest.raises(CondistillError, match=message):
        compress(tiny_family.pipeline, tmp_path / "run", prompts=PROMPTS)
    assert not (tmp_path / "run").exists()


def test_the_hash_of_a_pipeline_depends_on_weights_and_settings_and_not_on_places(
    tiny_family: Family, tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = tiny_family.pipeline
    before = given._contents(pipeline)
    pipeline.tokenizer("a star", truncation=True, max_length=3, padding="max_length")  # a call sets values
    pipeline.save_pretrained(tmp_path / "copy")
    assert given._contents(pipeline) == before  # saving sets values too
    assert given._contents(DiffusionPipeline.from_pretrained(tmp_path / "copy")) == before
    bias = pipeline.unet.conv_in.bias
    monkeypatch.setitem(pipeline.unet.conv_in._parameters, "bias", nn.Parameter(bias + 1, requires_grad=False))
    after = given._contents(pipeline)
    assert [name for name in before if before[name] != after[name]] == ["pipeline.unet"]


@pytest.mark.slow  # a whole run
def test_a_run_with_a_pipeline_resumes_with_the_same_call_and_refuses_another_pipeline(
    tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = DiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    out = tmp_path / "run"

    def call(**changes: Any) -> Path:
        arguments = {"prompts": PROMPTS, "student": 0.5, "steps": 2, "batch_size": 2, "settings": KNOBS, **changes}
        return compress(pipeline, out=out, **arguments)

    unet = pipeline.unet
    pipeline.unet = torch.compile(unet)  # the same weights, under other names
    call(until="cache")
    pipeline.unet = unet
    saved = (out / "teacher" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    call(until="distill")
    assert (out / "teacher" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns == saved
    student = DiffusionPipeline.from_pretrained(out / "pipelines" / "random_conditioning")
    teacher = DiffusionPipeline.from_pretrained(out / "teacher")
    assert torch.equal(teacher.unet.conv_in.weight, pipeline.unet.conv_in.weight)
    assert student.unet.config.block_out_channels[0] < pipeline.unet.config.block_out_channels[0]
    assert call() == out
    assert "done already" in capsys.readouterr().err
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8"))["models"]
    condistill.compress(Recipe.load(out / "recipe.yaml"), out)  # the command line can resume it too
    files = sorted(out.glob("prompts-*"))
    with pytest.raises(CondistillError, match="--update"):
        call(prompts=["a red star", "a moon", "a heart"])
    assert sorted(out.glob("prompts-*")) == files
    with torch.no_grad():
        pipeline.unet.conv_in.bias += 1
    weights = (out / "teacher" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    with pytest.raises(CondistillError, match=r"pipeline\.unet was \w+ and is now \w+"):
        call()
    assert (out / "teacher" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    call(update=True, until="cache")
    teacher = DiffusionPipeline.from_pretrained(out / "teacher")
    assert torch.equal(teacher.unet.conv_in.bias, pipeline.unet.conv_in.bias)
    assert len(list((out / "old").iterdir())) >= 1
