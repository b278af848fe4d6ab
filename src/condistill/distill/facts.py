"""What the records of a run say about a student, for its model card."""

from __future__ import annotations

from pathlib import Path

from condistill.distill.stopwatch import devices_of, train_sec
from condistill.pipelines.lineage import read_lineage
from condistill.pipelines.provenance import CardFacts, PromptFacts, TrainingFacts
from condistill.prompts import stage as prompts_stage
from condistill.run.context import Run
from condistill.utils.hardware import device_name


def devices_in_use(processes: int) -> str:
    """Return the name of the devices of a training, each of which has a process."""
    return f"{processes} x {device_name()}" if processes > 1 else device_name()


def card_facts(run: Run, name: str, directory: Path) -> CardFacts:
    """Return what the records of a run say about a student. Called on the main process.

    Args:
        name: the variant.
        directory: of its training.
    """
    settings, cache, prompts = run.recipe.variant(name)[1], run.recipe.cache, prompts_stage.open(run)
    hashes = run.directory.hashes
    files = [Path(file) for file in run.recipe.prompts.every_file]
    return CardFacts(
        lineage=read_lineage(run.recipe.teacher, run.teacher_inputs),
        prompts=PromptFacts(
            files={file.name: hashes.of(file) if file.is_file() else None for file in files},
            pool=len(prompts.pool),
            unseen=len(prompts.unseen),
            cached=len(prompts.cached),
        ),
        training=TrainingFacts(
            steps=settings.steps,
            batch_size=settings.batch_size,
            seconds=train_sec(directory, settings.steps),
            devices=devices_of(directory),
            cached=cache.size,
            cache_steps=cache.num_inference_steps,
        ),
    )
