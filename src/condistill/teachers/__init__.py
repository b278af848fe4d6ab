"""Teachers: one contract (`family.py`), one file and one line in the registry per model family."""

from condistill.teachers.condition import Condition
from condistill.teachers.family import Family
from condistill.teachers.load import load_teacher
from condistill.teachers.registry import FAMILIES, register_family

__all__ = ["FAMILIES", "Condition", "Family", "load_teacher", "register_family"]
