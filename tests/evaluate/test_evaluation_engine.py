from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated import ToyFamily, ToyNetwork, toy_engine
from forked import quick_python
from processes import run_in_two_processes

from condistill.evaluate.batches import begin_batches, finish_batches
from condistill.evaluate.engine import Engine
from condistill.evaluate.generate import Watch, generate_latents
from condistill.evaluate.grid import PictureGrid
from condistill.evaluate.results import Job, Measuring
from condistill.evaluate.rounds import Round


def arrays(engine: Engine, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the features and the latents of every model."""
    found = {}
    for task in engine.tasks:
        with engine.subject(task, folder) as subject:
            latents = [subject.latents(n, range(len(r.prompts))) for n, r in enumerate(task.rounds)]
            features = {name: np.array(array) for name, array in subject.features.items()}
            found[task.model.name] = {**features, "latents": np.concatenate(latents)}
    assert not list(folder.iterdir())
    return found


def check_equal(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> None:
    for model, of_model in one.items():
        assert of_model.keys() == other[model].keys()
        for name, array in of_model.items():
            np.testing.assert_array_equal(array, other[model][name])


def test_features_are_those_of_the_images_in_the_order_of_the_splits(tmp_path: Path) -> None:
    family, network = ToyFamily(), ToyNetwork()
    engine = toy_engine(tmp_path, family, [network])
    engine.run()
    of_model = arrays(engine, tmp_path / "mapped")["small"]
    order = [(0, r) for r in range(8)] + [(1, r) for r in range(8)] + [(0, r) for r in range(8, 11)]
    order += [(1, r) for r in range(8, 11)]
    rows = [11 * number + row for number, row in order]
    first = (of_model["latents"][rows, 0, 0, 0] * 10 % 256).astype(np.uint8)
    np.testing.assert_array_equal(of_model["toy"][:, 0], first)
    assert family.sampled == family.decoded == network.read == 2 * 2 * 11


@pytest.mark.slow
def test_nothing_is_generated_or_read_twice_and_a_further_network_reads_alone(tmp_path: Path) -> None:
    family, first, second = ToyFamily(), ToyNetwork("first"), ToyNetwork("second")
    toy_engine(tmp_path, family, [first]).run()
    family.decoded = family.sampled = first.read = 0
    toy_engine(tmp_path, family, [first]).run()
    assert family.decoded == family.sampled == first.read == 0
    engine = toy_engine(tmp_path, family, [first, second])
    engine.run()
    assert (family.sampled, first.read, second.read, family.decoded) == (0, 0, 44, 44)
    assert set(arrays(engine, tmp_path / "mapped")["small"]) == {"first", "second", "latents"}


@pytest.mark.slow
def test_an_image_is_decoded_once_for_all_networks(tmp_path: Path) -> None:
    family, networks = ToyFamily(), [ToyNetwork("first"), ToyNetwork("second")]
    toy_engine(tmp_path, family, networks).run()
    assert family.decoded == 44
    assert [network.read for network in networks] == [44, 44]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_results_do_not_depend_on_the_size_of_files(tmp_path: Path, batch_size: int) -> None:
    one, other = (
        toy_engine(tmp_path / name, ToyFamily(), [ToyNetwork()], batch_size=size)
        for name, size in (("one", 4), ("other", batch_size))
    )
    one.run()
    other.run()
    check_equal(arrays(one, tmp_path / "mapped"), arrays(other, tmp_path / "mapped"))


class KilledError(BaseException):
    """Ends the work as Ctrl-C does."""


@pytest.mark.slow
def test_work_that_is_killed_at_random_points_resumes_to_the_same_files_and_loses_one_batch_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = toy_engine(tmp_path / "whole", ToyFamily(), [ToyNetwork()])
    whole.run()
    family, network = ToyFamily(), ToyNetwork()
    rng = np.random.Generator(np.random.Philox(3))
    replaced = os.replace
    remaining = 0

    def replace_or_die(*args: Any, **options: Any) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining < 0:
            raise KilledError
        replaced(*args, **options)

    monkeypatch.setattr("pathlib.os.replace", replace_or_die)
    for _ in range(5):
        remaining = int(rng.integers(1, 9))
        with pytest.raises(KilledError):
            toy_engine(tmp_path / "killed", family, [network]).run()
    remaining = 10**6
    killed = toy_engine(tmp_path / "killed", family, [network])
    killed.run()
    check_equal(arrays(whole, tmp_path / "mapped"), arrays(killed, tmp_path / "mapped"))
    assert family.sampled <= 44 + 5 * 4
    assert network.read <= 44 + 5 * 4


@pytest.mark.slow
def test_the_files_of_several_processes_are_those_of_one(tmp_path: Path) -> None:
    alone, shared = (toy_engine(tmp_path / name, ToyFamily()) for name in ("alone", "shared"))
    alone.run()

    def refuse(_count: int, _model: str) -> None:
        raise AssertionError("two processes have the same file")

    for task in shared.tasks:
        begin_batches(task.model.latents, 4)
        for rank in range(4):
            generate_latents(task.model, task.rounds, batch_size=4, part=(rank, 4), watch=Watch(on_found=refuse))
        finish_batches(task.model.latents, task.rounds)
    check_equal(arrays(alone, tmp_path / "mapped"), arrays(shared, tmp_path / "mapped"))


@pytest.mark.slow
def test_a_damaged_file_of_features_is_made_again_and_no_other(tmp_path: Path) -> None:
    family, network = ToyFamily(), ToyNetwork()
    engine = toy_engine(tmp_path, family, [network])
    engine.run()
    before = arrays(engine, tmp_path / "mapped")
    file = tmp_path / "evaluation" / "features" / "small" / "toy" / "seed-7" / "batch-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    network.read = family.decoded = 0
    again = toy_engine(tmp_path, family, [network])
    again.run()
    assert network.read == family.decoded == 4
    check_equal(arrays(again, tmp_path / "mapped"), before)
    assert any(f"{file} is damaged" in line for line in again.host.printed)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_network_of_other_weights_reads_again(tmp_path: Path) -> None:
    family, network = ToyFamily(), ToyNetwork()
    toy_engine(tmp_path, family, [network]).run()

    class Other(ToyNetwork):
        def source(self) -> Any:
            return replace(super().source(), inputs=lambda: {"network": "other weights"})

    other = Other()
    toy_engine(tmp_path, family, [other]).run()
    assert other.read == 44


@pytest.mark.slow
def test_rounds_of_one_split_are_mapped_too(tmp_path: Path) -> None:
    rounds = [Round(1, ["a", "b", "c"], {"all": slice(0, 3)})]
    engine = toy_engine(tmp_path, ToyFamily(), [ToyNetwork()], rounds=rounds)
    engine.run()
    assert arrays(engine, tmp_path / "mapped")["teacher"]["toy"].shape == (3, 3)


SHARED = """
import json, sys
from pathlib import Path
sys.path.insert(0, {helpers!r})
from accelerate import Accelerator
from evaluated import ToyFamily, ToyNetwork, toy_engine
from processes import run_in_two_processes
from condistill.evaluate.grid import PictureGrid
from condistill.evaluate.results import Job, Measuring

family, folder = ToyFamily(), Path({folder!r})
engine = toy_engine(folder, family, [ToyNetwork("dinov2")])
engine.host.accelerator = Accelerator(cpu=True)
engine.run()
process = engine.host.accelerator.process_index
(folder / f"decoded-{{process}}.txt").write_text(str(family.decoded))
if process == 0:
    rounds = engine.tasks[0].rounds
    grid = lambda ranking: PictureGrid(folder / "grid", rounds, 2, ranking)
    results = Measuring(Job(engine, rounds, engine.tasks), folder).results(grid)
    scores = {{name: {{split: {{metric: score.model_dump() for metric, score in of_split.items()}}
              for split, of_split in of_model.items()}} for name, of_model in results.scores.items()}}
    (folder / "scores.json").write_text(json.dumps(scores))
"""


@pytest.mark.slow  # four processes
def test_four_processes_have_the_scores_of_one_and_share_the_work(tmp_path: Path) -> None:
    alone = toy_engine(tmp_path / "alone", ToyFamily(), [ToyNetwork("dinov2")])
    alone.run()
    expected = Measuring(Job(alone, alone.tasks[0].rounds, alone.tasks), tmp_path / "alone").results(
        lambda ranking: PictureGrid(tmp_path / "alone" / "grid", alone.tasks[0].rounds, 2, ranking)
    )
    script = SHARED.format(helpers=str(Path(__file__).parents[1] / "helpers"), folder=str(tmp_path))
    done = run_in_two_processes(tmp_path, script, processes=4, python=quick_python())
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert found["small"]["all"]["fd_dinov2"]
    for name, of_model in expected.scores.items():
        for split, of_split in of_model.items():
            assert found[name][split] == {metric: score.model_dump() for metric, score in of_split.items()}
    decoded = [int((tmp_path / f"decoded-{rank}.txt").read_text(encoding="utf-8")) for rank in range(4)]
    assert sum(decoded) == 2 * 2 * 11
    assert min(decoded) > 0
