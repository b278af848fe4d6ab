"""Students: smaller denoisers of the teacher's own class, and the layers in which they are compared with it."""

from condistill.profiling.macs import macs
from condistill.students.blocks import remove_blocks
from condistill.students.derive import WIDTH_FRACTIONS, Student, derive_student
from condistill.students.features import FeaturePair, FeatureRecorder, check_pairs, make_maps
from condistill.students.width import narrow
from condistill.utils.meta import parameters

__all__ = [
    "WIDTH_FRACTIONS",
    "FeaturePair",
    "FeatureRecorder",
    "Student",
    "check_pairs",
    "derive_student",
    "macs",
    "make_maps",
    "narrow",
    "parameters",
    "remove_blocks",
]
