"""Two runs of one comparison key, side by side: the paired difference of every cell and metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from clbench.bootstrap import RESAMPLES, Interval, p_value, percentile_interval
from clbench.clean import leaked_items, select
from clbench.errors import UserError
from clbench.items import paired
from clbench.matrix import Metric
from clbench.metrics import compute, formulas
from clbench.rescoring import check_cells, groups_of, load_items
from clbench.results import Record, differences, items_digest
from clbench.statistics import mcnemar, sign_flip
from clbench.summary import Column, EvalItems, ItemTable, Row, pair_items, sampled_view
from clbench.view import Array, Formula, View

MOST_NAMED = 8
ONE_SEED = (
    "One seed shows one thing: this artifact and that artifact answer these items differently. "
    "It never shows that a strategy is better than another, a rank, that a method forgets less, "
    "an order effect, a best learning rate, the reproduction of a paper, or that a difference "
    "is due to the method rather than to the run."
)
LEAKED = "leak: {} items of {} that training data of either run holds are left out of both"
ORDERS = "the orders differ, so rows between the first and the last are left out"


@dataclass(frozen=True)
class Difference:
    """What two runs have for one cell or metric, and `b - a` with its interval over items."""

    name: str  # "R[2,tiny_math]" or a metric id
    a: float | None
    b: float | None
    difference: float | None = None
    interval: Interval | None = None
    p: float | None = None
    test: str | None = None  # "mcnemar", "sign_flip" (perm.v1) or "bootstrap" (boot.v1)
    num_items: int | None = None
    flags: tuple[str, ...] = ()
    reason: str | None = None  # why there is no difference or no interval


@dataclass(frozen=True)
class Comparison:
    """Every paired difference of two runs, and what they can and cannot show."""

    key: str
    cells: tuple[Difference, ...]
    metrics: tuple[Difference, ...]
    notes: tuple[str, ...]
    says: str = ONE_SEED


@dataclass(frozen=True)
class Side:
    """One of the two runs: its record and its items."""

    record: Record
    items: ItemTable

    @classmethod
    def load(cls, run_dir: str | Path) -> Side:
        """Read a run; raises UserError where its record or items are not what they should be."""
        record = Record.load(run_dir)
        items = load_items(record, run_dir)
        check_cells(record, items, run_dir)
        return cls(record, items)

    @cached_property
    def tables(self) -> dict[str, EvalItems]:
        """Return the items by eval, where its rows pair."""
        keys = {name: block.metric for name, block in self.record.evals.items()}
        chance = {name: block.chance for name, block in self.record.evals.items()}
        tables, _ = pair_items(self.record.matrix, self.items, keys, chance)
        return tables

    def metrics(self) -> dict[str, Metric]:
        """Return the metrics of the matrix, without intervals."""
        chance = {name: block.chance for name, block in self.record.evals.items()}
        record = self.record
        return compute(record.matrix, record.references, chance, groups_of(record))


@dataclass(frozen=True)
class Draw:
    """The sums of one eval of both runs on the same resamples of its items."""

    a: Mapping[Column, Array]
    b: Mapping[Column, Array]
    changes: Mapping[Row, Array]  # b - a by row (resamples,), for scores that are means


def compare(run_a: str | Path, run_b: str | Path, resamples: int = RESAMPLES) -> Comparison:
    """Return the paired differences `b - a` of two runs of one comparison key.

    Evals that leak in either run are compared on the items that are clean in both. Raises
    UserError naming what differs if the runs are not comparable.
    """
    a, b = Side.load(run_a), Side.load(run_b)
    fields = differences(a.record.compared(), b.record.compared())
    if fields:
        more = f" and {len(fields) - MOST_NAMED} more" if len(fields) > MOST_NAMED else ""
        named = ", ".join(fields[:MOST_NAMED]) + more
        raise UserError(f"{run_a} and {run_b} cannot be compared: they differ in {named}")
    leaked = leaked_items(a.record, b.record)
    selected = [select(side.record, side.items, leaked) for side in (a, b)]
    a, b = (Side(found.record, found.items) for found in selected)
    notes = [LEAKED.format(count, name) for name, count in selected[0].left_out.items()]
    same_order = a.record.matrix.tasks == b.record.matrix.tasks
    last = len(a.record.matrix.tasks)
    rows = [k for k in range(last + 1) if same_order or k in (0, last)]
    draws = draw_pairs(a, b, resamples)
    cells = tuple(
        compare_cell(a, b, k, e, draws.get(e)) for k in rows for e in a.record.matrix.evals
    )
    metrics = compare_metrics(a, b, draws, resamples)
    notes += [] if same_order else [ORDERS]
    return Comparison(a.record.comparison_key(), cells, metrics, tuple(notes))


def draw_pairs(a: Side, b: Side, resamples: int) -> dict[str, Draw]:
    """Return shared resamples of every eval that both runs answered on the same items."""
    draws = {}
    for eval_id in a.tables.keys() & b.tables.keys():
        table, other = a.tables[eval_id], b.tables[eval_id]
        if not paired(table.first, other.first):
            continue
        ours, theirs = table.score_columns(), other.score_columns()
        columns = {("a", *key): column for key, column in ours.items()}
        columns |= {("b", *key): column for key, column in theirs.items()}
        if table.corpus_metric is None:
            for part, name in ours.keys() & theirs.keys():
                columns["change", part, name] = theirs[part, name] - ours[part, name]
        sums = table.draw(columns, resamples)
        of = {
            side: {key[1:]: values for key, values in sums.items() if key[0] == side}
            for side in ("a", "b", "change")
        }
        changes = {
            row: of["change"][f"score {row}", "sum"] / of["a"]["all", "n"]
            for row in table.rows
            if (f"score {row}", "sum") in of["change"]
        }
        draws[eval_id] = Draw(of["a"], of["b"], changes)
    return draws


def compare_cell(a: Side, b: Side, row: int, eval_id: str, draw: Draw | None) -> Difference:
    """Return the paired difference of one cell."""
    name = f"R[{row},{eval_id}]"
    was, now = (side.record.matrix.score(row, eval_id) for side in (a, b))
    if was is None or now is None:
        return Difference(name, was, now, reason="missing")
    tables = [side.tables[eval_id] for side in (a, b) if eval_id in side.tables]
    if len(tables) < 2 or any(row not in table.rows for table in tables):
        return Difference(name, was, now, now - was, reason="no_items")
    if draw is None:
        return Difference(name, was, now, now - was, reason="unpaired")
    if row in draw.changes:
        samples = draw.changes[row]
        p, test = cell_p(tables[0], tables[1], row)
    else:
        samples = tables[1].score(row, draw.b) - tables[0].score(row, draw.a)
        p, test = p_value(samples), "bootstrap"
    interval, num_items = percentile_interval(samples), len(tables[0].units)
    flags = ("few_items",) if tables[0].few else ()
    return Difference(name, was, now, now - was, interval, p, test, num_items, flags)


def cell_p(a: EvalItems, b: EvalItems, row: Row) -> tuple[float, str]:
    """Return the p of a cell's difference and its test: exact for 0/1 items, else by sign flip.

    With clusters it is the sign flip of cluster means.
    """
    was, now = (np.array([float(item["score"]) for item in t.rows[row]]) for t in (a, b))
    sizes = np.bincount(a.units)
    if (sizes == 1).all() and np.isin([was, now], [0.0, 1.0]).all():
        lost, won = int(((was == 1) & (now == 0)).sum()), int(((was == 0) & (now == 1)).sum())
        return mcnemar(lost, won), "mcnemar"
    change = np.bincount(a.units, weights=now - was) / sizes
    return sign_flip(change, a.eval_id, items_digest(a.first)), "sign_flip"


def compare_metrics(
    a: Side, b: Side, draws: Mapping[str, Draw], resamples: int
) -> tuple[Difference, ...]:
    """Return the paired difference of every metric of the matrix."""
    groups = groups_of(a.record)
    views = [
        sampled_view(
            side.record.matrix, {e: side.tables[e] for e in draws}, sums, groups, resamples
        )
        for side, sums in (
            (a, {e: draw.a for e, draw in draws.items()}),
            (b, {e: draw.b for e, draw in draws.items()}),
        )
    ]
    values = [side.metrics() for side in (a, b)]
    return tuple(
        compare_metric(formula, values[0][formula.id], values[1][formula.id], views, a.tables)
        for formula in formulas(len(a.record.matrix.tasks), groups)
    )


def compare_metric(
    formula: Formula,
    a: Metric,
    b: Metric,
    views: Sequence[View],
    tables: Mapping[str, EvalItems],
) -> Difference:
    """Return the paired difference of one metric, recomputed on every shared resample."""
    if a.value is None or b.value is None:
        return Difference(formula.id, a.value, b.value, reason=a.reason or b.reason)
    change = b.value - a.value
    first, second = (view.fresh() for view in views)
    samples = formula.samples(second) - formula.samples(first)
    if first.missing or second.missing:
        return Difference(formula.id, a.value, b.value, change, reason="no_items")
    interval = percentile_interval(samples)
    if interval is None:
        return Difference(formula.id, a.value, b.value, change, reason="denominator")
    flags = ("few_items",) if any(tables[e].few for e in first.read) else ()
    p = p_value(samples)
    return Difference(formula.id, a.value, b.value, change, interval, p, "bootstrap", None, flags)
