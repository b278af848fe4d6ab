from __future__ import annotations

import copy
import math
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from condistill.cache.latents import LatentCache
from condistill.config.conditioning import ConditioningSettings
from condistill.config.distill import DistillSettings
from condistill.config.sections import StudentSettings
from condistill.config.yaml_tree import merge
from condistill.distill import random_conditioning as rc
from condistill.distill.batches import BatchSource, batch_source
from condistill.distill.checkpoints import list_checkpoints, load_checkpoint
from condistill.distill.history import HISTORY_NAME, read_history
from condistill.distill.schedules import probability_of
from condistill.distill.trainer import Trainer
from condistill.errors import CondistillError, NonFiniteLossError
from condistill.prompts.pool import PromptPool
from condistill.students.derive import Student, derive_student
from condistill.students.features import feature_pairs, make_maps
from condistill.students.guidance import with_guidance
from condistill.teachers.family import Family

SEED = 11
Make = Callable[..., Trainer]


class RecordingAccelerator(Accelerator):
    """Keeps the gradients of the last step as they were before clipping."""

    gradients: list[Tensor]

    def clip_grad_norm_(self, parameters: Iterator[nn.Parameter], *args: Any, **kwargs: Any) -> Any:
        parameters = list(parameters)
        self.gradients = [p.grad.clone() for p in parameters if p.grad is not None]
        return super().clip_grad_norm_(parameters, *args, **kwargs)


@pytest.fixture(scope="module")
def accelerator() -> RecordingAccelerator:
    return RecordingAccelerator(cpu=True)


def settings_of(**changes: Any) -> DistillSettings:
    few = {
        "steps": 6,
        "batch_size": 4,
        "optimizer": {"learning_rate": 1e-3},
        "logging": {"checkpoint_every": 2, "log_every": 1},
    }
    return DistillSettings.model_validate(merge(few, changes))


@pytest.fixture(scope="module")
def narrow(tiny_family: Family) -> Student:
    """A student of half its teacher's width, to be copied."""
    return derive_student(tiny_family.denoiser, StudentSettings(width=0.5))


@pytest.fixture
def make(
    tiny_family: Family,
    tiny_cache: LatentCache,
    tiny_pool: PromptPool,
    accelerator: RecordingAccelerator,
    narrow: Student,
) -> Make:
    """A trainer of a narrow student that lies in memory as on a CPU; keyword arguments change its settings."""

    def build(directory: Path, *, student: Student | None = None, **changes: Any) -> Trainer:
        if student is None:
            student = copy.deepcopy(narrow)
            student.denoiser.to(memory_format=torch.channels_last)
        settings = settings_of(**changes)
        source = batch_source(tiny_cache, tiny_pool, settings, seed=SEED, accelerator=accelerator)
        return Trainer(tiny_family, student, source, settings, directory=directory, accelerator=accelerator)

    return build


def state(directory: Path) -> dict[str, dict[str, Tensor]]:
    """All tensors of the newest checkpoint."""
    return load_checkpoint(list_checkpoints(directory)[-1])[1]


def assert_same_state(one: Path, other: Path) -> None:
    first, second = state(one), state(other)
    assert first.keys() == second.keys()
    assert first.keys() >= {"trained", "optimizer", "history", "ema"}
    for part, group in first.items():
        assert group.keys() == second[part].keys()
        for name, tensor in group.items():
            assert torch.equal(tensor, second[part][name]), f"{part}/{name}"
    assert (one / HISTORY_NAME).read_bytes() == (other / HISTORY_NAME).read_bytes()


def stop_after(step: int, error: type[BaseException] = RuntimeError) -> Callable[..., None]:
    def on_step(done: int, _record: Any) -> None:
        if done == step:
            raise error

    return on_step


# going on


