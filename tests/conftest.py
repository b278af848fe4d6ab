"""Toys shared by all tests: a random pipeline in miniature, its cache and its pool of prompts."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import shortcuts

if TYPE_CHECKING:  # pytest's own process reads this file as well, and has no use for what is heavy
    from condistill.cache.latents import LatentCache
    from condistill.config.recipe import Recipe
    from condistill.config.sections import TeacherSettings
    from condistill.prompts.pool import PromptPool
    from condistill.teachers.family import Family
    from condistill.teachers.skeleton import Skeleton


pytest_plugins = ["unets"]
LONGEST = ("test_kills", "test_readme")
"""Files whose slow tests take half a minute each."""

# Tests run on every core at once, and so do the commands that they start: threads would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Collect garbage seldom: what is imported stays, and models are freed without the collector."""
    shortcuts.freeze_imports(clean=False)  # to look for garbage in all modules takes a second
    gc.enable()
    gc.set_threshold(100_000, 50, 100)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Take shortcuts where a test does not look."""
    shortcuts.freeze_imports()
    shortcuts.time_images_once()
    shortcuts.plot_each_history_once(own="report" in item.path.parts)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests first, the longest before the others: one at the end would let a worker wait for the other."""
    items.sort(key=lambda item: ("slow" not in item.keywords, item.path.stem not in LONGEST))


def pytest_configure(config: pytest.Config) -> None:
    """Collect no garbage while tests are collected, which takes half a second a pass, and hide GPUs from CPU tests."""
    gc.disable()
    if "not gpu" in config.option.markexpr:  # else accelerate would put on a GPU what another test has on the CPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Toys are so small that threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_pipeline_dir(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An epsilon-predicting pipeline as `save_pretrained` leaves it, in safetensors. Read only."""
    from tiny import build_sd

    path = tmp_path_factory.mktemp("tiny") / "pipeline"
    build_sd().save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="session")
def tiny_v_pipeline_dir(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights, said to predict the velocity. Read only."""
    from diffusers import StableDiffusionPipeline

    from condistill.miniature import build

    path = tmp_path_factory.mktemp("tiny_v") / "pipeline"
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, use_safetensors=True)
    pipeline.scheduler = build.build_scheduler("v_prediction")
    pipeline.save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="session")
def tiny_settings(tiny_pipeline_dir: Path) -> TeacherSettings:
    from condistill.config.sections import TeacherSettings

    return TeacherSettings(pipeline=str(tiny_pipeline_dir))


@pytest.fixture(scope="session")
def tiny_family(tiny_settings: TeacherSettings) -> Family:
    """The epsilon-predicting teacher, loaded. Leave it as it is."""
    from condistill.teachers.load import load_teacher

    return load_teacher(tiny_settings)


@pytest.fixture(scope="session")
def tiny_v_family(tiny_v_pipeline_dir: Path) -> Family:
    """The velocity-predicting teacher, loaded. Leave it as it is."""
    from condistill.config.sections import TeacherSettings
    from condistill.teachers.load import load_teacher

    return load_teacher(TeacherSettings(pipeline=str(tiny_v_pipeline_dir)))


@pytest.fixture(scope="session")
def tiny_prompts() -> list[str]:
    """20 captions without unseen shapes."""
    from condistill.miniature.world import UNSEEN_SHAPES, all_captions

    seen = [caption for caption in all_captions() if not set(caption.split()) & set(UNSEEN_SHAPES)]
    return seen[:: len(seen) // 20][:20]


@pytest.fixture(scope="session")
def tiny_cache(
    tiny_family: Family,
    tiny_prompts: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> LatentCache:
    """20 latents in shards of 8, drawn in 2 steps. Read only."""
    from condistill.cache.fill import fill_cache, finish_cache
    from condistill.config.sections import CacheSettings

    directory = tmp_path_factory.mktemp("tiny_cache")
    settings = CacheSettings(
        size=20, num_inference_steps=2, guidance_scale=3.0, batch_size=8, shard_size=8, dtype="float16"
    )
    fill_cache(directory, tiny_family, tiny_prompts, settings, seed=0)
    return finish_cache(directory, tiny_family, settings, seed=0, teacher="tiny")


@pytest.fixture(scope="session")
def tiny_pool(tiny_prompts: list[str], tmp_path_factory: pytest.TempPathFactory) -> PromptPool:
    """The cached prompts and 100 captions more, unseen shapes among them. Read only."""
    from condistill.miniature.world import all_captions
    from condistill.prompts.pool import PromptPool

    captions = all_captions()
    return PromptPool.from_prompts(
        [*tiny_prompts, *captions[:: len(captions) // 100]], tmp_path_factory.mktemp("tiny_pool") / "prompts.arrow"
    )


@pytest.fixture(scope="session")
def tiny_skeleton(tiny_pipeline_dir: Path) -> Skeleton:
    """The tiny teacher, of shapes only."""
    from condistill.config.sections import TeacherSettings
    from condistill.teachers.skeleton import teacher_skeleton

    return teacher_skeleton(TeacherSettings(pipeline=str(tiny_pipeline_dir)))


@pytest.fixture
def recipe_of() -> Callable[..., Recipe]:
    """A recipe for a pipeline; its prompts are nowhere."""
    from condistill.config.recipe import Recipe

    def make(pipeline: Path | str, student: dict[str, Any], **sections: Any) -> Recipe:
        whole = {"teacher": {"pipeline": str(pipeline)}, "prompts": {"files": ["gone.txt"]}, "student": student}
        return Recipe.model_validate({**whole, **sections})

    return make


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of all registries: what a test registers is gone after it."""
    from condistill.config.conditioning import SCHEDULES
    from condistill.distill import schedules
    from condistill.distill.loss_terms import LOSS_TERMS
    from condistill.evaluate.metrics import METRICS
    from condistill.teachers.registry import FAMILIES
    from condistill.workflow import compress

    for registry in (SCHEDULES, LOSS_TERMS, METRICS, FAMILIES):
        monkeypatch.setattr(registry, "_entries", dict(registry))
    monkeypatch.setattr(schedules, "_PROBABILITIES", dict(schedules._PROBABILITIES))
    monkeypatch.setattr(compress, "STAGES", list(compress.STAGES))
