"""What a user sees of a finished run; the run is shared by all tests of this folder."""

from __future__ import annotations

import re
from dataclasses import asdict

import pytest
from runs import Run
from safetensors.torch import load_file

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.evaluate.metrics import METRICS
from condistill.evaluate.record import Evaluation
from condistill.evaluate.run_tasks import OTHER_SEED, untrained
from condistill.export import EXPORTERS, ExportOptions, find_source, loads_in
from condistill.export.write import check_export
from condistill.plan import make_plan
from condistill.students.layer_map import LAYERS_NAME, LayersRecord
from condistill.utils.hardware import device_name
from condistill.utils.markdown import escape


@pytest.mark.slow
def test_a_run_keeps_the_references_of_every_student(finished: Run) -> None:
    evaluation = Evaluation.load(finished.out)
    assert evaluation.references is not None
    assert evaluation.references.images_per_split == {"seen": 2, "unseen": 2, "all": 4}
    metric = METRICS["latent_rmse"]
    for name in evaluation.students:
        before = evaluation.before_training(name, "unseen", metric)
        assert before is not None
        assert before.value > 0
        assert (finished.out / "evaluation" / "latents" / untrained(name) / "stage.json").is_file()
    other = evaluation.of_other_seed("unseen", metric)
    assert other is not None
    assert other.value > 0
    assert (finished.out / "evaluation" / "latents" / OTHER_SEED).is_dir()


@pytest.mark.slow
def test_a_run_records_the_layers_of_the_teacher_that_its_students_are_made_of(finished: Run) -> None:
    file = finished.out / "distill" / "plain" / LAYERS_NAME
    sources = LayersRecord.read(file, remedy="").layer_map()
    weights = load_file(finished.out / "pipelines" / "plain" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {name for name, weight in weights.items() if weight.dim() > 1 and "shortcut" not in name} <= set(sources)
    assert all(
        source.selection[0] is None or len(source.selection[0]) == len(weights[name])
        for name, source in sources.items()
    )


@pytest.mark.slow
def test_the_report_and_the_last_lines_show_previews_and_what_a_distance_means(finished: Run) -> None:
    html = (finished.out / "report.html").read_text(encoding="utf-8")
    assert "Previews</h3>" in html
    assert html.count("step 6:") == 2 * 4
    assert "before training" in html
    lines = finished.printed.replace("\n", " ")
    assert "before training and" in lines
    assert "between two seeds of the teacher" in lines
    assert "Short training: plain and random_conditioning were trained on 12 samples (6 steps of 2)" in lines
    card = (finished.out / "pipelines" / "plain" / "README.md").read_text(encoding="utf-8")
    assert "between two seeds of the teacher" in card


@pytest.mark.slow
def test_previews_are_no_part_of_a_result(run: Run, no_teacher: None) -> None:
    import shutil

    shutil.rmtree(run.out / "distill" / "plain" / "previews")
    run.again("distill.preview_every=1")
    assert "previews" not in (run.out / "distill" / "plain" / "stage.json").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_model_card_that_the_user_edited_is_moved_before_a_new_one_is_written(run: Run, no_teacher: None) -> None:
    card = run.out / "pipelines" / "plain" / "README.md"
    run.again()
    assert not (run.out / "old").exists()
    card.write_text("my own words\n", encoding="utf-8")
    run.again()
    assert "# plain, distilled from" in card.read_text(encoding="utf-8")
    (moved,) = (run.out / "old").rglob("README.md")
    assert moved.read_text(encoding="utf-8") == "my own words\n"
    assert f"moved {card} to {moved}\n" in run.printed


@pytest.mark.slow
def test_a_sampling_file_that_the_user_edited_is_moved_before_a_new_one_is_written(run: Run, no_teacher: None) -> None:
    file = run.out / "pipelines" / "plain" / "sampling.json"
    written = file.read_text(encoding="utf-8")
    edited = written.replace('"num_inference_steps": 2', '"num_inference_steps": 9')
    assert edited != written
    file.write_text(edited, encoding="utf-8")
    run.again()
    assert file.read_text(encoding="utf-8") == written
    (moved,) = (run.out / "old").rglob("sampling.json")
    assert moved.read_text(encoding="utf-8") == edited
    assert f"moved {file} to {moved}\n" in run.printed


@pytest.mark.slow
def test_the_card_of_a_finished_run_states_lineage_prompts_cost_and_where_it_loads(finished: Run) -> None:
    card = (finished.out / "pipelines" / "plain" / "README.md").read_text(encoding="utf-8")
    assert "SHA-256 of the teacher's unet/diffusion\\_pytorch\\_model.safetensors: `" in card
    assert "6 steps of 2 samples (12 samples), in " in card
    assert f"on {escape(device_name())}" in card
    assert "prompts without images" in card
    assert "- Loads in: diffusers\n- Not in ComfyUI: " in card
    assert str(finished.folder) not in card


@pytest.mark.slow
def test_plan_card_and_export_agree_on_where_a_student_loads(finished: Run) -> None:
    recipe = Recipe.load(finished.out / "recipe.yaml")
    planned = {student.name: student for student in make_plan(recipe).students if student.of_recipe}
    for name in recipe.variants:
        source = find_source(str(finished.out), student=name)
        card = (finished.out / "pipelines" / name / "README.md").read_text(encoding="utf-8").replace("\\", "")
        for loading, found in zip(planned[name].loads_in, loads_in(source.shape), strict=True):
            assert loading.model_dump() == asdict(found)
            exporter = next(each for each in EXPORTERS.values() if each.title == found.application)
            if found.loads:
                check_export(source, exporter, ExportOptions())
            else:
                assert f"- Not in {found.application}: {found.reason}" in card
                with pytest.raises(CondistillError, match=re.escape(found.reason)):
                    check_export(source, exporter, ExportOptions())
