from __future__ import annotations

import copy
import math
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import (
    SEED,
    Make,
    RecordingAccelerator,
    state,
)

from condistill.cache.latents import LatentCache
from condistill.config.sections import StudentSettings
from condistill.distill.batches import BatchSource
from condistill.distill.checkpoints import list_checkpoints
from condistill.distill.history import HISTORY_NAME, read_history
from condistill.errors import NonFiniteLossError
from condistill.prompts.pool import PromptPool
from condistill.students.derive import Student, derive_student
from condistill.students.features import feature_pairs, make_maps
from condistill.teachers.family import Family


@pytest.mark.slow
def test_every_step_is_reported_and_logged_steps_with_their_record(make: Make, tmp_path: Path) -> None:
    reported: list[tuple[int, bool]] = []
    make(tmp_path, steps=5, logging={"log_every": 2}).run(
        lambda step, record: reported.append((step, record is not None))
    )
    assert reported == [(0, False), (1, False), (2, True), (3, False), (4, True), (5, True)]


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


# the losses


@pytest.mark.parametrize("weighting", ["epsilon", "x0"])
def test_the_losses_of_a_step_are_those_of_the_method(
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
            target, predicted = (m(x_t, t, encoder_hidden_states=embeds).sample for m in (teacher, student.denoiser))
            output = (predicted.double() - target).square().mean().item()
            feature = sum(
                (mapping(outputs[f"student {k}"]).double() - outputs[f"teacher {k}"]).square().mean().item()
                for k, mapping in enumerate(student.maps)
            )
            task = 0.0 if replaced_prompt or empty else (predicted.double() - noise).square().mean().item()
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
def test_a_layer_of_weight_0_has_no_feature_loss(make: Make, tmp_path: Path) -> None:
    whole = {"down_blocks": 0.0, "mid_block": 0.0, "up_blocks": 0.0}
    for name, weights in {"none": whole, "one": whole | {"mid_block": 1.0}}.items():
        make(tmp_path / name, steps=1, loss={"feature_layer_weights": weights}).run()
    lost = {name: read_history(tmp_path / name / HISTORY_NAME)[0].terms["feature"] for name in ("none", "one")}
    assert lost["none"] == 0 < lost["one"]


def test_features_of_weight_0_are_not_recorded(make: Make, tmp_path: Path) -> None:
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
def test_the_averaged_weights_are_returned_unless_the_decay_is_0(make: Make, tmp_path: Path) -> None:
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
def encoded(tiny_family: Family, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All prompts that are encoded, in order."""
    prompts: list[str] = []
    encode = tiny_family.encode

    def spy(batch: list[str]) -> Any:
        prompts.extend(batch)
        return encode(batch)

    monkeypatch.setattr(tiny_family, "encode", spy)
    return prompts


def test_plain_distillation_replaces_prompts_by_empty_ones_only(
    make: Make, tmp_path: Path, tiny_cache: LatentCache, tiny_pool: PromptPool, encoded: list[str]
) -> None:
    never = {"conditioning": {"probability": {"schedule": "none"}, "empty_prompt_probability": 0.3}, "steps": 4}
    make(tmp_path, **never).run()
    source = BatchSource(tiny_cache, tiny_pool, SEED, 4, 4)
    batches = [source(step)[0] for step in range(4)]
    emptied = [(batch.draws.empty_coin < 0.3).tolist() for batch in batches]
    cached = [prompt for batch in batches for prompt in batch.cached_prompts]
    flags = [flag for step in emptied for flag in step]
    assert any(flags)
    assert encoded == ["" if flag else prompt for flag, prompt in zip(flags, cached, strict=True)]
    history = read_history(tmp_path / HISTORY_NAME)
    assert [record.replaced_prompt for record in history] == [sum(step) / 4 for step in emptied]


def test_p_of_1_never_uses_the_cached_prompt(
    make: Make, tmp_path: Path, tiny_cache: LatentCache, tiny_pool: PromptPool, encoded: list[str]
) -> None:
    always = {
        "conditioning": {
            "probability": {"schedule": "constant", "probability": 1.0},
            "empty_prompt_probability": 0.0,
        }
    }
    make(tmp_path, steps=2, **always).run()
    source = BatchSource(tiny_cache, tiny_pool, SEED, 4, 4)
    assert encoded == [prompt for step in range(2) for prompt in source(step)[0].random_prompts]
    assert [record.replaced_prompt for record in read_history(tmp_path / HISTORY_NAME)] == [1, 1]


# errors


@pytest.mark.slow
@pytest.mark.parametrize(("spoilt", "kept"), [(0, None), (3, 2), (5, 4)])
def test_a_loss_that_is_not_finite_is_reported_with_its_sample_and_never_saved(
    *,
    make: Make,
    tmp_path: Path,
    tiny_family: Family,
    tiny_cache: LatentCache,
    tiny_pool: PromptPool,
    encoded: list[str],
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
    with pytest.raises(NonFiniteLossError, match=r"Try|try") as raised:
        make(tmp_path).run()
    (batch,) = BatchSource(tiny_cache, tiny_pool, SEED, 4, 4)(spoilt)
    sample = f"t={int(batch.draws.uniform[2] * 1000)} {encoded[4 * spoilt + 2]!r}"
    assert f"step {spoilt} is not finite for 1 sample(s): {sample}" in str(raised.value)
    if kept is None:
        assert "There is no good checkpoint. The student has taken no step yet" in str(raised.value)
        assert list_checkpoints(tmp_path) == []
    else:
        assert f"The checkpoint step-0000000{kept} is good" in str(raised.value)
        assert "Try a distill.optimizer.learning_rate below 0.001" in str(raised.value)
        assert list_checkpoints(tmp_path)[-1].name == f"step-0000000{kept}"
        assert all(torch.isfinite(tensor).all() for group in state(tmp_path).values() for tensor in group.values())
