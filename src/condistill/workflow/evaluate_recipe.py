"""Evaluate the students of a recipe: as the recipe says, or by a protocol, whose results have a folder of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from condistill.config.recipe import TEACHER, Recipe
from condistill.evaluate import stage as evaluate_stage
from condistill.evaluate.metrics.classifier import choose_classifier
from condistill.evaluate.prompt_sets import FilePrompts, open_prompt_set
from condistill.report import stage as report_stage
from condistill.run.context import Run, RunProtocol
from condistill.teachers.skeleton import teacher_skeleton
from condistill.utils.atomic import write_text
from condistill.utils.distributed import on_main_process
from condistill.workflow.after_evaluation import Evaluated, Extras, check_extras, check_is_evaluated, finish_extras
from condistill.workflow.compress import run_recipe
from condistill.workflow.evaluation_table import print_evaluation
from condistill.workflow.preflight import check_inputs, preflight

RECIPE_NAME = "recipe.yaml"
"""In the folder of a protocol: the recipe with the section `evaluate` of the protocol."""


def evaluate_recipe(
    recipe: Recipe,
    out: Path,
    *,
    protocol: tuple[str, Recipe] | None = None,
    extras: Extras = Extras(),  # noqa: B008 - frozen
    update: bool = False,
    console: Console | None = None,
    before_training: Callable[[Run], object] | None = None,
) -> Path:
    """Run the stages of a recipe up to its evaluation, and return the folder of the results.

    Args:
        recipe: with the settings of the protocol, if there is one.
        protocol: its name, and the recipe without it, which stays that of the run directory.
        extras: scores of other programs, and where to write the images.
        before_training: see `run_recipe`.

    Raises:
        CondistillError: says what was given, what is allowed and what to do.
    """
    content = check_extras(extras, (TEACHER, *recipe.variants))
    results = [out]

    def begin(run: Run) -> None:
        check_is_evaluated(extras, run.results, "condistill evaluate RECIPE")
        on_main_process(run.accelerator, lambda: _check_evaluation(run))

    def finish(run: Run) -> None:
        if extras:
            finish_extras(run, Evaluated(*evaluate_stage.measured(run)), extras, content)
        on_main_process(run.accelerator, lambda: _finish(run))
        results[0] = run.results

    run_recipe(
        recipe,
        out,
        until=evaluate_stage.NAME,
        update=update,
        console=console,
        before_training=before_training,
        protocol=None if protocol is None else RunProtocol(*protocol),
        begin=begin,
        finish=finish,
    )
    return results[0]


def _check_evaluation(run: Run) -> None:
    """Check that the teacher can be sampled as the evaluation says, on its prompts; no weights are loaded.

    A run checks this before a training, but not where its students are finished and only the evaluation is another one.

    Raises:
        CondistillError: names the setting or the prompt.
    """
    recipe = run.recipe
    check_inputs(recipe)
    with run.working("evaluate: checking the recipe against the teacher's configs", after_sec=2.0):
        skeleton = teacher_skeleton(recipe.teacher)
        preflight(recipe, skeleton)
        if recipe.evaluate.prompt_files:
            prompts = open_prompt_set(run)
            assert isinstance(prompts, FilePrompts)
            skeleton.family.check_prompts(prompts)
            choose_classifier(recipe.evaluate.classifier, prompts)


def _finish(run: Run) -> None:
    """Print the table, and write what a protocol has besides its figures."""
    evaluation = evaluate_stage.open(run).evaluation()
    print_evaluation(evaluation, say=run.say)
    if run.protocol is not None:
        write_text(run.results / RECIPE_NAME, run.recipe.to_yaml())
        run.say(f"report: {report_stage.write_page(run, report_stage.page_inputs(run))}")
