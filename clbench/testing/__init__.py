"""The contract that runs: checks that any strategy passes, or fails for a stated reason."""

from clbench.testing.checks import CHECKS
from clbench.testing.contract import (
    Finding,
    check_name,
    check_strategy,
    examine,
    parametrize_with_checks,
    promise,
)
from clbench.testing.course import Course, tiny_examples, tiny_model
from clbench.testing.subject import CheckFailed, Subject, from_settings, subject

__all__ = [
    "CHECKS",
    "CheckFailed",
    "Course",
    "Finding",
    "Subject",
    "check_name",
    "check_strategy",
    "examine",
    "from_settings",
    "parametrize_with_checks",
    "promise",
    "subject",
    "tiny_examples",
    "tiny_model",
]
