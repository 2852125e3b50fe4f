"""What checks found, as tables for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from clbench.composition import params_by_part
from clbench.testing.checks import CHECKS
from clbench.testing.contract import Finding, check_name, examine
from clbench.testing.subject import Subject

WORDS = {"held": "held", "failed": "FAILED", "expected": "fails as declared", "unneeded": "–"}
MARKS = {"held": "+", "failed": "F", "expected": "x", "unneeded": "–"}
LEGEND = "+ held   x fails as declared   F failed   – does not apply"


class Verdict(NamedTuple):
    """What every check found on one strategy."""

    strategy: str
    params: dict[str, dict[str, Any]]  # by part
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> list[Finding]:
        """Return what does not hold."""
        return [finding for finding in self.findings if finding.status == "failed"]

    @property
    def seconds(self) -> float:
        """Return how long the checks took."""
        return sum(finding.seconds for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        checks = [finding._asdict() for finding in self.findings]
        return {"strategy": self.strategy, "params": self.params, "checks": checks}


def verdict(checked: Subject) -> Verdict:
    """Run every check on one strategy."""
    return Verdict(checked.name, params_by_part(checked.build()), tuple(examine(checked)))


def as_text(verdicts: Sequence[Verdict]) -> str:
    """Return a table of what held, and below it why the rest did not."""
    table = _one(verdicts[0]) if len(verdicts) == 1 else _several(verdicts)
    reasons = [
        f"{found.strategy}: {finding.check} {WORDS[finding.status]}: {finding.reason}"
        for found in verdicts
        for finding in found.findings
        if finding.status in ("failed", "expected")
    ]
    return "\n\n".join(["\n".join(block) for block in (table, reasons) if block])


def _one(found: Verdict) -> list[str]:
    rows = [[finding.check, WORDS[finding.status], finding.seconds] for finding in found.findings]
    return [tabulate(rows, [found.strategy, "", "s"], floatfmt=".1f")]


def _several(verdicts: Sequence[Verdict]) -> list[str]:
    numbers = [str(number) for number in range(1, len(CHECKS) + 1)]
    rows = [
        [found.strategy, *(MARKS[finding.status] for finding in found.findings), found.seconds]
        for found in verdicts
    ]
    align = ("left", *("center" for _ in numbers), "right")
    table = tabulate(rows, ["", *numbers, "s"], floatfmt=".1f", colalign=align)
    names = [f"{number} {check_name(c)}" for number, c in zip(numbers, CHECKS, strict=True)]
    width = max(map(len, names)) + 2
    starts = range(0, len(names), 3)
    columns = ["".join(f"{name:{width}}" for name in names[i : i + 3]) for i in starts]
    return [table, "", LEGEND, *(line.rstrip() for line in columns)]
