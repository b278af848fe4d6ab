"""The models of a run that are evaluated: the teacher, the students, and the references of distances to the teacher.

A student that works is much closer to its teacher than before its training, whatever the scale of the metric. Two
images of the teacher from different noise show how far apart unrelated images of the same prompts are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from torch import nn

from condistill.config.evaluate import EvaluateSettings
from condistill.config.recipe import TEACHER, Recipe
from condistill.distill import stage as distill_stage
from condistill.distill.stage import DistilledVariant
from condistill.evaluate.engine import Task
from condistill.evaluate.features import FeatureSource
from condistill.evaluate.metrics.metric import METRICS, of_teacher
from condistill.evaluate.models import EvaluatedModel
from condistill.evaluate.prompt_sets import prompt_set_inputs
from condistill.evaluate.results import distances
from condistill.evaluate.rounds import Round, diversity_rounds
from condistill.pipelines.sampling import planned_sampling
from condistill.run.context import Run
from condistill.run.stage_directory import StageDir
from condistill.teachers.family import Family
from condistill.utils.randomness import Stream

LATENTS = "evaluation/latents"
"""The folder of latents in a run directory: a directory for every model."""
REFERENCE_PROMPTS = 16
"""Of each split of the first seed, at most: enough for a scale, and cheap."""
OTHER_SEED = f"{TEACHER}.other_seed"
"""The teacher from other noise. The dot keeps it apart from the names of students."""


def untrained(name: str) -> str:
    """Return the name of a student before its training among the evaluated models."""
    return f"{name}.untrained"


def several_seeds(name: str) -> str:
    """Return the name of the further images of a model, of the same prompts from several seeds."""
    return f"{name}.several_seeds"


def reference_names(recipe: Recipe) -> list[str]:
    """Return the names of all reference models of a recipe."""
    return [OTHER_SEED, *map(untrained, recipe.variants)]


def measures_diversity(settings: EvaluateSettings) -> bool:
    """Return whether several images of each prompt are generated, to measure how much they differ."""
    return settings.networks.dinov2 is not None and settings.diversity_prompts > 0


def latents_of(run: Run, name: str) -> StageDir:
    """Return the directory of the latents that a model generates."""
    return run.stage(f"{LATENTS}/{name}", lambda: _latent_inputs(run, name))


def latents_of_reference(run: Run, name: str) -> StageDir:
    """Return the directory of the latents of a reference model; they cost little."""
    directory = run.stage(f"{LATENTS}/{name}", lambda: _reference_inputs(run, name))
    directory.is_costly = False
    return directory


def latents_of_several_seeds(run: Run, name: str) -> StageDir:
    """Return the directory of the further latents of a model for the diversity of its images."""
    settings = run.recipe.evaluate
    directory = run.stage(
        f"{LATENTS}/{several_seeds(name)}",
        lambda: {
            **_latent_inputs(run, name),
            "evaluate.diversity_prompts": settings.diversity_prompts,
            "evaluate.diversity_seeds": settings.diversity_seeds,
        },
    )
    directory.is_costly = False
    return directory


def _reference_inputs(run: Run, name: str) -> dict[str, Any]:
    model = TEACHER if name == OTHER_SEED else next(each for each in run.recipe.variants if untrained(each) == name)
    return {**_latent_inputs(run, model), "reference": name, "prompts": REFERENCE_PROMPTS}


def _latent_inputs(run: Run, name: str) -> dict[str, Any]:
    settings, sampling = run.recipe.evaluate, planned_sampling(run.recipe, None if name == TEACHER else name)
    model = (
        run.teacher_inputs
        if name == TEACHER
        else {f"{distill_stage.NAME}/{name}": distill_stage.variant_key(run, name)}
    )
    return {
        **prompt_set_inputs(run),
        **model,
        "evaluate.prompts_per_split": settings.prompts_per_split,
        "evaluate.seeds": list(settings.seeds),
        "evaluate.num_inference_steps": sampling.num_inference_steps,
        "evaluate.guidance_scale": sampling.guidance_scale,
    }


def model_tasks(
    run: Run, variants: Mapping[str, DistilledVariant], rounds: Sequence[Round], sources: Sequence[FeatureSource]
) -> list[Task]:
    """Return the teacher and the students, in the order of the recipe."""
    teacher = EvaluatedModel(TEACHER, lambda: run.family, planned_sampling(run.recipe, None), latents_of(run, TEACHER))
    students = [
        EvaluatedModel(
            name,
            lambda: run.family,
            planned_sampling(run.recipe, name),
            latents_of(run, name),
            load=_loader(run, variant),
        )
        for name, variant in variants.items()
    ]
    return [Task(model, rounds, sources) for model in (teacher, *students)]


def _loader(run: Run, variant: DistilledVariant) -> Any:
    def load(family: Family) -> nn.Module:
        with run.working(f"evaluate: loading {variant.name}", after_sec=2.0):
            return variant.load(family)

    return load


def reference_tasks(
    run: Run, variants: Mapping[str, DistilledVariant], first: Round, sources: Sequence[FeatureSource]
) -> list[Task]:
    """Return the teacher from other noise, and every student before its training; both cost little.

    Args:
        first: the first round of the evaluation.
    """
    other = EvaluatedModel(
        OTHER_SEED,
        lambda: run.family,
        planned_sampling(run.recipe, None),
        latents_of_reference(run, OTHER_SEED),
        stream=Stream.OTHER_EVALUATION_NOISE,
    )
    before = [
        EvaluatedModel(
            untrained(name),
            lambda: run.family,
            planned_sampling(run.recipe, name),
            latents_of_reference(run, untrained(name)),
            load=lambda _, variant=variant: variant.initial(),  # type: ignore[misc]
        )
        for name, variant in variants.items()
    ]
    return [reference_task(model, first, sources) for model in (other, *before)]


def reference_task(model: EvaluatedModel, first: Round, sources: Sequence[FeatureSource]) -> Task:
    """Return the task of a reference: the first prompts of the first round, and what distances to the teacher need."""
    needed = {name for kind in distances() for name in kind.needs}
    return Task(model, [first.head(REFERENCE_PROMPTS)], _reading(sources, needed), is_optional=True)


def _reading(sources: Sequence[FeatureSource], needed: Set[str]) -> list[FeatureSource]:
    """Return the sources of features that are needed of a model or of its teacher."""
    return [source for source in sources if needed & {*source.features, *map(of_teacher, source.features)}]


def diversity_tasks(
    settings: EvaluateSettings,
    tasks: Sequence[Task],
    sources: Sequence[FeatureSource],
    latents: Callable[[str], StageDir],
) -> dict[str, Task]:
    """Return, by model, the task of its further images of the same prompts; empty where they are not measured.

    Args:
        tasks: of all models.
        latents: returns where the further latents of a model are kept.
    """
    if not measures_diversity(settings):
        return {}
    rounds = diversity_rounds(tasks[0].rounds[0], settings)
    needed = {name for kind in METRICS.values() if kind.over_seeds for name in kind.needs}
    models = [task.model for task in tasks]
    return {
        model.name: Task(
            replace(
                model,
                name=several_seeds(model.name),
                latents=latents(model.name),
                stream=Stream.DIVERSITY_NOISE,
            ),
            rounds,
            _reading(sources, needed),
        )
        for model in models
    }
