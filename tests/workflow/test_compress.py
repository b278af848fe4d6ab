from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from runs import VARIANTS, Run, flip_a_byte, times

from condistill.errors import CondistillError

compress_module = importlib.import_module("condistill.workflow.compress")
compress = compress_module.compress
cache_stage = importlib.import_module("condistill.cache.stage")
context = importlib.import_module("condistill.run.context")
pytestmark = pytest.mark.slow  # whole runs


def test_a_run_writes_a_report_and_metrics_of_every_model_and_split(finished: Run) -> None:
    metrics = json.loads((finished.out / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["models"]) == {"teacher", *VARIANTS}
    for name in VARIANTS:
        assert all(
            metrics["models"][name]["scores"][split]["latent_rmse"]["value"] > 0 for split in ("seen", "unseen", "all")
        )
        compute = metrics["models"][name]["compute"]
        assert compute["teacher_forwards"] == compute["student_forwards"] > 0
        assert compute["train_sec"] > 0
        assert metrics["models"][name]["size"]["parameters"] < metrics["models"]["teacher"]["size"]["parameters"]
    page = (finished.out / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in VARIANTS)
    assert "5 of them never cached; 11 to cache" in finished.printed


def test_lines_are_not_wrapped_without_a_terminal(finished: Run) -> None:
    assert f"pipeline: {finished.out / 'pipelines' / 'random_conditioning'}\n" in finished.printed


@pytest.mark.parametrize("name", VARIANTS)
def test_a_student_is_a_pipeline_that_plain_diffusers_loads_and_samples_with(finished: Run, name: str) -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(finished.out / "pipelines" / name, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    assert pipeline("a small star", num_inference_steps=1, generator=generator).images[0].size == (64, 64)
    assert tuple(pipeline.unet.config.block_out_channels) == (8, 16, 16)


def test_a_finished_run_is_not_repeated(run: Run, no_teacher: None) -> None:
    stages = ("prompts", "cache", "distill", "evaluation")
    before = times(run.out)
    run.again()
    assert f"plain: done already, {run.out / 'pipelines' / 'plain'}\n" in run.printed
    assert {f: t for f, t in times(run.out).items() if f.relative_to(run.out).parts[0] in stages} == {
        f: t for f, t in before.items() if f.relative_to(run.out).parts[0] in stages
    }
    assert not list(run.out.rglob("*.partial"))


def test_a_changed_evaluation_redoes_the_evaluation_only(run: Run) -> None:
    before = {part: times(run.out / part) for part in ("prompts", "cache", "distill")}
    weights = {name: times(run.out / "pipelines" / name / "unet") for name in VARIANTS}
    run.again("evaluate.prompts_per_split=3", update=True)
    assert {part: times(run.out / part) for part in before} == before
    assert {name: times(run.out / "pipelines" / name / "unet") for name in VARIANTS} == weights
    assert json.loads((run.out / "metrics.json").read_text(encoding="utf-8"))["images_per_split"]["unseen"] == 3


def test_another_recipe_is_refused_without_update(run: Run) -> None:
    before = times(run.out)
    with pytest.raises(
        CondistillError, match=r"(?s)results of other inputs:\n  distill.steps was 6 and is now 7\n--update would move "
    ):
        run.again("distill.steps=7")
    assert times(run.out) == before


def test_a_deleted_pipeline_is_made_again_from_the_last_checkpoint(run: Run) -> None:
    weights = run.out / "pipelines" / "plain" / "unet" / "diffusion_pytorch_model.safetensors"
    before, history = weights.read_bytes(), times(run.out / "cache")
    shutil.rmtree(run.out / "pipelines" / "plain")
    run.again(until="distill")
    assert weights.read_bytes() == before
    assert times(run.out / "cache") == history
    assert "random_conditioning: done already" in run.printed


def test_a_lost_shard_is_generated_again_and_the_others_are_kept(run: Run) -> None:
    lost, *others = sorted((run.out / "cache").glob("shard-*.arrow"))
    before, kept = lost.read_bytes(), times(run.out / "cache")
    lost.unlink()
    run.again(until="cache")
    assert lost.read_bytes() == before
    assert all(times(run.out / "cache")[other] == kept[other] for other in others)


def test_only_the_damaged_shard_is_named_and_generated_again(run: Run) -> None:
    good, damaged, _ = sorted((run.out / "cache").glob("shard-*.arrow"))
    before, kept = damaged.read_bytes(), times(run.out / "cache")
    flip_a_byte(damaged)
    run.again(until="cache")
    assert f"{damaged} is damaged or was edited; it is made again\n" in run.printed
    assert damaged.read_bytes() == before
    assert times(run.out / "cache")[good] == kept[good]


def fresh(tmp_path: Path, teacher: Path) -> Run:
    return Run(tmp_path, teacher)


def test_unseen_words_that_no_prompt_has_are_refused(tmp_path: Path, tiny_pipeline_dir: Path, no_teacher: None) -> None:
    with pytest.raises(CondistillError, match=r"no prompt of the pool has 'dog' or 'cat' of prompts.unseen_words"):
        fresh(tmp_path, tiny_pipeline_dir).again("prompts.unseen_words=[dog, cat]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{source_weights: {prompts.txt: 1.0, same.txt: 1.0}}",
            "'same.txt' has no prompts of its own: .* set its weight to 0",
        ),
        ("{candidates: 2, disagreement: 1.0, clusters: 17}", "clusters is 17 and the pool has 16 prompts"),
    ],
)
def test_a_prompt_choice_that_does_not_fit_the_pool_is_refused_before_the_teacher_is_loaded(
    tmp_path: Path, tiny_pipeline_dir: Path, no_teacher: None, text: str, message: str
) -> None:
    (tmp_path / "same.txt").write_text("two stars\n")
    changes = [f"prompts.unseen_files=[{tmp_path}/same.txt]"] if "same" in text else []
    with pytest.raises(CondistillError, match=message):
        fresh(tmp_path, tiny_pipeline_dir).again(
            *changes, f"variants.random_conditioning.distill.conditioning.prompt_choice={text}"
        )


