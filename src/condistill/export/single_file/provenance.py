"""What the header of a single file says about the origin of its weights."""

from __future__ import annotations

import json
from pathlib import Path

from condistill.config.recipe import Recipe
from condistill.errors import CondistillError
from condistill.export.source import Source
from condistill.pipelines.lineage import card_metadata, teacher_name
from condistill.pipelines.record import STUDENT_NAME, StudentRecord
from condistill.run.directory import RECIPE_NAME

_CARD_NAME = "README.md"


def provenance(source: Source) -> dict[str, str]:
    """Return the teacher and the layers that a student of a run keeps, and the licence, as far as they are known."""
    found: dict[str, str] = {}
    if licence := _licence(source.directory / _CARD_NAME):
        found["modelspec.license"] = licence
    if source.run is None:
        return found
    try:
        found["condistill.teacher"] = teacher_name(Recipe.load(source.run / RECIPE_NAME).teacher.pipeline)
        record = StudentRecord.read(source.run / "distill" / source.name / STUDENT_NAME, remedy="")
        found["condistill.kept"] = json.dumps(list(record.kept))
    except (CondistillError, OSError):  # the pipeline is complete without them
        pass
    return found


def _licence(card: Path) -> str | None:
    """Return the licence that a model card names."""
    if not card.is_file():
        return None
    licence = card_metadata(card.read_text(encoding="utf-8", errors="replace")).get("license")
    return licence if isinstance(licence, str) else None