SCHEDULED = {
    "optimizer": {"lr_scheduler": "cosine", "warmup_steps": 2, "ema_decay": 0.9},
    "logging": {"log_every": 3},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"path": {"start": "noise", "num_inference_steps": 3}},
        {"few_steps": {"method": "consistency", "num_inference_steps": 2, "solver_steps": 10}},
    ],
)
@pytest.mark.slow
def test_what_a_student_hears_of_its_guidance_scale_is_trained_averaged_and_resumed(
    make: Make, tiny_family: Family, narrow: Student, tmp_path: Path, changes: dict[str, Any]
) -> None:
    how = {
        "guidance_distillation": [2, 8],
        "optimizer": {"ema_decay": 0.5},
        "loss": {"feature_weight": 0.0},
        "steps": 2,
        "logging": {"checkpoint_every": 1},
        **changes,
    }

    def told() -> Student:
        return with_guidance(copy.deepcopy(narrow), tiny_family.denoiser, settings_of(**how))

    whole = make(tmp_path / "whole", student=told(), **how).run()
    with pytest.raises(RuntimeError):
        make(tmp_path / "cut", student=told(), **how).run(stop_after(1))
    make(tmp_path / "cut", student=told(), **how).run()
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
def test_a_resumed_run_has_its_moving_states_where_they_were(make: Make, tmp_path: Path, path: dict[str, Any]) -> None:
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
def test_a_resumed_run_has_learned_which_prompts_to_choose(
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
def test_prompt_choices_that_are_not_chosen_are_the_papers(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "paper", steps=2, optimizer={"ema_decay": 0.9}).run()
    make(tmp_path / "text", steps=2, optimizer={"ema_decay": 0.9}, conditioning={"prompt_choice": {}}).run()
    assert_same_state(tmp_path / "paper", tmp_path / "text")


@pytest.mark.slow
@pytest.mark.parametrize("share", [None, 0.5])
def test_clusters_learn_from_isolated_samples_that_were_repaired(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float | None
) -> None:
    path = {"start": "cache", "share": share} if share else None
    trainer = make(
        tmp_path, steps=3, batch_size=8, path=path, conditioning={**LEARNING, "empty_prompt_probability": 0.3}
    )
    text, noted, placed = trainer.prompt_choice, [], []
    assert text is not None
    note, compare = text.note, trainer.objective.compare
    monkeypatch.setattr(text, "note", lambda *given: (noted.append(given[-1]), note(*given)))
    monkeypatch.setattr(trainer.objective, "compare", lambda *given: (placed.append(given[1]), compare(*given))[1])
    trainer.run()
    for counted, sample in zip(noted, placed, strict=True):
        isolated = torch.tensor([i % 2 == 0 for i in range(8)]) if share else torch.ones(8, dtype=torch.bool)
        empty = torch.tensor([prompt == "" for prompt in sample.prompts])
        alone = sample.blend.weight == 0  # a blend is of no cluster
        assert torch.equal(counted, isolated & sample.replaced & ~empty & alone)
    assert torch.cat(noted).any()
    assert not torch.cat(noted).all()


def test_paths_from_pure_noise_begin_with_a_chosen_prompt(
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
def test_a_path_of_one_state_is_the_papers_training(make: Make, tmp_path: Path) -> None:
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
def test_a_finished_run_is_not_trained_further(make: Make, tmp_path: Path) -> None:
    first = make(tmp_path, steps=2).run()
    steps: list[int] = []
    again = make(tmp_path, steps=2).run(lambda step, _: steps.append(step))
    assert steps == [2]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
def test_a_run_without_a_checkpoint_begins_a_new_history(make: Make, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        make(tmp_path).run(stop_after(1))
    assert list_checkpoints(tmp_path) == []
    make(tmp_path, steps=2).run()
    assert [record.step for record in read_history(tmp_path / HISTORY_NAME)] == [1, 2]


@pytest.mark.slow
def test_every_step_is_told_with_its_means_where_they_are_logged(make: Make, tmp_path: Path) -> None:
    told: list[tuple[int, bool]] = []
    make(tmp_path, steps=5, logging={"log_every": 2}).run(lambda step, record: told.append((step, record is not None)))
    assert told == [(0, False), (1, False), (2, True), (3, False), (4, True), (5, True)]


@pytest.mark.slow
def test_the_newest_checkpoints_are_kept_and_the_last_step_always_has_one(make: Make, tmp_path: Path) -> None:
    make(tmp_path, steps=5, logging={"keep_checkpoints": 2}).run()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000005"]


def test_ctrl_c_ends_the_run_after_a_whole_step_with_a_checkpoint(make: Make, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def on_step(step: int, _record: Any) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, logging={"checkpoint_every": 100}).run(on_step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000004"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_the_run_at_once(make: Make, tmp_path: Path) -> None:
    def on_step(step: int, _record: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path).run(on_step)
    assert list_checkpoints(tmp_path) == []


def test_a_run_in_a_thread_leaves_signals_alone(make: Make, tmp_path: Path) -> None:
    done: list[nn.Module] = []
    trainer = make(tmp_path, steps=1)
    thread = threading.Thread(target=lambda: done.append(trainer.run()))
    thread.start()
    thread.join()
    assert len(done) == 1


# the batch


def test_cutting_a_batch_into_micro_batches_does_not_change_the_gradient(
    make: Make, tmp_path: Path, accelerator: RecordingAccelerator
) -> None:
    gradients, students = [], []
    for micro in (4, 2):
        student = make(tmp_path / str(micro), steps=2, micro_batch_size=micro, optimizer={"learning_rate": 1e-5}).run()
        students.append(list(student.parameters()))
        gradients.append(accelerator.gradients)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    for a, b in zip(*students, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    whole, cut = (read_history(tmp_path / name / HISTORY_NAME)[0] for name in ("4", "2"))
    assert cut.loss == pytest.approx(whole.loss, rel=1e-5)
    for mean, expected in zip(cut.bins, whole.bins, strict=True):
        assert mean == (expected if expected is None else pytest.approx(expected, rel=1e-4))


@pytest.mark.parametrize(
    ("processes", "batch", "told"),
    [
        (3, {"batch_size": 4}, r"batch_size 4 cannot be cut evenly into 3 process.* multiple of 3"),
        (2, {"batch_size": 12, "micro_batch_size": 4}, r"batch_size 12 .*micro_batch_size 4; make it a multiple of 8"),
    ],
)
def test_a_batch_that_cannot_be_cut_evenly_is_refused(
    tiny_cache: LatentCache, tiny_pool: PromptPool, processes: int, batch: dict[str, int], told: str
) -> None:
    accelerator: Any = SimpleNamespace(num_processes=processes, process_index=0)
    with pytest.raises(CondistillError, match=told):
        batch_source(tiny_cache, tiny_pool, settings_of(**batch), seed=0, accelerator=accelerator)


def test_processes_share_one_global_batch(tiny_cache: LatentCache, tiny_pool: PromptPool) -> None:
    settings = settings_of(batch_size=8)
    parts = []
    for process in range(2):
        accelerator: Any = SimpleNamespace(num_processes=2, process_index=process)
        (batch,) = batch_source(tiny_cache, tiny_pool, settings, seed=SEED, accelerator=accelerator)(4)
        parts.append(batch.draws.noise)
    (whole,) = BatchSource(tiny_cache, tiny_pool, SEED, 8, 8)(4)
    assert torch.equal(torch.cat(parts), whole.draws.noise)


# the losses


@pytest.mark.parametrize("weighting", ["epsilon", "x0"])
def test_a_step_has_the_losses_of_the_method(
    *,
    make: Make,
    tmp_path: Path,
    tiny_family: Family,
    tiny_cache: LatentCache,
    tiny_pool: PromptPool,
    narrow: Student,
    weighting: str,
) -> None:
    """A second implementation, sample by sample and in float64, of the first step."""
    student = copy.deepcopy(narrow)
    weights = {"output_weight": 0.5, "feature_weight": 2.0, "task_weight": 3.0, "output_weighting": weighting}
    conditioning = {"probability": {"schedule": "constant", "probability": 0.5}}
    trainer = make(
        tmp_path, student=copy.deepcopy(student), steps=1, batch_size=6, loss=weights, conditioning=conditioning
    )
    trainer.run()
    (record,) = read_history(tmp_path / HISTORY_NAME)

    outputs: dict[str, Tensor] = {}

    def watch(model: nn.Module, path: str, key: str) -> None:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs[key] = output[0] if isinstance(output, tuple) else output

        model.get_submodule(path).register_forward_hook(keep)

    teacher = copy.deepcopy(tiny_family.denoiser)
    for i, points in enumerate(student.pairs):
        watch(teacher, points.teacher, f"teacher {i}")
        watch(student.denoiser, points.student, f"student {i}")
    alphas = tiny_family.pipeline.scheduler.alphas_cumprod
    (batch,) = BatchSource(tiny_cache, tiny_pool, SEED, 6, 6)(0)
    losses, parts = [], []
    for i in range(6):
        t = int(batch.draws.uniform[i] * 1000)
        replaced_prompt, empty = bool(batch.draws.coin[i] < 0.5), bool(batch.draws.empty_coin[i] < 0.1)
        prompt = "" if empty else (batch.random_prompts if replaced_prompt else batch.cached_prompts)[i]
        noise = batch.draws.noise[i : i + 1]
        x_t = alphas[t].sqrt() * batch.x_0[i : i + 1] + (1 - alphas[t]).sqrt() * noise
        embeds = tiny_family.encode([prompt]).tensors["prompt_embeds"]
        with torch.no_grad():
            taught, said = (m(x_t, t, encoder_hidden_states=embeds).sample for m in (teacher, student.denoiser))
            output = (said.double() - taught).square().mean().item()
            feature = sum(
                (mapping(outputs[f"student {k}"]).double() - outputs[f"teacher {k}"]).square().mean().item()
                for k, mapping in enumerate(student.maps)
            )
            task = 0.0 if replaced_prompt or empty else (said.double() - noise).square().mean().item()
        factor = 1.0 if weighting == "epsilon" else min(max(((1 - alphas[t]) / alphas[t]).item(), 0.1), 10.0)
        losses.append(0.5 * factor * output + 2.0 * feature + 3.0 * task)
        parts.append((output, feature, task, replaced_prompt or empty))
    assert 0 < sum(part[3] for part in parts) < 6
    means = [sum(column) / 6 for column in zip(*parts, strict=True)]
    assert [*record.terms.values(), record.replaced_prompt] == pytest.approx(means, rel=1e-4)
    assert list(record.terms) == ["output", "feature", "task"]
    assert record.loss == pytest.approx(sum(losses) / 6, rel=1e-4)


@pytest.mark.parametrize("features", ["cross_attention", "attention_maps"])
def test_attentions_may_be_compared_instead_of_stages(
    make: Make, tmp_path: Path, tiny_family: Family, features: Any
) -> None:
    student = derive_student(tiny_family.denoiser, StudentSettings(width=0.5), features=features)
    make(tmp_path, student=student, steps=1, loss={"features": features}).run()
    assert read_history(tmp_path / HISTORY_NAME)[0].terms["feature"] > 0


@pytest.mark.slow
def test_a_layer_of_weight_0_is_not_learned_from(make: Make, tmp_path: Path) -> None:
    whole = {"down_blocks": 0.0, "mid_block": 0.0, "up_blocks": 0.0}
    for name, weights in {"none": whole, "one": whole | {"mid_block": 1.0}}.items():
        make(tmp_path / name, steps=1, loss={"feature_layer_weights": weights}).run()
    lost = {name: read_history(tmp_path / name / HISTORY_NAME)[0].terms["feature"] for name in ("none", "one")}
    assert lost["none"] == 0 < lost["one"]


def test_features_that_weigh_nothing_are_not_looked_at(make: Make, tmp_path: Path) -> None:
    trainer = make(tmp_path, loss={"feature_weight": 0.0}, steps=1)
    trainer.run()
    assert list(read_history(tmp_path / HISTORY_NAME)[0].terms) == ["output"]
    assert len(trainer.trained.maps) == 0


@pytest.mark.slow
def test_gradient_checkpointing_gives_the_same_losses(make: Make, tmp_path: Path) -> None:
    histories = []
    for checkpointing in (False, True):
        directory = tmp_path / str(checkpointing)
        make(directory, steps=3, gradient_checkpointing=checkpointing).run()
        histories.append(read_history(directory / HISTORY_NAME))
    for plain, checkpointed in zip(*histories, strict=True):
        assert checkpointed.loss == pytest.approx(plain.loss, rel=1e-5)
        assert checkpointed.terms == pytest.approx(plain.terms, rel=1e-5)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn(
    make: Make, tmp_path: Path, tiny_family: Family
) -> None:
    denoiser = copy.deepcopy(tiny_family.denoiser).requires_grad_(True)
    pairs = feature_pairs(tiny_family.denoiser, denoiser)
    student = Student(denoiser, pairs, (), make_maps([1] * len(pairs), [1] * len(pairs)))
    trained = make(tmp_path, student=student, steps=2, optimizer={"weight_decay": 0.0}).run()
    for record in read_history(tmp_path / HISTORY_NAME):
        assert (record.loss, record.terms) == (0, {"output": 0, "feature": 0})
    for ours, teachers in zip(trained.parameters(), tiny_family.denoiser.parameters(), strict=True):
        assert torch.equal(ours, teachers)


@pytest.mark.slow
def test_a_student_learns_and_its_teacher_stays_as_it_is(make: Make, tmp_path: Path, tiny_family: Family) -> None:
    teacher = [p.clone() for p in tiny_family.denoiser.parameters()]
    student = derive_student(tiny_family.denoiser, StudentSettings(preset="b-base"))
    before = {name: p.clone() for name, p in student.denoiser.named_parameters()}
    trained = make(tmp_path, student=student, steps=2, optimizer={"ema_decay": 0.0}).run()
    assert all(torch.equal(a, b) for a, b in zip(teacher, tiny_family.denoiser.parameters(), strict=True))
    assert all(not torch.equal(before[name], p) for name, p in trained.named_parameters())


@pytest.mark.slow
def test_the_average_is_shipped_unless_its_decay_is_0(make: Make, tmp_path: Path) -> None:
    averaged = make(tmp_path / "ema", steps=2, optimizer={"ema_decay": 0.9}).run()
    last = dict(make(tmp_path / "last", steps=2, optimizer={"ema_decay": 0.0}).run().named_parameters())
    kept = state(tmp_path / "ema")
    for name, parameter in averaged.named_parameters():
        assert torch.equal(parameter, kept["ema"][name])
        assert torch.equal(last[name], kept["trained"][f"denoiser.{name}"])
    assert "ema" not in state(tmp_path / "last")
    assert any(not torch.equal(kept["ema"][n], kept["trained"][f"denoiser.{n}"]) for n in kept["ema"])


# random conditioning


@pytest.fixture
def asked(tiny_family: Family, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every prompt that was encoded, in order."""
    prompts: list[str] = []
    encode = tiny_family.encode

    def spy(batch: list[str]) -> Any:
        prompts.extend(batch)
        return encode(batch)

    monkeypatch.setattr(tiny_family, "encode", spy)
    return prompts


def test_plain_distillation_repairs_nothing_but_empty_prompts(
    make: Make, tmp_path: Path, tiny_cache: LatentCache, tiny_pool: PromptPool, asked: list[str]
) -> None:
    never = {"conditioning": {"probability": {"schedule": "none"}, "empty_prompt_probability": 0.3}, "steps": 4}
    make(tmp_path, **never).run()
    source = BatchSource(tiny_cache, tiny_pool, SEED, 4, 4)
    batches = [source(step)[0] for step in range(4)]
    emptied = [(batch.draws.empty_coin < 0.3).tolist() for batch in batches]
    own = [prompt for batch in batches for prompt in batch.cached_prompts]
    flags = [flag for step in emptied for flag in step]
    assert any(flags)
    assert asked == ["" if flag else prompt for flag, prompt in zip(flags, own, strict=True)]
    history = read_history(tmp_path / HISTORY_NAME)
    assert [record.replaced_prompt for record in history] == [sum(step) / 4 for step in emptied]


def test_always_repairing_never_asks_for_an_images_own_prompt(
    make: Make, tmp_path: Path, tiny_cache: LatentCache, tiny_pool: PromptPool, asked: list[str]
) -> None:
    always = {
        "conditioning": {
            "probability": {"schedule": "constant", "probability": 1.0},
            "empty_prompt_probability": 0.0,
        }
    }
    make(tmp_path, steps=2, **always).run()
    source = BatchSource(tiny_cache, tiny_pool, SEED, 4, 4)
    assert asked == [prompt for step in range(2) for prompt in source(step)[0].random_prompts]
    assert [record.replaced_prompt for record in read_history(tmp_path / HISTORY_NAME)] == [1, 1]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({}, rc.exponential(5.0)),
        ({"schedule": "exponential", "lambda": 3.0}, rc.exponential(3.0)),
        ({"schedule": "sigmoid", "slope": 10.0, "midpoint": 0.5}, rc.sigmoid(10.0, 0.5)),
        ({"schedule": "constant", "probability": 0.25}, rc.constant(0.25)),
        ({"schedule": "none"}, rc.constant(0.0)),
    ],
)
def test_the_recipes_schedule_is_the_methods(schedule: dict[str, Any], expected: Callable[[Tensor], Tensor]) -> None:
    settings = ConditioningSettings.model_validate({"probability": schedule})
    u = torch.linspace(0, 1, 11)
    assert torch.equal(probability_of(settings.probability)(u), expected(u))


# when it goes wrong


@pytest.mark.slow
@pytest.mark.parametrize(("spoilt", "kept"), [(0, None), (3, 2), (5, 4)])
def test_a_loss_that_is_not_finite_is_named_and_never_saved(
    *,
    make: Make,
    tmp_path: Path,
    tiny_family: Family,
    tiny_cache: LatentCache,
    tiny_pool: PromptPool,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    spoilt: int,
    kept: int | None,
) -> None:
    predict, calls = tiny_family.predict, 0

    def spoil(denoiser: nn.Module, *args: Any) -> Tensor:
        nonlocal calls
        prediction = predict(denoiser, *args)
        if denoiser is not tiny_family.denoiser:
            if calls == spoilt:
                prediction = prediction * torch.tensor([1, 1, math.nan, 1]).view(4, 1, 1, 1)
            calls += 1
        return prediction

    monkeypatch.setattr(tiny_family, "predict", spoil)
    with pytest.raises(NonFiniteLossError, match=r"try a lower distill\.optimizer\.learning_rate") as raised:
        make(tmp_path).run()
    (batch,) = BatchSource(tiny_cache, tiny_pool, SEED, 4, 4)(spoilt)
    sample = f"t={int(batch.draws.uniform[2] * 1000)} {asked[4 * spoilt + 2]!r}"
    assert f"step {spoilt} is not finite for 1 sample(s): {sample}" in str(raised.value)
    if kept is None:
        assert "No checkpoint was written yet" in str(raised.value)
        assert list_checkpoints(tmp_path) == []
    else:
        assert f"The checkpoint step-0000000{kept} is good" in str(raised.value)
        assert list_checkpoints(tmp_path)[-1].name == f"step-0000000{kept}"
        assert all(torch.isfinite(tensor).all() for group in state(tmp_path).values() for tensor in group.values())
