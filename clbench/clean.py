"""A run on its clean items alone, which nothing it was trained on holds: what is ranked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from clbench import leak
from clbench.bootstrap import FEW_UNITS
from clbench.digests import items_digest
from clbench.errors import UserError
from clbench.items import Items, score_items
from clbench.matrix import Cell, References
from clbench.results import Record
from clbench.summary import REFERENCE_ROWS, ItemTable
from clbench.view import ReferenceKind

Leaked = Mapping[str, frozenset[str]]  # eval id -> ids of the items that training data holds


class Selection(NamedTuple):
    """A run as if it had been asked its clean items only."""

    record: Record
    items: ItemTable
    left_out: dict[str, int]  # how many items of each eval that leaks


def leaked_items(*records: Record) -> dict[str, frozenset[str]]:
    """Return, of the evals that leak in one of the runs, what the training data of any holds."""
    blocks = [cast(Mapping[str, Any], record.data.get("leak") or {}) for record in records]
    return leak.leaked(block.get("evals", {}) for block in blocks)


def select(record: Record, items: ItemTable, leaked: Leaked) -> Selection:
    """Return a run without the leaked items, its scores and references computed anew.

    An item goes with its whole cluster, whose items ask the same. Evaluations during training
    have no items, so that what is read off them is left to the rows. Raises UserError where a
    score to compute anew has no items.
    """
    kept = {
        (row, eval_id): _clean(answers, leaked[eval_id]) if eval_id in leaked else answers
        for (row, eval_id), answers in items.items()
    }
    rows = tuple(
        {
            eval_id: _cell(record, k, eval_id, kept.get((k, eval_id)))
            if eval_id in leaked
            else cell
            for eval_id, cell in row.items()
        }
        for k, row in enumerate(record.matrix.rows)
    )
    found = record.replace(
        matrix=dataclasses.replace(record.matrix, rows=rows),
        references=_references(record, kept, leaked),
        trace=None,
    )
    left_out = {e: len(items[row, e]) - len(kept[row, e]) for row, e in items if e in leaked}
    return Selection(found, {key: answers for key, answers in kept.items() if answers}, left_out)


def _clean(items: Items, leaked: frozenset[str]) -> Items:
    clusters = {item["cluster"] for item in items if item["id"] in leaked}
    return [item for item in items if item["cluster"] not in clusters]


def _cell(record: Record, row: int, eval_id: str, kept: Items | None) -> Cell:
    """Return a cell of the clean items, null with the reason "leaked" if there is none."""
    cell = record.matrix.rows[row][eval_id]
    if cell.score is None:
        return cell
    if kept is None:
        raise UserError(
            f"run {record.identity.run_id} has no items of {eval_id} in row {row}, so its score "
            "without those that leak cannot be computed"
        )
    few = len({item["cluster"] for item in kept}) < FEW_UNITS
    return dataclasses.replace(
        cell,
        score=score_items(kept, record.metric_key(eval_id)) if kept else None,
        reason=None if kept else "leaked",
        num_items=len(kept),
        items_digest=items_digest(kept),
        flags=tuple(dict.fromkeys((*cell.flags, *["few_items"] * few))),
    )


def _references(record: Record, kept: ItemTable, leaked: Leaked) -> References:
    found = {kind: _task_scores(record, kind, kept, leaked) for kind in REFERENCE_ROWS}
    return References(**found, sources=record.references.sources)


def _task_scores(
    record: Record, kind: ReferenceKind, kept: ItemTable, leaked: Leaked
) -> dict[str, float]:
    """Return the tasks' scores of a reference, without those that have no clean items."""
    scores: dict[str, float] = {}
    for task, score in getattr(record.references, kind).items():
        evals = record.matrix.task_evals[task]
        if not leaked.keys() & set(evals):
            scores[task] = score
        elif all(kept.get((kind, e)) for e in evals):
            anew = [score_items(kept[kind, e], record.metric_key(e)) for e in evals]
            scores[task] = math.fsum(anew) / len(anew)
    return scores
