"""Teachers: one contract (`family.py`), one file per model family, one line each in the registry."""

from condistill.teachers.condition import Condition
from condistill.teachers.family import Family
from condistill.teachers.load import FAMILIES, load_teacher

__all__ = ["FAMILIES", "Condition", "Family", "load_teacher"]
