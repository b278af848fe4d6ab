from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from training import (
    Make,
    assert_same_state,
    settings_of,
    state,
    stop_after,
)

from condistill.cache.latents import LatentCache
from condistill.distill.checkpoints import list_checkpoints
from condistill.distill.history import HISTORY_NAME, read_history
from condistill.students.derive import Student
from condistill.students.guidance import with_guidance
from condistill.teachers.family import Family

SCHEDULED = {
    "optimizer": {"lr_scheduler": "cosine", "warmup_steps": 2, "ema_decay": 0.9},
    "logging": {"log_every": 3},
}


@pytest.mark.parametrize(
    "method",
    [
        {"path": {"start": "noise", "num_inference_steps": 3}},
        {"few_steps": {"method": "consistency", "num_inference_steps": 2, "solver_steps": 10}},
    ],
)
@pytest.mark.slow
def test_the_guidance_embedding_is_trained_averaged_and_resumed(
    make: Make, tiny_family: Family, narrow: Student, tmp_path: Path, method: dict[str, Any]
) -> None:
    changes = {
        "guidance_distillation": [2, 8],
        "optimizer": {"ema_decay": 0.5},
        "loss": {"feature_weight": 0.0},
        "steps": 2,
        "logging": {"checkpoint_every": 1},
        **method,
    }

    def with_embedding() -> Student:
        return with_guidance(copy.deepcopy(narrow), tiny_family.denoiser, settings_of(**changes))

    whole = make(tmp_path / "whole", student=with_embedding(), **changes).run()
    with pytest.raises(RuntimeError):
        make(tmp_path / "cut", student=with_embedding(), **changes).run(stop_after(1))
    make(tmp_path / "cut", student=with_embedding(), **changes).run()
    assert_same_state(tmp_path / "whole", tmp_path / "cut")
    parts, name = state(tmp_path / "whole"), "time_embedding.cond_proj.weight"
    assert parts["trained"][f"denoiser.{name}"].any()
    assert not torch.equal(parts["ema"][name], parts["trained"][f"denoiser.{name}"])
    assert torch.equal(whole.state_dict()[name], parts["ema"][name])


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make: Make, tmp_path: Path) -> None:
    scheduled = {**SCHEDULED, "steps": 4}
    whole = make(tmp_path / "whole", **scheduled).run()
    for stop in (1, 3):  # before the first checkpoint, and between two
        with pytest.raises(RuntimeError):
            make(tmp_path / "cut", **scheduled).run(stop_after(stop))
    resumed = make(tmp_path / "cut", **scheduled).run()
    assert_same_state(tmp_path / "whole", tmp_path / "cut")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert [record.step for record in read_history(tmp_path / "cut" / HISTORY_NAME)] == [3, 4]


PATHS: list[Any] = [
    {"start": "noise", "follow": "moving", "share": 0.5, "num_inference_steps": 3, "guidance_scale": 2.0},
    {"start": "cache", "steps": 3, "follow": "student", "buffer": 2},
]


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_a_resumed_run_has_the_same_states_on_paths(make: Make, tmp_path: Path, path: dict[str, Any]) -> None:
    scheduled = {**SCHEDULED, "steps": 4, "path": path}
    make(tmp_path / "whole", **scheduled).run()
    with pytest.raises(RuntimeError):
        make(tmp_path / "cut", **scheduled).run(stop_after(3))
    make(tmp_path / "cut", **scheduled).run()
    assert "paths" in state(tmp_path / "cut")
    assert_same_state(tmp_path / "whole", tmp_path / "cut")


