from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import yaml
from huggingface_hub import ModelCard

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.pipelines.card import PipelineParts, ScoreRow, ScoreTable, for_hub, is_edited, model_card
from condistill.pipelines.licences import Licence
from condistill.pipelines.lineage import Lineage
from condistill.pipelines.provenance import CardFacts, Delivery, ExportedFiles, Program, PromptFacts, TrainingFacts
from condistill.pipelines.record import DenoiserSize, StudentRecord
from condistill.utils.markdown import escape

STUDENT = StudentRecord(
    kept=("half",),
    teacher_size=DenoiserSize(parameters=6978372, macs=123_000_000),
    student_size=DenoiserSize(parameters=1884160, macs=36_000_000),
)
SCORES = ScoreTable(
    columns=("teacher", "this student"),
    rows=(ScoreRow("Correct, unseen prompts", ("88 %", "67 %")), ScoreRow("Latent RMSE, all prompts", ("–", "0.420"))),
    notes=("A note.", "Another."),
)


def _card(
    pipeline: str = "miniature",
    *,
    words: list[str] | None = None,
    evaluate: dict[str, Any] | None = None,
    quick: bool = False,
    **changes: Any,
) -> str:
    recipe = Recipe.from_dict(
        {
            "teacher": {"pipeline": pipeline},
            "prompts": {"files": ["/home/me/secret/prompts.txt"], "unseen_words": words or []},
            "cache": {"guidance_scale": 2.5},
            "student": {"preset": "b-small"},
            "variants": {"small": {"distill": {"steps": 1234}}},
            "evaluate": evaluate or {},
            "quick": quick,
        }
    )
    arguments: dict[str, Any] = {
        "name": "small",
        "recipe": recipe,
        "student": STUDENT,
        "parts": PipelineParts("StableDiffusionPipeline"),
    }
    return model_card(**{**arguments, **changes})


def _facts(lineage: Lineage | None = None, **training: Any) -> CardFacts:
    known: dict[str, Any] = {"steps": 100, "batch_size": 16, "seconds": 90.0, "devices": ("Some GPU",)}
    return CardFacts(
        lineage or Lineage(licence=Licence("openrail++", source="its README.md")),
        PromptFacts({"captions.txt": "e" * 64, "miniature": None}, pool=1000, unseen=250, cached=512),
        TrainingFacts(**{**known, "cached": 512, "cache_steps": 25, **training}),
    )


def _front(card: str) -> dict[str, Any]:
    front: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return front


def test_front_matter_names_the_library_and_a_hub_teacher() -> None:
    front = _front(_card("CompVis/stable-diffusion-v1-4"))
    assert front["library_name"] == "diffusers"
    assert front["base_model"] == "CompVis/stable-diffusion-v1-4"
    assert "base_model" not in _front(_card())


@pytest.mark.parametrize("pipeline", ["/home/me/models/my-teacher", "../models/my-teacher/", "C:\\me\\my-teacher"])
def test_a_folder_shows_its_last_part_only(pipeline: str) -> None:
    card = _card(pipeline)
    assert "base_model" not in _front(card)
    assert "my\\-teacher" in card
    assert not re.search(r"home|models|secret|\bC:|\.\./", card)
    assert "prompts.txt" in card


def test_a_folder_that_looks_like_a_hub_name_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in _front(_card("models/mine"))


def test_sizes_settings_and_what_was_kept_are_shown() -> None:
    card = _card()
    assert "| Parameters of the denoiser | 6.98 M | 1.88 M | 27 % |" in card
    assert "| distill.steps | 1234 |" in card
    assert "| distill.conditioning.probability.lambda | 5.0 |" in card
    assert "None" not in card
    assert "- half" in card
    assert "No training image" in card


def test_sizes_on_disk_are_shown_after_the_evaluation() -> None:
    assert "on disk |" not in _card()
    card = _card(on_disk={"Whole pipeline on disk": (2_200_000_000, 1_100_000_000)})
    assert "| Whole pipeline on disk | 2.05 GiB | 1.02 GiB | 50 % |" in card


def test_scores_are_shown_as_they_are_formatted() -> None:
    assert "## Scores" not in _card()
    assert "## Scores" not in _card(scores=ScoreTable((), (), ()))
    card = _card(scores=SCORES)
    assert "| Correct, unseen prompts | 88 % | 67 % |\n| Latent RMSE, all prompts | – | 0.420 |" in card
    assert "A note. Another." in card


