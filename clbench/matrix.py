"""The values every number rests on: cells, the score matrix, references and metrics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Reason = Literal["not_scheduled", "failed", "refused", "diverged", "leaked"]
Schedule = Literal["full", "band", "lower", "ends"]


@dataclass(frozen=True)
class Cell:
    """One score of one artifact on one eval, or the reason why there is none."""

    score: float | None
    num_items: int | None = None
    items_digest: str | None = None
    reason: Reason | None = None
    flags: tuple[str, ...] = ()
    weights_digest: str | None = None
    seconds: float | None = None
    engine: str | None = None

    def __post_init__(self) -> None:
        """Refuse a score outside 0..1 and a null without its reason."""
        if (self.score is None) == (self.reason is None):
            raise ValueError(f"a cell has a score or a reason, not {self.score}, {self.reason}")
        if self.score is not None and not 0.0 <= self.score <= 1.0:
            raise ValueError(f"a score lies in 0..1, not {self.score}")
        if self.reason is not None and self.reason not in get_args(Reason):
            raise ValueError(f"unknown reason {self.reason!r}; choices: {get_args(Reason)}")

    def to_json(self) -> dict[str, Any]:
        """Return the cell as JSON."""
        return dataclasses.asdict(self) | {"flags": list(self.flags)}


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores by row (row 0: the base model, row k: after task k) and column (an eval id).

    A task owns one eval or a group, whose task score is the macro mean of its members. Rows
    that are not measured yet are absent.
    """

    tasks: tuple[str, ...]  # in the order of the run
    task_evals: Mapping[str, tuple[str, ...]]
    world: tuple[str, ...] = ()
    rows: tuple[Mapping[str, Cell], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a matrix without tasks, repeated names and cells of no column."""
        if not self.tasks:
            raise ValueError("a matrix needs at least one task")
        if set(self.task_evals) != set(self.tasks) or not all(self.task_evals.values()):
            raise ValueError(f"every task needs evals: {self.tasks}, {dict(self.task_evals)}")
        evals = self.evals
        if len(set(evals)) != len(evals) or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks and evals are named once: {self.tasks}, {evals}")
        if len(self.rows) > len(self.tasks) + 1:
            raise ValueError(f"{len(self.rows)} rows for {len(self.tasks)} tasks")
        for k, row in enumerate(self.rows):
            if unknown := set(row) - set(evals):
                raise ValueError(f"row {k} has cells of no column: {sorted(unknown)}")

    @property
    def evals(self) -> tuple[str, ...]:
        """Return every column: those of the tasks in order, then the world."""
        return tuple(e for task in self.tasks for e in self.task_evals[task]) + self.world

    def cell(self, k: int, eval_id: str) -> Cell | None:
        """Return a cell, or None where the row or cell was not written."""
        return self.rows[k].get(eval_id) if k < len(self.rows) else None

    def score(self, k: int, eval_id: str) -> float | None:
        """Return the score in row k, or None where there is none."""
        cell = self.cell(k, eval_id)
        return None if cell is None else cell.score

    def task_score(self, k: int, task: str) -> float | None:
        """Return the macro mean of a task's evals in row k, None if one of them is None."""
        scores = [self.score(k, eval_id) for eval_id in self.task_evals[task]]
        known = [score for score in scores if score is not None]
        return math.fsum(known) / len(known) if len(known) == len(scores) else None

    def with_row(self, k: int, cells: Mapping[str, Cell]) -> ScoreMatrix:
        """Return the matrix with row k written; k is an existing row or the next one."""
        if not 0 <= k <= len(self.rows):
            raise ValueError(f"row {k} cannot be written after {len(self.rows)} rows")
        rows = (*self.rows[:k], dict(cells), *self.rows[k + 1 :])
        return dataclasses.replace(self, rows=rows)

    def to_json(self) -> dict[str, Any]:
        """Return the matrix as JSON."""
        return {
            "tasks": list(self.tasks),
            "task_evals": {task: list(ids) for task, ids in self.task_evals.items()},
            "world": list(self.world),
            "rows": [{e: cell.to_json() for e, cell in row.items()} for row in self.rows],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ScoreMatrix:
        """Rebuild a matrix from its JSON."""
        return cls(
            tasks=tuple(value["tasks"]),
            task_evals={task: tuple(ids) for task, ids in value["task_evals"].items()},
            world=tuple(value["world"]),
            rows=tuple(
                {e: Cell(**cell | {"flags": tuple(cell["flags"])}) for e, cell in row.items()}
                for row in value["rows"]
            ),
        )


@dataclass(frozen=True)
class References:
    """Task scores of reference runs: trained alone, on all tasks, on tasks 1..k together.

    Each maps a task to the score of its column; `sources` maps a reference to the record
    digests of the runs that it was read from.
    """

    single: Mapping[str, float] = field(default_factory=dict)
    joint: Mapping[str, float] = field(default_factory=dict)
    joint_k: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Partial:
    """A mean over the terms that exist; boards ignore it."""

    value: float
    terms: int
    of: int


@dataclass(frozen=True)
class Metric:
    """A named number with what it covers, or the reason why there is none.

    `reason` is "needs_two_tasks", "no_world", "no_reference", "missing" (the cells are listed),
    "denominator", "no_items" or "unpaired"; `source` says what the interval covers ("items").
    """

    value: float | None
    terms: int | None = None
    missing: tuple[str, ...] = ()
    reason: str | None = None
    partial: Partial | None = None
    interval: tuple[float, float] | None = None
    source: str | None = None
    flags: tuple[str, ...] = ()
    grid: str | None = None  # of what is read off a trace: "task", or the steps between points