LEARNING: dict[str, Any] = {
    "prompt_choice": {
        "candidates": 3, "novelty": 0.5, "disagreement": 2.0, "clusters": 4, "distance": 0.5, "interpolate": 0.5
    },
    "empty_prompt_probability": 0.0,
    "probability": {"lambda": 0.5},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("path", [None, {"start": "noise", "share": 0.5}])
def test_a_resumed_run_has_the_same_running_losses_of_clusters(
    make: Make, tmp_path: Path, path: dict[str, Any] | None
) -> None:
    learning = {**SCHEDULED, "conditioning": LEARNING, "steps": 4, "path": path}
    make(tmp_path / "whole", **learning).run()
    with pytest.raises(RuntimeError):
        make(tmp_path / "cut", **learning).run(stop_after(3))
    make(tmp_path / "cut", **learning).run()
    assert_same_state(tmp_path / "whole", tmp_path / "cut")
    learned = state(tmp_path / "cut")["prompt_choice"]
    assert (learned["loss_sums"] != 1).any()
    assert learned["level_weights"].sum() > 0


@pytest.mark.slow
def test_a_prompt_choice_with_default_settings_changes_no_training(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "paper", steps=2, optimizer={"ema_decay": 0.9}).run()
    make(tmp_path / "choice", steps=2, optimizer={"ema_decay": 0.9}, conditioning={"prompt_choice": {}}).run()
    assert_same_state(tmp_path / "paper", tmp_path / "choice")


@pytest.mark.slow
@pytest.mark.parametrize("share", [None, 0.5])
def test_clusters_learn_from_isolated_re_paired_samples_only(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float | None
) -> None:
    path = {"start": "cache", "share": share} if share else None
    trainer = make(
        tmp_path, steps=3, batch_size=8, path=path, conditioning={**LEARNING, "empty_prompt_probability": 0.3}
    )
    choice, noted, placed = trainer.prompt_choice, [], []
    assert choice is not None
    note, compare = choice.note, trainer.objective.compare
    monkeypatch.setattr(choice, "note", lambda *args: (noted.append(args[-1]), note(*args)))
    monkeypatch.setattr(trainer.objective, "compare", lambda *args: (placed.append(args[1]), compare(*args))[1])
    trainer.run()
    for counted, sample in zip(noted, placed, strict=True):
        isolated = torch.tensor([i % 2 == 0 for i in range(8)]) if share else torch.ones(8, dtype=torch.bool)
        empty = torch.tensor([prompt == "" for prompt in sample.prompts])
        not_blended = sample.blend.weight == 0  # a blend belongs to no cluster
        assert torch.equal(counted, isolated & sample.replaced & ~empty & not_blended)
    assert torch.cat(noted).any()
    assert not torch.cat(noted).all()


def test_paths_from_pure_noise_start_with_a_chosen_prompt(
    make: Make, tmp_path: Path, tiny_cache: LatentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditioning = {"prompt_choice": {"candidates": 3, "novelty": 1.0}, "empty_prompt_probability": 0.0}
    trainer = make(tmp_path, steps=1, conditioning=conditioning, path={"start": "noise", "share": 0.5})
    (batch,) = trainer.source(0)
    assert trainer.prompt_choice is not None
    chosen = trainer.prompt_choice.choose(batch).random_prompts
    assert chosen != batch.random_prompts
    trainer.run()
    assert trainer.paths is not None
    assert [trainer.paths.prompts[0][i] for i in (1, 3)] == [chosen[i] for i in (1, 3)]


@pytest.mark.slow
def test_paths_of_one_state_change_no_training(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "paper", steps=2, optimizer={"ema_decay": 0.9}).run()
    make(tmp_path / "path", steps=2, optimizer={"ema_decay": 0.9}, path={"start": "cache", "steps": 1}).run()
    paper, path = state(tmp_path / "paper"), state(tmp_path / "path")
    del path["paths"]
    for part, group in paper.items():
        for name, tensor in group.items():
            assert torch.equal(tensor, path[part][name]), f"{part}/{name}"


@pytest.mark.slow
def test_paths_do_not_depend_on_how_a_batch_is_cut(make: Make, tmp_path: Path) -> None:
    path = {"start": "noise", "num_inference_steps": 3, "guidance_scale": 2.0, "share": 0.5}
    whole = make(tmp_path / "whole", path=path, steps=2, logging={"log_every": 2})
    cut = make(tmp_path / "cut", path=path, steps=2, logging={"log_every": 2}, micro_batch_size=2)
    whole.run()
    cut.run()
    assert whole.paths is not None
    assert cut.paths is not None
    assert cut.paths.prompts == whole.paths.prompts
    torch.testing.assert_close(cut.paths.x_t, whole.paths.x_t, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_finished_training_takes_no_further_step(make: Make, tmp_path: Path) -> None:
    first = make(tmp_path, steps=2).run()
    steps: list[int] = []
    again = make(tmp_path, steps=2).run(lambda step, _: steps.append(step))
    assert steps == [2]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
def test_a_training_without_a_checkpoint_starts_a_new_history(make: Make, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        make(tmp_path).run(stop_after(1))
    assert list_checkpoints(tmp_path) == []
    make(tmp_path, steps=2).run()
    assert [record.step for record in read_history(tmp_path / HISTORY_NAME)] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [1, 2])
def test_a_training_that_falls_back_from_damaged_checkpoints_ends_with_the_same_result(
    make: Make, tmp_path: Path, damaged: int
) -> None:
    make(tmp_path / "whole").run()
    with pytest.raises(RuntimeError):
        make(tmp_path / "cut").run(stop_after(5))
    for path in list_checkpoints(tmp_path / "cut")[-damaged:]:
        file = path / "state.safetensors"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    said: list[str] = []
    resumed = make(tmp_path / "cut")
    resumed._say = said.append
    steps: list[int] = []
    resumed.run(lambda step, _: steps.append(step))
    assert len(said) == damaged
    assert steps[0] == (2 if damaged == 1 else 0)
    assert_same_state(tmp_path / "whole", tmp_path / "cut")
