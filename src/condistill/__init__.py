"""condistill: a smaller, faster diffusion pipeline from a teacher and a list of prompts, without training images.

    compress(pipeline, "runs/mine", prompts=prompts, student="b-small")

A whole run, and its parts:

    compress            turn a teacher and prompts into a student, from a recipe or from a pipeline in memory
    Recipe              everything that a run depends on, read from YAML or a dict
    StudentSettings     how a student is made smaller than its teacher
    load_teacher        load a teacher as its family: a directory, a hub name, one file, or a pipeline in memory
    derive_student      return a smaller denoiser with its teacher's weights, before training
    export_pipeline     write a finished pipeline in the format of another program
    PromptPool          a memory-mapped list of distinct prompts, of any size
    LatentCache         the latents that the teacher generated, memory-mapped, with their prompts
    RandomConditioning  the re-pairing of latents with prompts, for a training loop of your own
    CondistillError     what is raised for users: it says what was given, what is allowed and what to do

Extensions, each one file and one call:

    register_exporter   a format in which pipelines are exported
    register_family     a kind of teacher
    register_loss_term  a term of the loss
    register_metric     a metric of the evaluation
    register_schedule   a probability of re-pairing by noise level
    register_stage      a stage of every run

The command is `condistill`; see `condistill --help`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condistill.cache.latents import LatentCache
    from condistill.config.recipe import Recipe
    from condistill.config.sections import StudentSettings
    from condistill.distill.loss_terms import register_loss_term
    from condistill.distill.random_conditioning import RandomConditioning
    from condistill.distill.schedules import register_schedule
    from condistill.errors import CondistillError
    from condistill.evaluate.metrics import register_metric
    from condistill.export import register_exporter
    from condistill.export.call import export_pipeline
    from condistill.prompts.pool import PromptPool
    from condistill.students.derive import derive_student
    from condistill.teachers.load import load_teacher
    from condistill.teachers.registry import register_family
    from condistill.workflow.call import compress
    from condistill.workflow.compress import register_stage

__version__ = "0.2.0"

_HOMES = {
    "CondistillError": "condistill.errors",
    "LatentCache": "condistill.cache.latents",
    "PromptPool": "condistill.prompts.pool",
    "RandomConditioning": "condistill.distill.random_conditioning",
    "Recipe": "condistill.config.recipe",
    "StudentSettings": "condistill.config.sections",
    "compress": "condistill.workflow.call",
    "derive_student": "condistill.students.derive",
    "export_pipeline": "condistill.export.call",
    "load_teacher": "condistill.teachers.load",
    "register_exporter": "condistill.export",
    "register_family": "condistill.teachers.registry",
    "register_loss_term": "condistill.distill.loss_terms",
    "register_metric": "condistill.evaluate.metrics",
    "register_schedule": "condistill.distill.schedules",
    "register_stage": "condistill.workflow.compress",
}
__all__ = [
    "CondistillError",
    "LatentCache",
    "PromptPool",
    "RandomConditioning",
    "Recipe",
    "StudentSettings",
    "compress",
    "derive_student",
    "export_pipeline",
    "load_teacher",
    "register_exporter",
    "register_family",
    "register_loss_term",
    "register_metric",
    "register_schedule",
    "register_stage",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import condistill` alone loads neither torch nor diffusers."""
    if name not in _HOMES:
        raise AttributeError(f"module 'condistill' has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
