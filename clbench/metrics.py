"""Metrics of the score matrix: ids with versions, each a formula over its cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from clbench.matrix import Metric, References, ScoreMatrix
from clbench.view import Array, Formula, View, mean, only, smallest, total

__all__ = ["FLOOR", "GAP", "Formula", "Metric", "References", "View", "compute", "formulas"]

GAP = 0.02  # the smallest S - B that one may divide by
FLOOR = 0.02  # the smallest base score that one may divide by


def average_at(v: View, k: int) -> list[Array]:
    """Return the terms of A_k: tasks 1..k in row k."""
    return [v.task(k, j) for j in range(1, k + 1)]


def bwt_terms(v: View) -> list[Array]:
    """Return L[j] - D[j] for j < T (Lopez-Paz and Ranzato, arXiv 1706.08840)."""
    return [v.last(j) - v.learned(j) for j in v.earlier_tasks()]


def peak_loss(v: View, first: Callable[[int], int], final: int) -> list[Array]:
    """Return, for j < T, the best score of rows first(j)..final minus the last one."""
    return [
        np.maximum.reduce([v.task(row, j) for row in range(first(j), final + 1)]) - v.last(j)
        for j in v.earlier_tasks()
    ]


def relative(v: View, row: Callable[[int], Array]) -> list[Array]:
    """Return the gain over the base as a share of the single-task gain, both pooled."""
    gained = total([row(j) - v.before(j) for j in v.all_tasks()])
    possible = total([v.reference("single", j) - v.before(j) for j in v.all_tasks()])
    return [v.divide(gained, possible, GAP * v.num_tasks)]


def relative_terms(v: View) -> list[Array]:
    """Return the gain of each task as a share of its single-task gain."""
    return [
        v.divide(v.last(j) - v.before(j), v.reference("single", j) - v.before(j), GAP)
        for j in v.all_tasks()
    ]


def world_row(v: View, k: int) -> list[Array]:
    """Return the world scores of row k."""
    return [v.score(k, w) for w in v.world]


def world_change(v: View, k: int, evals: Sequence[str]) -> list[Array]:
    """Return the change of each eval from row 0 to row k."""
    return [v.score(k, w) - v.score(0, w) for w in evals]


def group_change(v: View, evals: Sequence[str]) -> list[Array]:
    """Return the change of each eval of a group over the stream."""
    return world_change(v, v.num_tasks, evals)


def world_ratios(v: View, chance: Mapping[str, float]) -> list[Array]:
    """Return what each world eval kept of its base score, counted from chance."""
    kept = []
    for w in v.world:
        c = chance.get(w, 0.0)
        kept.append(v.divide(v.score(v.num_tasks, w) - c, v.score(0, w) - c, FLOOR))
    return kept


def clipped(terms: Sequence[Array]) -> list[Array]:
    """Return the terms cut at 1."""
    return [np.minimum(1.0, term) for term in terms]


def world_pooled(v: View) -> list[Array]:
    """Return the ratio of the summed world scores."""
    after, before = total(world_row(v, v.num_tasks)), total(world_row(v, 0))
    return [v.divide(after, before, FLOOR * len(v.world))]


def tasks_and_world(v: View) -> tuple[Array, Array]:
    """Return the final average and the world score after the stream."""
    return mean(average_at(v, v.num_tasks)), mean(world_row(v, v.num_tasks))


def harmonic(a: Array, b: Array) -> Array:
    """Return 2ab/(a+b), 0 where ab is 0."""
    product = a * b
    return np.asarray(2 * product / np.where(product == 0.0, 1.0, a + b))


def minimum_terms(v: View, k: int) -> list[Array]:
    """Return, for tasks i < k, the lowest score of rows i+1..k."""
    return [smallest([v.task(n, i) for n in range(i + 1, k + 1)]) for i in range(1, k)]


def worst_case(v: View, k: int) -> list[Array]:
    """Return (1/k) A(k, k) + (1 - 1/k) min_acc[k] on the rows."""
    own = v.learned(k)
    return [own if k == 1 else own / k + (1 - 1 / k) * mean(minimum_terms(v, k))]


TASK_FORMULAS = (
    Formula("final_avg.v1", lambda v: average_at(v, v.num_tasks)),
    Formula("mean_avg.v1", lambda v: [mean(average_at(v, k)) for k in v.all_tasks()]),
    Formula("learning_acc.v1", lambda v: [v.learned(j) for j in v.all_tasks()]),
    Formula("learning_gain.v1", lambda v: [v.learned(j) - v.before(j) for j in v.all_tasks()]),
    Formula("bwt.v1", bwt_terms, two_tasks=True),
    Formula(
        "fwt.v1",
        lambda v: [v.task(j - 1, j) - v.before(j) for j in v.all_tasks() if j > 1],
        two_tasks=True,
    ),
    Formula("forget_max.v1", lambda v: peak_loss(v, lambda j: j, v.num_tasks - 1), two_tasks=True),
    # Chaudhry et al., arXiv 1801.10112: rows before the task was learned count too.
    Formula(
        "forget_chaudhry.v1", lambda v: peak_loss(v, lambda j: 1, v.num_tasks - 1), two_tasks=True
    ),
    Formula(
        "forget_first_last.v1",
        lambda v: [v.learned(j) - v.last(j) for j in v.earlier_tasks()],
        two_tasks=True,
    ),
    Formula(
        "intransigence_single.v1",
        lambda v: [v.reference("single", j) - v.learned(j) for j in v.all_tasks()],
    ),
    Formula(
        "intransigence_joint.v1",
        lambda v: [v.reference("joint", j) - v.learned(j) for j in v.all_tasks()],
    ),
    Formula(
        "intransigence_chaudhry.v1",
        lambda v: [v.reference("joint_k", j) - v.learned(j) for j in v.all_tasks()],
    ),
    Formula(
        "joint_gap.v1",
        lambda v: [v.reference("joint", j) - v.last(j) for j in v.all_tasks()],
    ),
    Formula("rel_mean.v1", relative_terms),
    Formula("rel_pooled.v1", lambda v: relative(v, v.last), only),
    Formula("rel_learn_pooled.v1", lambda v: relative(v, v.learned), only),
)

# What other suites compute under these names; shown for comparison, never ranked.
COMPAT_FORMULAS = (
    Formula(
        "compat.bwt_over_T.v1",
        bwt_terms,
        lambda terms: total(terms) / (len(terms) + 1),
        two_tasks=True,
    ),
    Formula(
        "compat.bwt_all_pairs.v1",
        lambda v: [v.task(i, j) - v.learned(j) for i in v.all_tasks() for j in range(1, i)],
        two_tasks=True,
    ),
    Formula(
        "compat.forget_incl_last.v1",
        lambda v: peak_loss(v, lambda j: 1, v.num_tasks),
        two_tasks=True,
    ),
)

WORLD_FORMULAS = (
    Formula("world_before.v1", lambda v: world_row(v, 0), world=True),
    Formula("world_after.v1", lambda v: world_row(v, v.num_tasks), world=True),
    Formula("world_delta.v1", lambda v: world_change(v, v.num_tasks, v.world), world=True),
    Formula("world_ratio.v1", lambda v: world_ratios(v, {}), world=True),
    # LoRA-Null's share of the base that is kept, arXiv 2503.02659.
    Formula("world_ratio_clip.v1", lambda v: clipped(world_ratios(v, {})), world=True),
    Formula("world_ratio_pooled.v1", world_pooled, only, world=True),
    Formula("world_ratio_chance.v1", lambda v: world_ratios(v, v.chance), world=True),
    Formula(
        "world_worst.v1",
        lambda v: [change for k in v.all_tasks() for change in world_change(v, k, v.world)],
        smallest,
        world=True,
    ),
    Formula("am.v1", lambda v: [mean(tasks_and_world(v))], only, world=True),
    Formula("gm.v1", lambda v: [np.sqrt(np.multiply(*tasks_and_world(v)))], only, world=True),
    Formula("hm.v1", lambda v: [harmonic(*tasks_and_world(v))], only, world=True),
)


def formulas(num_tasks: int, groups: Mapping[str, tuple[str, ...]]) -> Iterator[Formula]:
    """Yield every metric of a stream of so many tasks with these groups of world evals."""
    for k in range(1, num_tasks + 1):
        yield Formula(f"avg_at.v1[{k}]", partial(average_at, k=k))
    yield from TASK_FORMULAS + COMPAT_FORMULAS + WORLD_FORMULAS
    for name, evals in groups.items():  # TRACE's deltas, arXiv 2310.06762
        yield Formula(f"trace_delta.v1[{name}]", partial(group_change, evals=evals), world=True)
    # The stability gap, De Lange et al., arXiv 2205.13452, seen on the rows: an upper bound.
    for k in range(min(2, num_tasks), num_tasks + 1):
        yield Formula(f"min_acc.v1[{k}]", partial(minimum_terms, k=k), two_tasks=True, grid="task")
    for k in range(1, num_tasks + 1):
        yield Formula(f"wc_acc.v1[{k}]", partial(worst_case, k=k), only, grid="task")


def compute(
    matrix: ScoreMatrix,
    references: References | None = None,
    chance: Mapping[str, float] | None = None,
    groups: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, Metric]:
    """Return every metric of a matrix by id, null with its reason where it has no value.

    `chance` gives the score of guessing per world eval (0 where absent), `groups` the world
    evals by kind of ability, for TRACE's deltas.
    """
    view = View.of(matrix, references or References(), chance or {}, groups or {})
    return {f.id: f.value(view) for f in formulas(len(matrix.tasks), view.groups)}


def effective_rank(singular_values: Array) -> float | None:
    """Return exp of the entropy of the singular values' shares, `dw_erank.v1`; None for zeros.

    Roy and Vetterli 2007, "The effective rank".
    """
    shares = singular_values[singular_values > 0] / singular_values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else None


def stable_rank(singular_values: Array) -> float | None:
    """Return the squared Frobenius norm by the squared spectral one, `dw_srank.v1`."""
    largest = singular_values.max()
    return float((singular_values**2).sum() / largest**2) if largest > 0 else None