def test_an_unseen_word_that_no_prompt_has_is_a_warning(
    tmp_path: Path, tiny_pipeline_dir: Path, no_teacher: None
) -> None:
    run = fresh(tmp_path, tiny_pipeline_dir)
    run.again("prompts.unseen_words=[star, cat]", until="prompts")
    assert "warning: no prompt of the pool has 'cat'" in run.printed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prompts.files=[gone.txt]", "there is no prompt file .*gone.txt"),
        ("teacher.pipeline=./gone", "teacher.pipeline .*gone does not exist"),
        ("cache.size=12", "cache.size is 12 and only 11 prompts may be cached"),
        ("distill.mixed_precision=fp16", "distill.mixed_precision 'fp16' cannot be used here"),
        (
            "distill.logging.tracker=wandb",
            "distill.logging.tracker is 'wandb', which is not installed: pip install wandb",
        ),
    ],
)
def test_inputs_that_cannot_be_used_are_refused_before_the_teacher_is_loaded(
    tmp_path: Path, tiny_pipeline_dir: Path, no_teacher: None, override: str, message: str
) -> None:
    if "fp16" in override and torch.cuda.is_available():
        pytest.skip("fp16 can be used on this machine")
    if "wandb" in override and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed on this machine")
    with pytest.raises(CondistillError, match=message):
        fresh(tmp_path, tiny_pipeline_dir).again(override)


def test_a_student_that_cannot_be_made_is_refused_before_training_even_if_the_cache_exists(run: Run) -> None:
    before = times(run.out)
    student = (
        "{distill: {guidance_distillation: 3.0, "
        "few_steps: {method: consistency, num_inference_steps: 2, solver_steps: 30}}}"
    )
    with pytest.raises(CondistillError, match=r"the student 'late' cannot be made: .*solver_steps is 30"):
        run.again(f"variants.late={student}", update=True)
    assert {file: time for file, time in times(run.out).items() if file.name != "recipe.yaml"} == {
        file: time for file, time in before.items() if file.name != "recipe.yaml"
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("variants.plain.student={width: [4, 8]}", "the student 'plain' cannot be made: "),
        (
            "variants.plain.student={width: null, keep: {down_block.0: [0]}}",
            "the student 'plain' cannot be made: student.keep names 'down_block.0', .* did you mean 'down_blocks.0'",
        ),
        (
            "variants.plain.distill={loss: {feature_layer_weights: {mid_blok: 2.0}}}",
            "the student 'plain' cannot be made: .*'mid_blok', and no such layer is compared; did you mean 'mid_block'",
        ),
        (
            "variants.plain.distill={few_steps: {method: consistency, num_inference_steps: 2}}",
            "the student 'plain' cannot be made: few_steps.method 'consistency' learns the ends of guided paths",
        ),
        (
            "variants.plain.distill={loss: {extra: {taks: 1.0}}}",
            "the student 'plain' cannot be made: distill.loss.extra names 'taks', and no such loss term is registered",
        ),
        ("evaluate.classifier=miniature", "evaluate.classifier is 'miniature', and "),
    ],
)
def test_errors_that_a_late_stage_would_raise_are_raised_before_anything_is_generated(
    tmp_path: Path, tiny_pipeline_dir: Path, override: str, message: str
) -> None:
    run = fresh(tmp_path, tiny_pipeline_dir)
    with pytest.raises(CondistillError, match=message):
        run.again(override)
    assert not list(run.out.rglob("shard-*"))


