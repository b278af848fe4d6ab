"""Teachers: one contract (`family.py`), one file per model family, one line each in the registry."""

from condistill.teachers.family import Condition, Family
from condistill.teachers.load import FAMILIES, load_teacher

__all__ = ["FAMILIES", "Condition", "Family", "load_teacher"]
