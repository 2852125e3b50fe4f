"""The metrics block of a record: every metric of the matrix and of the items, with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from clbench import corpus
from clbench.bootstrap import (
    FEW_UNITS,
    RESAMPLES,
    Integers,
    Key,
    percentile_interval,
    resample_sums,
    units_of,
)
from clbench.digests import items_digest
from clbench.items import (
    COLLAPSED,
    Items,
    class_metrics,
    delta_metrics,
    drift_columns,
    flip_columns,
    flip_metrics,
    label_columns,
    label_share,
    paired,
    reading_columns,
    reading_metrics,
    sum_columns,
)
from clbench.matrix import Metric, References, ScoreMatrix
from clbench.metrics import compute, formulas
from clbench.trace import Trace, trace_metrics
from clbench.view import Array, ReferenceKind, View, mean

Row = int | str  # of the matrix, or the name of a reference: "single", "joint", "joint_k"
ItemTable = Mapping[tuple[Row, str], Items]  # (row, eval id) -> the items answered there
Column = tuple[str, str]  # (what of the eval, name): a sum over its items
REFERENCE_ROWS: tuple[ReferenceKind, ...] = ("single", "joint", "joint_k")


@dataclass(frozen=True)
class EvalItems:
    """The items of one eval in canonical order, the same questions in every row."""

    eval_id: str
    metric: str  # pinned: "metric,filter"
    chance: float
    rows: Mapping[Row, Items]

    @property
    def first(self) -> Items:
        """Return the items of one row, for what is equal in all of them."""
        return next(iter(self.rows.values()))

    @cached_property
    def units(self) -> Integers:
        """Return the resampled unit of each item: items of one cluster share one."""
        return units_of([item["cluster"] for item in self.first])

    @property
    def few(self) -> bool:
        """Return whether there are too few units for an interval to mean much."""
        return int(self.units.max()) + 1 < FEW_UNITS

    @property
    def open_answer(self) -> bool:
        """Return whether the readings that tell format from knowledge were taken."""
        return all(items[0]["em"] is not None for items in self.rows.values())

    @property
    def choice(self) -> bool:
        """Return whether the eval offers the same labels for every item."""
        return self.chance > 0 and all(i["lls"] for items in self.rows.values() for i in items)

    @property
    def corpus_metric(self) -> str | None:
        """Return the metric to recompute from the whole set, None for a mean of items."""
        return corpus.whole_set(self.metric, self.first)

    def score_columns(self) -> dict[Column, Array]:
        """Return what the score of each row is computed from, one value per item (items,)."""
        columns: dict[Column, Array] = {}
        for row, items in self.rows.items():
            if self.corpus_metric is None:
                columns[f"score {row}", "sum"] = np.array([float(i["score"]) for i in items])
            else:
                statistics = corpus.statistics_of(self.corpus_metric, items)
                for at, values in enumerate(statistics.T):
                    columns[f"score {row}", f"{at:02d}"] = values
        return columns | {("all", "n"): np.ones(len(self.units))}

    def item_columns(self, last: int) -> dict[Column, Array]:
        """Return what the item metrics between rows 0 and `last` are computed from."""
        parts: dict[str, dict[str, Array]] = {}
        if 0 in self.rows and last in self.rows:
            parts["flips"] = flip_columns(self.rows[0], self.rows[last])
            if self.open_answer:
                parts["drift"] = drift_columns(self.rows[0], self.rows[last])
        for row, items in self.rows.items():
            if self.open_answer:
                parts[f"readings {row}"] = reading_columns(items)
            if self.choice:
                parts[f"labels {row}"] = label_columns(items)
        return {(part, name): c for part, found in parts.items() for name, c in found.items()}

    def score(self, row: Row, sums: Mapping[Column, Array]) -> Array:
        """Return the score of a row from sums over items."""
        values = part_of(sums, f"score {row}")
        if self.corpus_metric is None:
            return values["sum"] / sums["all", "n"]
        return corpus.score_of(self.corpus_metric, np.stack([values[k] for k in sorted(values)]))

    def metrics(self, last: int, sums: Mapping[Column, Array]) -> dict[str, Array]:
        """Return the item metrics by id, "name.vN[eval]" or, of one row, "name.vN[eval,row]"."""
        found: dict[str, Array] = {}
        if flips := part_of(sums, "flips"):
            found |= {
                f"{n}[{self.eval_id}]": v for n, v in flip_metrics(flips, self.chance).items()
            }
        if drift := part_of(sums, "drift"):
            rows = [part_of(sums, f"readings {row}") for row in (0, last)]
            between = delta_metrics(*rows) | class_metrics(drift)
            found |= {f"{name}[{self.eval_id}]": value for name, value in between.items()}
        for row in self.rows:
            if readings := part_of(sums, f"readings {row}"):
                values = reading_metrics(readings)
                found |= {f"{n}[{self.eval_id},{row}]": v for n, v in values.items()}
            if labels := part_of(sums, f"labels {row}"):
                found[f"label_share.v1[{self.eval_id},{row}]"] = label_share(labels)
        return found

    def draw(self, columns: Mapping[Key, Array], resamples: int) -> dict[Key, Array]:
        """Return the sums of columns on every resample (resamples,)."""
        digest = items_digest(self.first)
        return resample_sums(self.eval_id, digest, self.units, columns, resamples)


def part_of(sums: Mapping[Column, Array], part: str) -> dict[str, Array]:
    """Return the sums of one part by name."""
    return {name: values for (of, name), values in sums.items() if of == part}


def pair_items(
    matrix: ScoreMatrix,
    items: ItemTable,
    metric_keys: Mapping[str, str],
    chance: Mapping[str, float],
) -> tuple[dict[str, EvalItems], set[str]]:
    """Return the items by eval, of scored cells only, and the evals whose rows do not pair."""
    found: dict[str, EvalItems] = {}
    unpaired: set[str] = set()
    scored: list[Row] = [*range(len(matrix.rows)), *REFERENCE_ROWS]
    for eval_id in matrix.evals:
        rows = {
            row: sorted(items[row, eval_id], key=lambda item: str(item["id"]))
            for row in scored
            if (row, eval_id) in items
            and (isinstance(row, str) or matrix.score(row, eval_id) is not None)
        }
        answers = list(rows.values())
        if not all(paired(answers[0], other) for other in answers[1:]):
            unpaired.add(eval_id)
        elif answers:
            found[eval_id] = EvalItems(
                eval_id, metric_keys.get(eval_id, ""), chance.get(eval_id, 0.0), rows
            )
    return found, unpaired


def sampled_view(
    matrix: ScoreMatrix,
    tables: Mapping[str, EvalItems],
    draws: Mapping[str, Mapping[Column, Array]],
    groups: Mapping[str, tuple[str, ...]],
    resamples: int,
) -> View:
    """Return the matrix on every resample of its items."""
    cells: dict[tuple[int, str], Array] = {}
    references: dict[tuple[ReferenceKind, str], Array] = {}
    for eval_id, table in tables.items():
        for row in table.rows:
            if isinstance(row, int):
                cells[row, eval_id] = table.score(row, draws[eval_id])
    for kind in REFERENCE_ROWS:
        for task in matrix.tasks:
            members = [tables[e] for e in matrix.task_evals[task] if e in tables]
            if len(members) == len(matrix.task_evals[task]) and all(
                kind in m.rows for m in members
            ):
                references[kind, task] = mean([m.score(kind, draws[m.eval_id]) for m in members])
    chance = {eval_id: table.chance for eval_id, table in tables.items()}
    return View(
        matrix.tasks,
        matrix.task_evals,
        matrix.world,
        cells,
        references,
        chance,
        groups,
        size=resamples,
    )


def with_interval(metric: Metric, samples: Array, few: bool) -> Metric:
    """Return a metric with the interval that its resamples give."""
    interval = percentile_interval(samples)
    flags = (*metric.flags, "few_items") if few else metric.flags
    return dataclasses.replace(
        metric, interval=interval, source="items" if interval else None, flags=flags
    )


def summarize(
    matrix: ScoreMatrix,
    items: ItemTable,
    references: References | None = None,
    chance: Mapping[str, float] | None = None,
    *,
    metric_keys: Mapping[str, str] | None = None,
    groups: Mapping[str, tuple[str, ...]] | None = None,
    trace: Mapping[str, Any] | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Metric]:
    """Return every metric by id, with 95 % intervals over items where there are items.

    Args:
        matrix: the scores.
        items: the items of each cell by (row, eval id); those of reference runs under the rows
            "single", "joint" and "joint_k". A metric that reads a cell or a reference without
            items has no interval.
        references: the scores of reference runs.
        chance: the score of guessing by eval id, 0 where absent.
        metric_keys: the pinned "metric,filter" by eval id; F1, BLEU and chrF are recomputed.
        groups: world evals by kind of ability.
        trace: evaluations during training, as in the record.
        resamples: B of the bootstrap.
    """
    chance, groups = chance or {}, groups or {}
    tables, unpaired = pair_items(matrix, items, metric_keys or {}, chance)
    last = len(matrix.tasks)
    columns = {e: table.score_columns() for e, table in tables.items()}
    for w in matrix.world:
        if w in tables:
            columns[w] |= tables[w].item_columns(last)
    draws = {e: table.draw(columns[e], resamples) for e, table in tables.items()}

    metrics = compute(matrix, references, chance, groups)
    sampled = sampled_view(matrix, tables, draws, groups, resamples)
    for formula in formulas(last, groups):
        if metrics[formula.id].value is None:
            continue
        view = sampled.fresh()
        samples = formula.samples(view)
        if not view.missing:
            few = any(tables[e].few for e in view.read)
            metrics[formula.id] = with_interval(metrics[formula.id], samples, few)
    if trace is not None:
        metrics |= trace_metrics(Trace.from_json(trace, matrix))
    return metrics | world_item_metrics(matrix, tables, unpaired, columns, draws)


def world_item_metrics(
    matrix: ScoreMatrix,
    tables: Mapping[str, EvalItems],
    unpaired: set[str],
    columns: Mapping[str, Mapping[Column, Array]],
    draws: Mapping[str, Mapping[Column, Array]],
) -> dict[str, Metric]:
    """Return the item metrics of every world eval, and the split of its change over all."""
    last = len(matrix.tasks)
    metrics: dict[str, Metric] = {}
    changes: dict[str, list[tuple[Array, Array, bool]]] = {}
    for w in matrix.world:
        metrics |= {f"{n}[{w}]": m for n, m in no_flips(matrix, w, w in unpaired).items()}
        if w not in tables:
            continue
        table = tables[w]
        exact = {key: sum_columns({"": c})[""] for key, c in columns[w].items()}
        samples = table.metrics(last, draws[w])
        for name, value in table.metrics(last, exact).items():
            lost = name.startswith("drift_")
            terms = int(exact["drift", "lost"][0]) if lost else len(table.units)
            metrics[name] = item_metric(value, samples[name], terms, table.few)
            if name.startswith("label_share") and value[0] >= COLLAPSED:
                flags = (*metrics[name].flags, "collapsed")
                metrics[name] = dataclasses.replace(metrics[name], flags=flags)
            if name.startswith(("knowledge_delta", "format_delta")):
                plain = name.partition("[")[0]
                changes.setdefault(plain, []).append((value, samples[name], table.few))
    readable = [w for w in matrix.world if w in tables and tables[w].open_answer]
    missing = tuple(f"R[{last},{w}]" for w in readable if f"knowledge_delta.v1[{w}]" not in metrics)
    for name, found in changes.items():
        values, samples_of, few = zip(*found, strict=True)
        metrics[name] = (
            Metric(None, len(readable), missing, "missing")
            if missing
            else item_metric(mean(values), mean(samples_of), len(found), any(few))
        )
    return metrics


def item_metric(value: Array, samples: Array, terms: int, few: bool) -> Metric:
    """Return an item metric with its interval, null where there was nothing to divide by."""
    number = float(value[0])
    if np.isnan(number):
        return Metric(None, terms, reason="denominator")
    return with_interval(Metric(number, terms), samples, few)


def no_flips(matrix: ScoreMatrix, eval_id: str, unpaired: bool) -> dict[str, Metric]:
    """Return the item metrics between rows 0 and T as nulls, with the reason that holds here."""
    rows = (0, len(matrix.tasks))
    missing = tuple(f"R[{k},{eval_id}]" for k in rows if matrix.score(k, eval_id) is None)
    reason = "missing" if missing else "unpaired" if unpaired else "no_items"
    ids = flip_metrics(dict.fromkeys(("n11", "n10", "n01", "n00"), np.ones(1)), 0.0)
    return dict.fromkeys(ids, Metric(None, missing=missing, reason=reason))