def test_components_that_are_absent_are_set_to_none_when_loading() -> None:
    card = _card(parts=PipelineParts("StableDiffusion3Pipeline", absent=("text_encoder_3", "tokenizer_3")))
    call = 'from_pretrained("./small", torch_dtype=torch.float32, text_encoder_3=None, tokenizer_3=None)'
    assert call in card


def test_the_loading_example_is_python_with_the_settings_of_the_evaluation() -> None:
    code = re.findall(r"```python\n(.*?)```", _card(evaluate={"num_inference_steps": 12}), re.DOTALL)
    assert len(code) == 1
    ast.parse(code[0])
    assert "DiffusionPipeline.from_pretrained(" in code[0]
    assert "num_inference_steps=12, guidance_scale=2.5" in code[0]


@pytest.mark.parametrize(
    ("pipeline_class", "arguments"),
    [
        ("StableDiffusionXLPipeline", {"num_inference_steps", "guidance_scale"}),
        ("StableDiffusionInpaintPipeline", {"image", "mask_image", "num_inference_steps", "guidance_scale"}),
        ("DiTPipeline", {"class_labels", "num_inference_steps", "guidance_scale"}),
    ],
)
def test_the_loading_example_calls_every_pipeline_with_arguments_that_it_takes(
    pipeline_class: str, arguments: set[str]
) -> None:
    card = _card(parts=PipelineParts(pipeline_class))
    assert f"A smaller or faster `{pipeline_class}`" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    call = next(call for call in calls if getattr(call.func, "id", "") == "pipeline")
    assert {keyword.arg for keyword in call.keywords} == arguments
    parameters = inspect.signature(getattr(diffusers, pipeline_class).__call__).parameters
    assert arguments <= set(parameters)


def test_the_loading_example_has_a_guidance_scale_that_the_student_was_trained_with() -> None:
    for distilled, scale in (([3, 8], 3.0), ([2, 8], 2.5), (3.0, 3.0)):
        data: dict[str, Any] = {
            "teacher": {"pipeline": "miniature"},
            "prompts": {"files": ["miniature"]},
            "cache": {"guidance_scale": 2.5},
            "student": {"preset": "b-small"},
            "variants": {"small": {"distill": {"guidance_distillation": distilled}}},
        }
        assert f"guidance_scale={scale})" in _card(recipe=Recipe.from_dict(data))


def test_markdown_in_words_and_lines_is_shown_as_text() -> None:
    student = STUDENT.model_copy(update={"kept": ("<script>x</script>\n# head | [a](b)",)})
    card = _card(student=student, words=["a|b", "**bold**"])
    assert "<script>" not in card
    assert "\n# head" not in card
    assert "a\\|b, \\*\\*bold\\*\\*" in card
    assert escape("a_b\n`c`") == "a\\_b \\`c\\`"


def test_an_unknown_student_is_refused() -> None:
    with pytest.raises(CondistillError, match="no student 'smal'; did you mean 'small'"):
        _card(name="smal")


def test_equal_input_gives_an_equal_card() -> None:
    assert _card(scores=SCORES) == _card(scores=SCORES)


def test_control_characters_and_reversed_text_are_shown_as_escapes() -> None:
    card = _card(words=["\u202etxt"], student=STUDENT.model_copy(update={"kept": ("a\x1bb", "\x9b\x00")}))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", card)
    assert r"\u202etxt" in card


def test_a_student_of_a_quick_run_is_labelled() -> None:
    label = "**Quick run: a test of the set-up, not a student to use.**"
    assert label in _card(quick=True)
    assert label not in _card()


def test_a_card_that_was_edited_is_known_from_one_that_was_not() -> None:
    card = _card()
    assert not is_edited(card)
    assert is_edited(card + "My own words.\n")
    assert is_edited(card.replace("The student can", "This model can"))
    assert is_edited("# A card of another program\n")


