"""Students: opened and checked, configurations and memory-mapped weights, no torch model."""

from exporters.student.open import open_student
from exporters.student.structure import COMPONENTS
from exporters.student.student import BUILTIN_STUDENT, TOKENIZERS, Student

__all__ = ["BUILTIN_STUDENT", "COMPONENTS", "TOKENIZERS", "Student", "open_student"]
