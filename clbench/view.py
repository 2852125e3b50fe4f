"""How a metric reads a matrix: cells as arrays (resamples,), strict about missing ones.

Arrays have length 1 for the value and are longer for a bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clbench.matrix import Metric, Partial, References, ScoreMatrix

Array = NDArray[np.float64]
ReferenceKind = Literal["single", "joint", "joint_k"]

TOLERANCE = 1e-12  # of a comparison with a guard
SYMBOLS: Mapping[ReferenceKind, str] = {"single": "S", "joint": "J", "joint_k": "J_k"}


def total(terms: Sequence[Array]) -> Array:
    """Return the sum over terms, correctly rounded for a single value."""
    stacked = np.stack(terms)  # (terms, resamples)
    if stacked.shape[1] == 1:
        return np.array([math.fsum(stacked[:, 0])])
    return np.asarray(stacked.sum(axis=0))


def mean(terms: Sequence[Array]) -> Array:
    """Return the mean over terms."""
    return total(terms) / len(terms)


@dataclass
class View:
    """A matrix read through arrays; it notes which cells were missing and which guards fired.

    Tasks are addressed 1..T and rows 0..T, as in the formulas.
    """

    tasks: tuple[str, ...]
    task_evals: Mapping[str, tuple[str, ...]]
    world: tuple[str, ...]
    cells: Mapping[tuple[int, str], Array]
    references: Mapping[tuple[ReferenceKind, str], Array]
    chance: Mapping[str, float]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    size: int = 1
    missing: dict[str, None] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)  # evals whose cells were asked for
    no_reference: bool = False
    blocked: bool = False

    @classmethod
    def of(
        cls,
        matrix: ScoreMatrix,
        references: References,
        chance: Mapping[str, float],
        groups: Mapping[str, tuple[str, ...]],
    ) -> View:
        """Return the view of a matrix with its own scores, arrays of length 1."""
        cells = {
            (k, eval_id): np.array([cell.score])
            for k, row in enumerate(matrix.rows)
            for eval_id, cell in row.items()
            if cell.score is not None
        }
        given: tuple[tuple[ReferenceKind, Mapping[str, float]], ...] = (
            ("single", references.single),
            ("joint", references.joint),
            ("joint_k", references.joint_k),
        )
        known = {
            (kind, task): np.array([score])
            for kind, scores in given
            for task, score in scores.items()
        }
        return cls(matrix.tasks, matrix.task_evals, matrix.world, cells, known, chance, groups)

    def fresh(self) -> View:
        """Return the same view with nothing noted."""
        return View(
            self.tasks,
            self.task_evals,
            self.world,
            self.cells,
            self.references,
            self.chance,
            self.groups,
            self.size,
        )

    @property
    def num_tasks(self) -> int:
        """Return T."""
        return len(self.tasks)

    def score(self, k: int, eval_id: str) -> Array:
        """Return R[k, eval], NaN and noted where it is missing."""
        self.read.add(eval_id)
        if (k, eval_id) not in self.cells:
            self.missing[f"R[{k},{eval_id}]"] = None
            return np.full(self.size, np.nan)
        return self.cells[k, eval_id]

    def task(self, k: int, j: int) -> Array:
        """Return R[k, j], the macro mean of the evals of task j."""
        return mean([self.score(k, eval_id) for eval_id in self.task_evals[self.tasks[j - 1]]])

    def reference(self, kind: ReferenceKind, j: int) -> Array:
        """Return S[j], J[j] or J_k[j], NaN and noted where there is no such reference."""
        task = self.tasks[j - 1]
        self.read.update(self.task_evals[task])
        if (kind, task) not in self.references:
            self.missing[f"{SYMBOLS[kind]}[{task}]"] = None
            self.no_reference = True
            return np.full(self.size, np.nan)
        return self.references[kind, task]

    def divide(self, numerator: Array, denominator: Array, guard: float) -> Array:
        """Return the ratio, NaN and noted where the denominator is below its guard."""
        below = denominator < guard - TOLERANCE
        self.blocked = self.blocked or bool(below.any())
        return np.asarray(numerator / np.where(below, np.nan, denominator))

    def before(self, j: int) -> Array:
        """Return B[j], the base model on task j."""
        return self.task(0, j)

    def learned(self, j: int) -> Array:
        """Return D[j], task j right after learning it."""
        return self.task(j, j)

    def last(self, j: int) -> Array:
        """Return L[j], task j at the end."""
        return self.task(self.num_tasks, j)

    def all_tasks(self) -> range:
        """Return 1..T."""
        return range(1, self.num_tasks + 1)

    def earlier_tasks(self) -> range:
        """Return 1..T-1."""
        return range(1, self.num_tasks)


Terms = Callable[[View], Sequence[Array]]
Combine = Callable[[Sequence[Array]], Array]


@dataclass(frozen=True)
class Formula:
    """A metric: terms and how they combine, `mean` unless said otherwise."""

    id: str
    terms: Terms
    combine: Combine = mean
    two_tasks: bool = False  # undefined for T = 1
    world: bool = False  # undefined for M = 0
    grid: str | None = None

    def samples(self, view: View) -> Array:
        """Return the metric on every resample of a view, NaN where a guard fires."""
        return self.combine(self.terms(view))

    def undefined(self, view: View) -> str | None:
        """Return why the metric has no meaning on matrices of this shape."""
        if self.two_tasks and view.num_tasks < 2:
            return "needs_two_tasks"
        return "no_world" if self.world and not view.world else None

    def value(self, view: View) -> Metric:
        """Return the metric of a view of length 1, or null with its reason."""
        if reason := self.undefined(view):
            return Metric(None, reason=reason, grid=self.grid)
        view = view.fresh()
        terms = self.terms(view)
        num_terms, missing = len(terms), tuple(view.missing)
        if view.no_reference:
            return Metric(None, num_terms, missing, "no_reference", grid=self.grid)
        if missing:
            part = None if view.blocked or self.combine is not mean else partial_mean(terms)
            return Metric(None, num_terms, missing, "missing", part, grid=self.grid)
        if view.blocked:
            return Metric(None, num_terms, reason="denominator", grid=self.grid)
        return Metric(float(self.combine(terms)[0]), num_terms, grid=self.grid)


def partial_mean(terms: Sequence[Array]) -> Partial | None:
    """Return the mean over the terms that exist, None if none does."""
    known = [term for term in terms if not np.isnan(term[0])]
    return Partial(float(mean(known)[0]), len(known), len(terms)) if known else None


def only(terms: Sequence[Array]) -> Array:
    """Return the one term of a metric that is no mean."""
    (term,) = terms
    return term


def smallest(terms: Sequence[Array]) -> Array:
    """Return the minimum over terms."""
    return np.asarray(np.minimum.reduce(list(terms)))