def test_the_card_states_the_lineage_of_a_teacher_on_the_hub_and_what_its_licence_demands() -> None:
    licence = Licence("openrail++", source="the teacher's README.md")
    lineage = Lineage("org/teacher", "c" * 40, licence=licence, licence_files={"LICENSE.md": "Terms"})
    card = _card("org/teacher", facts=_facts(lineage))
    assert "- Teacher: [org/teacher](https://huggingface.co/org/teacher)" in card
    assert f"`{'c' * 40}`" in card
    assert "use restrictions of Attachment A" in card
    assert "Its text is in LICENSE.md." in card
    assert _front(card) == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": "openrail++",
        "tags": ["condistill", "distillation", "compression", "text-to-image", "diffusers"],
        "inference": True,
        "base_model": "org/teacher",
        "base_model_relation": "finetune",
    }


@pytest.mark.parametrize("facts", [None, _facts(Lineage())])
def test_an_unknown_licence_is_called_unknown(facts: CardFacts | None) -> None:
    card = _card(facts=facts)
    assert "The licence of the teacher is unknown" in card
    assert _front(card)["license"] == "unknown"


def test_a_licence_whose_text_was_not_read_has_no_obligations_made_up() -> None:
    lineage = Lineage(licence=Licence("my-terms", "javascript:alert(1)", "the teacher's README.md"))
    card = _card(facts=_facts(lineage))
    assert "my\\-terms (named by the teacher's README.md)" in card
    assert "was not read; read it" in card
    assert "](javascript" not in card


def test_hashes_stand_for_a_teacher_in_a_folder() -> None:
    lineage = Lineage(hashes={"unet/model.safetensors": "a" * 64, "vae/model.safetensors": "b" * 64})
    card = _card(facts=_facts(lineage))
    assert f"SHA-256 of the teacher's unet/model.safetensors: `{'a' * 64}`" in card
    assert "b" * 64 not in card


def test_the_card_states_prompts_and_cost() -> None:
    card = _card(facts=_facts())
    assert "1,000 prompts without images: 250 (25 %) were held out" in card
    assert f"| captions.txt | `{'e' * 64}` |" in card
    assert "- Training: 100 steps of 16 samples (1,600 samples), in 90.0 s on Some GPU" in card
    assert "- Cache: 512 latents of the teacher, 25 steps each" in card
    unknown = _card(facts=_facts(seconds=None, devices=()))
    assert "(1,600 samples)\n" in unknown


def test_the_card_states_where_the_student_loads_and_how() -> None:
    programs = (Program("ComfyUI", True, "x", "a source"), Program("Other", False, "width <b>", "docs"))
    formats = (ExportedFiles("ComfyUI", "Copy the file.", "small-comfyui", {"small.safetensors": 2_000_000}),)
    card = _card(delivery=Delivery(programs, formats))
    assert "- Loads in: diffusers, ComfyUI\n- Not in Other: width \\<b\\>\n" in card
    assert "small\\-comfyui: small.safetensors (1.91 MiB).\n\nCopy the file." in card


@pytest.mark.parametrize(
    ("pipeline_class", "task", "tag"),
    [
        ("StableDiffusionXLPipeline", "text-to-image", "text-to-image"),
        ("StableDiffusionInpaintPipeline", "image-to-image", "inpainting"),
        ("DiTPipeline", "unconditional-image-generation", "class-conditional"),
    ],
)
def test_the_metadata_fit_the_family_and_are_those_that_the_hub_reads(pipeline_class: str, task: str, tag: str) -> None:
    card = ModelCard(_card("org/teacher", parts=PipelineParts(pipeline_class), facts=_facts(), quick=True))
    assert card.data.pipeline_tag == task
    assert tag in card.data.tags
    assert card.data.base_model == "org/teacher"
    assert card.data.license == "openrail++"
    assert card.data.inference is False


def test_the_example_of_a_pipeline_of_classes_has_one_of_its_labels() -> None:
    parts = PipelineParts("DiTPipeline", label='tench "Tinca"')
    assert 'pipeline.get_label_ids(["tench \\"Tinca\\""])' in _card(parts=parts)


def test_the_card_for_the_hub_loads_from_there_and_an_edited_one_stays_as_it_is() -> None:
    card = for_hub(_card(), "small", "me/my-student")
    assert 'from_pretrained("me/my-student", torch_dtype' in card
    assert "folder that contains" in _card()
    assert "folder that contains" not in card
    assert for_hub("# my own words", "small", "me/my-student") == "# my own words"
