"""Run the checks on a strategy: as findings, as one call that raises, or as pytest cases."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from clbench.errors import UserError, unknown
from clbench.strategy import Strategy
from clbench.testing.checks import CHECKS, Check, check_uses_fresh_calibration
from clbench.testing.subject import CheckFailed, Subject, subject

if TYPE_CHECKING:
    import pytest

Status = Literal["held", "failed", "expected", "unneeded"]


class Finding(NamedTuple):
    """What one check found."""

    check: str
    status: Status  # "expected": it fails, as declared; "unneeded": it does not apply
    reason: str  # why it failed, does not apply or, as declared, cannot hold; empty if held
    seconds: float


def check_name(check: Check) -> str:
    """Return the name by which a check is listed and declared, e.g. "learns"."""
    return check.__name__.removeprefix("check_")


def promise(check: Check) -> str:
    """Return what a check promises, in a sentence."""
    return str(check.__doc__).strip()


def examine(subject: Subject) -> Iterator[Finding]:
    """Yield what each check finds, in their order; raises UserError for a wrong declaration."""
    declared = _declared(subject)
    for check in CHECKS:
        yield _finding(check, subject, declared.get(check_name(check)))


def check_strategy(
    strategy: str | Strategy, params: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Finding, ...]:
    """Run every check on a strategy and return what they found.

    `strategy` is a name, "a+b", "file.py:Class" or an object; `params` are hyperparameters by
    part, for a strategy given by name. Raises CheckFailed with all that does not hold, and
    UserError for a strategy that cannot be built.
    """
    checked = subject(strategy, params)
    findings = tuple(examine(checked))
    failed = [f"{f.check}: {f.reason}" for f in findings if f.status == "failed"]
    if failed:
        raise CheckFailed("\n".join([f"{checked.name} breaks the contract", *failed]))
    return findings


def parametrize_with_checks(strategies: Iterable[str | Strategy]) -> pytest.MarkDecorator:
    """Return a pytest decorator that makes one case per strategy and check.

    The test takes the argument `check` and calls it. Expected failures are strict xfails. Raises
    UserError, when the tests are collected, for a strategy that cannot be built.
    """
    import pytest

    cases = []
    for checked in map(subject, strategies):
        declared = _declared(checked)
        for check in CHECKS:
            name = check_name(check)
            if not _applies(check, checked):
                continue
            reason = declared.get(name)
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            cases.append(
                pytest.param(_Case(check, checked), id=f"{checked.name}-{name}", marks=marks)
            )
    return pytest.mark.parametrize("check", cases)


class _Case(NamedTuple):
    """One check of one strategy, ready to be called."""

    check: Check
    subject: Subject

    def __call__(self) -> None:
        with _undisturbed():
            self.check(self.subject)


def _finding(check: Check, checked: Subject, declared: str | None) -> Finding:
    name, started = check_name(check), time.monotonic()
    if not _applies(check, checked):
        return Finding(name, "unneeded", "it asks for no covariances", 0.0)
    reason: str | None = None
    try:
        _Case(check, checked)()
    except CheckFailed as error:
        reason = str(error)
    except Exception as error:  # a strategy may fail in any way
        reason = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - started
    if declared is None:
        return Finding(name, "failed" if reason else "held", reason or "", seconds)
    if reason is None:
        return Finding(name, "failed", "passes although it is declared to fail", seconds)
    return Finding(name, "expected", declared, seconds)


def _declared(checked: Subject) -> Mapping[str, str]:
    """Return the expected failures; raises UserError for one that is no check or has no reason."""
    declared = checked.build().expected_failures()
    names = [check_name(check) for check in CHECKS]
    for name, reason in declared.items():
        if name not in names:
            raise unknown(f"expected failure of {checked.name}", name, names)
        if not reason.strip():
            raise UserError(f"{checked.name} declares that {name} fails, and gives no reason")
    return declared


def _applies(check: Check, checked: Subject) -> bool:
    if check is check_uses_fresh_calibration:
        return bool(checked.build().calibration_sources())
    return True


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Use one thread, the fastest for tiny models, and leave global generators as they were."""
    threads, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(python)
        np.random.set_state(numpy)