def test_a_cache_that_does_not_fit_on_the_disk_is_refused_before_anything_is_generated(
    tmp_path: Path, tiny_pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache_stage.shutil, "disk_usage", lambda _: usage(10**6, 10**6, 100))
    run = fresh(tmp_path, tiny_pipeline_dir)
    with pytest.raises(CondistillError, match=r"the cache needs 5\.50 KiB more in .*cache and 100 B are free"):
        run.again()
    assert not list(run.out.rglob("shard-*"))


def test_only_missing_latents_need_space_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache_stage.shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    check: Callable[..., None] = cache_stage.check_space
    check(tmp_path, 5, (1, 10, 10), "float16")
    with pytest.raises(CondistillError):
        check(tmp_path, 6, (1, 10, 10), "float16")
    (tmp_path / "shard-00000.arrow").write_bytes(b"x" * 200)
    check(tmp_path, 6, (1, 10, 10), "float16")


def test_brackets_in_a_path_are_shown(tmp_path: Path, tiny_pipeline_dir: Path) -> None:
    run = fresh(tmp_path, tiny_pipeline_dir)
    run.out = tmp_path / "run[1]"
    run.again(until="prompts")
    assert f"condistill {run.out}\n" in run.printed


ROLLING = ("cache.size=0", "distill.path={start: noise, num_inference_steps: 3}", "variants={rolling: {}}")


def test_paths_from_pure_noise_need_no_cache(run: Run) -> None:
    run.out = run.out.with_name("rolling")
    run.again(*ROLLING)
    assert "0 to cache" in run.printed
    assert not list((run.out / "cache").glob("*.arrow"))
    models = json.loads((run.out / "metrics.json").read_text(encoding="utf-8"))["models"]
    assert models["rolling"]["compute"]["cache_forwards"] == 0
    assert (run.out / "report.html").is_file()
    before = times(run.out / "distill")
    run.again(*ROLLING)
    assert times(run.out / "distill") == before


FAST = (
    "distill.guidance_distillation=3.0",
    "distill.few_steps={num_inference_steps: 2}",
    "distill.conditioning.empty_prompt_probability=0.0",
    """variants={
        fast: {},
        full: {distill: {few_steps: null}},
        faster: {
            teacher: fast,
            student: {width: 1.0},
            distill: {guidance_distillation: null, few_steps: {num_inference_steps: 1}},
        },
    }""",
)


