from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated import ToyFamily, ToyNetwork, toy_engine, toy_model
from PIL import Image

from condistill.config.evaluate import EvaluateSettings
from condistill.errors import CondistillError
from condistill.evaluate.engine import Engine, Task
from condistill.evaluate.grid import PictureGrid
from condistill.evaluate.reference_features import ReferenceTask
from condistill.evaluate.results import Job, Measuring, Results, reference_record
from condistill.evaluate.rounds import diversity_rounds
from condistill.utils.hashing import hash_file
from condistill.utils.randomness import Stream


def job_of(folder: Path, **options: Any) -> Job:
    """Return a job of a teacher and a student, whose images a network with the name of DINOv2 reads."""
    engine = toy_engine(folder, ToyFamily(), [ToyNetwork("dinov2")])
    return Job(replace(engine, **options), engine.tasks[0].rounds, engine.tasks)


def measure(job: Job, folder: Path, shown: int = 2) -> Results:
    job.engine.run()
    return Measuring(job, folder).results(lambda ranking: PictureGrid(folder / "grid", job.rounds, shown, ranking))


@pytest.mark.slow
def test_a_student_is_compared_with_its_teachers_images_and_the_teacher_not_with_itself(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    results = measure(job, tmp_path)
    assert {"dinov2_distance", "fd_dinov2", "latent_rmse"} <= results.scores["small"]["all"].keys()
    assert results.scores["small"]["all"]["latent_rmse"].value == pytest.approx(1.5)
    assert results.scores["teacher"]["all"] == {}
    record = reference_record(job)
    assert record is not None
    assert (record.source, record.images) == ("teacher", 22)
    assert not list(tmp_path.glob(".features*"))


@pytest.mark.slow
def test_the_worst_prompts_are_those_with_the_largest_mean_disagreement(tmp_path: Path) -> None:
    results = measure(job_of(tmp_path), tmp_path)
    grid = results.grid
    assert grid.ranked_by == "dinov2_distance"
    values = results.models["small"].values["dinov2_distance"]
    ranked = sorted(values.values(), reverse=True)
    assert [entry.values["small"] for entry in grid.worst] == ranked[:2]
    assert [entry.values["small"] for entry in grid.best] == ranked[:-3:-1]
    for entry in (*grid.worst, *grid.best, *grid.splits["seen"]):
        assert set(entry.images) == {"teacher", "small"}
        assert all((tmp_path / "grid" / file).is_file() for file in entry.images.values())
    assert [entry.prompt for entry in grid.splits["seen"]] == job_of(tmp_path).rounds[0].prompts[:2]


@pytest.mark.slow
def test_references_are_measured_on_the_first_prompts_and_one_that_fails_is_a_warning(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    host: Any = job.engine.host
    head = job.rounds[0].head(2)
    family: Any = ToyFamily()

    def fail(*_: Any, **__: Any) -> Any:
        raise CondistillError("it is broken")

    broken: Any = ToyFamily()
    broken.sample = fail
    models = [
        replace(toy_model(host, family, "teacher.other_seed"), stream=Stream.OTHER_EVALUATION_NOISE),
        toy_model(host, family, "near.untrained", offset=0.5),
        toy_model(host, broken, "broken.untrained"),
    ]
    sources = job.models[0].sources
    references = [Task(model, [head], sources, is_optional=True) for model in models]
    engine = Engine(host, job.engine.settings, [*job.models, *references])
    results = measure(replace(job, engine=engine, references=references), tmp_path)
    assert results.references["near.untrained"]["all"]["latent_rmse"].value == pytest.approx(0.5)
    assert results.references["teacher.other_seed"]["seen"]["latent_rmse"].value > 0.5
    assert "broken.untrained" not in results.references
    assert "warning: no reference broken.untrained: it is broken" in host.printed


@pytest.mark.slow
def test_diversity_is_measured_over_several_seeds_and_belongs_to_all(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    host: Any = job.engine.host
    settings = EvaluateSettings.model_validate({"diversity_prompts": 4, "diversity_seeds": 3})
    rounds = diversity_rounds(job.rounds[0], settings)
    further = {
        task.model.name: Task(
            replace(
                task.model,
                name=f"{task.model.name}.several_seeds",
                latents=toy_model(host, ToyFamily(), f"{task.model.name}.several_seeds").latents,
                stream=Stream.DIVERSITY_NOISE,
            ),
            rounds,
            task.sources,
        )
        for task in job.models
    }
    engine = Engine(host, job.engine.settings, [*job.models, *further.values()])
    results = measure(replace(job, engine=engine, diversity=further), tmp_path)
    for name in ("teacher", "small"):
        assert results.scores[name]["all"]["diversity"].value > 0
        assert "diversity" not in results.scores[name]["seen"]
        assert len(results.models[name].values["diversity"]) == 4


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.Generator(np.random.Philox(5))
    for number in range(7):
        Image.fromarray(rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def reference_of(photos: Path, network: ToyNetwork) -> ReferenceTask:
    settings = EvaluateSettings.model_validate({"reference": str(photos)})
    task = ReferenceTask.of(settings, [network.source()], hash_file)
    assert task is not None
    return task


@pytest.mark.slow
def test_reference_images_are_read_once_and_the_teacher_is_measured_against_them_too(
    tmp_path: Path, photos: Path
) -> None:
    network = ToyNetwork("dinov2")
    job = job_of(tmp_path, reference=reference_of(photos, network))
    results = measure(job, tmp_path)
    assert network.read == 7
    assert {"fd_dinov2"} <= results.scores["teacher"]["all"].keys()
    assert results.scores["teacher"]["seen"]["fd_dinov2"] != results.scores["small"]["seen"]["fd_dinov2"]
    record = reference_record(job)
    assert record is not None
    assert (record.source, record.images) == (str(photos), 7)
    again = measure(job_of(tmp_path, reference=reference_of(photos, network)), tmp_path)
    assert network.read == 7
    assert again.scores == results.scores
    Image.new("RGB", (2, 2)).save(photos / "0.png")
    measure(job_of(tmp_path, reference=reference_of(photos, network)), tmp_path)
    assert network.read == 14
