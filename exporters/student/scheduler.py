"""The student's scheduler, as diffusers has it."""

from __future__ import annotations

from typing import Any

from exporters.errors import Complaint, StudentError
from exporters.student.student import Student


def reference_scheduler(student: Student) -> Any:
    """The student's scheduler.

    Raises:
        StudentError: its configuration cannot be used.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    arguments = {key: value for key, value in student.configs["scheduler"].items() if not key.startswith("_")}
    try:
        return FlowMatchEulerDiscreteScheduler.from_config(arguments)
    except (ImportError, TypeError, ValueError) as error:  # beta sigmas need scipy; two kinds of sigmas at once
        raise StudentError("The scheduler cannot be used.", [Complaint("scheduler_config.json", str(error))]) from error