def test_a_few_step_student_records_its_sampling_and_is_evaluated_with_it(run: Run) -> None:
    run.out = run.out.with_name("fast")
    run.again(*FAST)
    models = json.loads((run.out / "metrics.json").read_text(encoding="utf-8"))["models"]
    assert models["teacher"]["sampling"] == {"num_inference_steps": 2, "guidance_scale": 3.0, "denoiser_evaluations": 4}
    assert models["fast"]["sampling"] == {"num_inference_steps": 2, "guidance_scale": 3.0, "denoiser_evaluations": 2}
    assert models["fast"]["compute"]["teacher_forwards"] == 4 * models["fast"]["compute"]["student_forwards"]
    assert models["full"]["compute"]["teacher_forwards"] == 2 * models["full"]["compute"]["student_forwards"]
    folder = run.out / "pipelines" / "fast"
    assert json.loads((folder / "sampling.json").read_text(encoding="utf-8"))["num_inference_steps"] == 2
    assert "num_inference_steps=2" in (folder / "README.md").read_text(encoding="utf-8")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    calls: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    pipeline("a ball", num_inference_steps=2, guidance_scale=7.5, output_type="latent")
    assert calls == [1, 1]  # guidance is distilled: a batch of one for any scale
    assert models["faster"]["size"] == models["fast"]["size"]
    assert models["faster"]["sampling"] == {"num_inference_steps": 1, "guidance_scale": 3.0, "denoiser_evaluations": 1}
    alone = {key: models["fast"]["compute"][key] for key in ("teacher_forwards", "student_forwards", "cache_forwards")}
    whole = models["faster"]["compute"]
    assert whole["student_forwards"] == 2 * alone["student_forwards"]  # its own training, and that of its teacher
    assert whole["teacher_forwards"] == alone["teacher_forwards"] + 2 * alone["student_forwards"]
    assert whole["cache_forwards"] == alone["cache_forwards"]
    assert whole["train_sec"] > models["fast"]["compute"]["train_sec"]
    assert "the student 'fast' of this run" in (run.out / "pipelines" / "faster" / "README.md").read_text("utf-8")


SCALES = (
    "distill.guidance_distillation=[2, 8]",
    "distill.optimizer.learning_rate=0.01",
    "distill.conditioning.empty_prompt_probability=0.0",
    """variants={
        embedded: {},
        fixed: {distill: {guidance_distillation: 3.0}},
        quick: {
            teacher: embedded,
            student: {width: 1.0},
            distill: {few_steps: {method: consistency, num_inference_steps: 2, solver_steps: 10}},
        },
        quick_fixed: {
            teacher: fixed,
            student: {width: 1.0},
            distill: {
                guidance_distillation: null,
                few_steps: {method: consistency, num_inference_steps: 1, solver_steps: 10},
            },
        },
    }""",
    "cache.guidance_scale=9.0",
)


def test_guidance_distilled_students_sample_with_one_evaluation_per_step(run: Run) -> None:
    run.out = run.out.with_name("scales")
    run.again(*SCALES)
    models = json.loads((run.out / "metrics.json").read_text(encoding="utf-8"))["models"]
    calls = {name: model["sampling"]["denoiser_evaluations"] for name, model in models.items()}
    assert calls == {"teacher": 4, "embedded": 2, "fixed": 2, "quick": 2, "quick_fixed": 1}
    costs = {name: models[name]["compute"] for name in ("embedded", "fixed", "quick", "quick_fixed")}
    assert {name: (cost["teacher_forwards"], cost["student_forwards"]) for name, cost in costs.items()} == {
        "embedded": (24, 12),
        "fixed": (24, 12),
        "quick": (36, 36),  # with the training of its teacher
        "quick_fixed": (36, 36),
    }
    for name, has_scale_input in (("embedded", True), ("fixed", False), ("quick", True), ("quick_fixed", False)):
        folder = run.out / "pipelines" / name
        sampling = json.loads((folder / "sampling.json").read_text(encoding="utf-8"))
        assert sampling["guidance_scale"] == (8.0 if has_scale_input else 3.0)
        pipeline = DiffusionPipeline.from_pretrained(folder)
        assert (type(pipeline.scheduler).__name__ == "LCMScheduler") == name.startswith("quick")
        sizes: list[int] = []
        pipeline.unet.register_forward_pre_hook(lambda _, args, sizes=sizes: sizes.append(len(args[0])))

        def sample(
            scale: float, pipeline: Any = pipeline, steps: int = sampling["num_inference_steps"]
        ) -> torch.Tensor:
            seed = torch.Generator().manual_seed(0)
            how = {"num_inference_steps": steps, "guidance_scale": scale, "generator": seed, "output_type": "latent"}
            latents: torch.Tensor = pipeline("a ball", **how).images
            return latents

        two, eight = sample(2.0), sample(8.0)
        assert two.isfinite().all()
        assert torch.equal(two, eight) != has_scale_input
        assert sizes == [1] * 2 * sampling["num_inference_steps"]
    assert "distilled for scales from 2 to 8" in (run.out / "pipelines" / "embedded" / "README.md").read_text("utf-8")
