"""Scores a finished run again from its record and items alone; the model may be gone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import TypeAdapter

import clbench
from clbench import corpus
from clbench.digests import items_digest
from clbench.errors import UserError
from clbench.items import Items, mean_score
from clbench.matrix import Metric
from clbench.results import Record, has_items, items_path, read_items, read_json, write_atomic
from clbench.summary import REFERENCE_ROWS, Row, summarize

TOLERANCE = 1e-9  # of a score against its items: another order of summation, no more


class Rescored(NamedTuple):
    """A new metrics block, where it was written, and the ids whose values are not the stored."""

    metrics: dict[str, Metric]
    path: Path
    changed: tuple[str, ...]


def summarize_run(record: Record, run_dir: str | Path) -> dict[str, Metric]:
    """Return the metrics block of a run from its record and the items beside it.

    Raises UserError if the items of a cell are not those that its score was computed from.
    """
    items = load_items(record, run_dir)
    check_cells(record, items, run_dir)
    trace = record.trace
    assert trace is None or isinstance(trace, Mapping)
    return summarize(
        record.matrix,
        items,
        record.references,
        {name: block.chance for name, block in record.evals.items()},
        metric_keys={name: block.metric for name, block in record.evals.items()},
        groups=groups_of(record),
        trace=trace,
    )


def groups_of(record: Record) -> dict[str, tuple[str, ...]]:
    """Return the world evals of a run by kind of ability."""
    groups: dict[str, tuple[str, ...]] = {}
    for w in record.matrix.world:
        if w in record.evals and (kind := record.evals[w].group) is not None:
            groups[kind] = (*groups.get(kind, ()), w)
    return groups


def load_items(record: Record, run_dir: str | Path) -> dict[tuple[Row, str], Items]:
    """Return the items of every cell of a run, and of its reference rows, that are on disk."""
    rows: list[Row] = [*range(len(record.matrix.rows)), *REFERENCE_ROWS]
    return {
        (row, eval_id): read_items(run_dir, row, eval_id)
        for row in rows
        for eval_id in record.matrix.evals
        if has_items(run_dir, row, eval_id)
    }


def check_cells(
    record: Record, items: Mapping[tuple[Row, str], Items], run_dir: str | Path
) -> None:
    """Raise UserError where the items of a cell give another score or other questions."""
    for k, row in enumerate(record.matrix.rows):
        for eval_id, cell in row.items():
            if cell.score is None or (k, eval_id) not in items:
                continue
            answers, path = items[k, eval_id], items_path(run_dir, k, eval_id)
            if cell.items_digest not in (None, items_digest(answers)):
                raise UserError(f"{path} holds other questions than the record scored")
            metric = record.evals[eval_id].metric if eval_id in record.evals else ""
            score = score_items(answers, metric)
            if abs(score - cell.score) > TOLERANCE:
                raise UserError(f"{path} gives the score {score}, but the record says {cell.score}")


def score_items(items: Items, metric: str) -> float:
    """Return the score of items by a pinned metric: recomputed for F1, BLEU and chrF."""
    name = corpus.whole_set(metric, items)
    if name is None:
        return mean_score(items)
    sums = corpus.statistics_of(name, items).sum(axis=0)
    return float(corpus.score_of(name, sums[:, None])[0])


def rescore(run_dir: str | Path) -> Rescored:
    """Compute the metrics of a run again and write them beside the old ones, never over them.

    The new block lies in `rescored/<n>.json`; nothing is written if the last one is the same.
    """
    record = Record.load(run_dir)
    metrics = summarize_run(record, run_dir)
    block = {
        "record_digest": record.record_digest(),
        "suite_version": clbench.__version__,
        "numpy": np.__version__,
        "metrics": TypeAdapter(dict[str, Metric]).dump_python(metrics, mode="json"),
    }
    folder = Path(run_dir) / "rescored"
    number = len(list(folder.glob("*.json")))
    path = folder / f"{number}.json"
    if number == 0 or read_json(path) != json.loads(json.dumps(block)):
        path = folder / f"{number + 1}.json"
        write_atomic(path, json.dumps(block, indent=1, allow_nan=False) + "\n")
    return Rescored(metrics, path, changed_ids(record.metrics, metrics))


def changed_ids(old: Mapping[str, Metric], new: Mapping[str, Metric]) -> tuple[str, ...]:
    """Return the ids in both blocks whose values differ."""
    return tuple(name for name in old if name in new and old[name].value != new[name].value)
