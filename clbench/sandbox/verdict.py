"""Words of the sandbox: limits, a job, what was seen of it, and the verdict on that."""

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

Case = tuple[tuple[object, ...], object]  # literal arguments, literal expected result
LITERALS = (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict)
MIB = 1 << 20


class Outcome(StrEnum):
    """How one program ended. All but `pass` and `refused` score 0; `refused` voids the cell."""

    PASS = "pass"
    WRONG_ANSWER = "wrong_answer"
    EXCEPTION = "exception"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    REFUSED = "refused"


@dataclass(frozen=True)
class Limits:
    """What one program may use; `cpu_seconds` and `memory_bytes` hold per process.

    `output_bytes` bounds what comes back over the verdict channel, results included. What a
    program prints goes nowhere.
    """

    cpu_seconds: float = 5.0
    wall_seconds: float = 10.0
    memory_bytes: int = 512 * MIB
    scratch_bytes: int = 16 * MIB
    output_bytes: int = 64 * 1024
    processes: int = 16
    open_files: int = 64


@dataclass(frozen=True)
class Verdict:
    """An outcome and its reason: an exception's type, "SyntaxError", "empty", "cpu", "case 2"."""

    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Job:
    """One program to run: with cases for its entry point, or without one on its own asserts."""

    program: str
    entry_point: str | None = None
    cases: Sequence[Case] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Raise TypeError unless arguments and expected results are literals."""
        if (self.entry_point is None) != (not self.cases):
            raise ValueError("an entry point needs cases, and cases need an entry point")
        for args, expected in self.cases:
            check_literal(list(args))
            check_literal(expected)

    @property
    def calls(self) -> list[tuple[Any, ...]]:
        """The arguments of each case: all of it that a boundary is told."""
        return [tuple(args) for args, _ in self.cases]


class Report(NamedTuple):
    """What the launcher saw of one program; `data` is the program's own and not to be trusted."""

    started: bool
    data: bytes  # at most output_bytes
    token: bool  # the one-time token arrived
    exit_code: int  # 128 + signal number if killed
    stop: str  # why watching ended: "token", "exited", "wall", "start", "output"
    closed: bool  # nothing holds the verdict channel any more: all processes are gone
    cpu_seconds: float
    error: str  # of the launcher itself, before the start


class Opaque:
    """Stands for a result that is no literal; equal to nothing but itself."""


def check_literal(value: object) -> None:
    """Raise TypeError if `value` is not built of plain literals only, or is NaN."""
    if value is not None and type(value) not in LITERALS:
        raise TypeError(f"not a literal: {value!r}")
    if value != value:
        raise TypeError("NaN is equal to nothing, so no result could match it")
    if isinstance(value, dict):
        check_literal([*value.keys(), *value.values()])
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            check_literal(item)


def decode(text: bytes) -> object:
    """Rebuild one result from the worker's spelling; raises ValueError if it is not one."""
    try:
        return _decode(json.loads(text))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError("malformed result") from error


def _decode(node: object) -> object:
    if node is None or isinstance(node, bool):
        return node
    if not isinstance(node, list):
        raise ValueError("untagged value")
    match node:
        case ["i", str(digits)]:
            return int(digits, 16)
        case ["f", str(digits)]:
            return float.fromhex(digits)
        case ["c", str(digits)]:
            return complex(digits)
        case ["s", str(digits)]:
            return bytes.fromhex(digits).decode("utf-8", "surrogatepass")
        case ["b", str(digits)]:
            return bytes.fromhex(digits)
        case ["o"]:
            return Opaque()
    values = [_decode(item) for item in node[2:]]
    match node[0]:
        case "l":
            return values
        case "t":
            return tuple(values)
        case "S":
            return set(values)
        case "d":
            return dict(zip(values[::2], values[1::2], strict=True))
    raise ValueError("unknown tag")


def judge(job: Job, report: Report) -> Verdict:
    """Turn a report into the verdict; expected results are compared here, outside the boundary.

    The first case that fails decides, whatever the program did after it.
    """
    if not report.started:
        return Verdict(Outcome.REFUSED, report.error or report.stop)
    lines = report.data.split(b"\n")[1:-1]  # without "started" and an unfinished last line
    results = [line[2:] for line in lines if line.startswith(b"R ")]
    for number, (text, (_, expected)) in enumerate(zip(results, job.cases, strict=False), 1):
        try:
            same = decode(text) == expected
        except (ValueError, RecursionError):
            return Verdict(Outcome.EXCEPTION, "malformed")
        if not same:
            return Verdict(Outcome.WRONG_ANSWER, f"case {number}")
    if report.token and len(results) == len(job.cases):
        return Verdict(Outcome.PASS, "")
    return _judge_failure(lines[-1] if lines else b"", report, job.limits)


def _judge_failure(last: bytes, report: Report, limits: Limits) -> Verdict:
    if report.stop == "wall":
        return Verdict(Outcome.TIMEOUT, "wall")
    if report.stop == "output":
        return Verdict(Outcome.EXCEPTION, "output")
    if last == b"A":
        return Verdict(Outcome.WRONG_ANSWER, "AssertionError")
    if last == b"M":
        return Verdict(Outcome.MEMORY, "MemoryError")
    if last.startswith(b"E "):
        name = last[2:66].decode("ascii", "replace")
        return Verdict(Outcome.EXCEPTION, name if name.isidentifier() else "Exception")
    killed_by = report.exit_code - 128
    spent = report.cpu_seconds >= limits.cpu_seconds
    if killed_by == signal.SIGXCPU or (killed_by == signal.SIGKILL and spent):
        return Verdict(Outcome.TIMEOUT, "cpu")
    if killed_by in set(signal.Signals):
        return Verdict(Outcome.EXCEPTION, signal.Signals(killed_by).name)
    return Verdict(Outcome.EXCEPTION, "no verdict")
