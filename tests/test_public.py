"""The public surface: what `import condistill` offers, and the page that describes it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import condistill

ROOT = Path(__file__).parents[1]


def test_the_public_names_are_these() -> None:
    assert condistill.__all__ == [
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
    assert dir(condistill) == sorted([*condistill.__all__, "__version__"])


def test_every_public_name_has_a_docstring() -> None:
    assert [name for name in condistill.__all__ if not getattr(condistill, name).__doc__] == []


def test_help_lists_every_public_name_with_one_line() -> None:
    listed = dict(re.findall(r"^    (\w+) {2,}(\S.*)$", condistill.__doc__ or "", re.MULTILINE))
    assert sorted(listed) == sorted(condistill.__all__)


def test_the_reference_page_is_what_the_docstrings_say() -> None:
    spec = importlib.util.spec_from_file_location("write_reference", ROOT / "tools" / "write_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert page == module.reference(), "run `python tools/write_reference.py`"
