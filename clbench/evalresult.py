"""What an evaluation leaves behind: one score, and one outcome per item to score again from."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from clbench import drift, sandbox
from clbench.results import Cell

Item = dict[str, Any]
Reason = Literal["refused", "failed", "not_scheduled"]

FEW_ITEMS = 50  # units below which an interval means little
MOST_LENGTH = 0.05  # share of items that may end at the cap before the cell says so
NO_ISOLATION = (
    "generated code was not executed because no isolation works here; install bubblewrap, or "
    "accept the risk with --isolation none"
)
NOT_STARTED = "the sandbox failed to start a program, so the code score is void"


class Scored(NamedTuple):
    """The score of one eval, or why there is none."""

    score: float | None
    reason: Reason | None = None
    note: str | None = None  # the reason in one sentence


@dataclass(frozen=True)
class EvalResult:
    """The outcome of one eval on one model; items are in ascending order of their documents."""

    score: float | None
    reason: Reason | None  # why there is no score
    note: str | None  # the same in one sentence
    flags: tuple[str, ...]
    items: list[Item]
    num_items: int
    items_digest: str
    task_digest: str
    ceiling: float | None  # the score of an oracle that writes the gold
    others: dict[str, float] = field(default_factory=dict)  # further metrics by key
    counts: dict[str, int] = field(default_factory=dict)  # items per stop reason and outcome
    seconds: dict[str, float] = field(default_factory=dict)  # by kind: generate, execute, ...
    tokens_generated: int = 0
    engine: str = "hf"  # what wrote and scored, with its version where it is not the run's own
    weights_digest: str | None = None
    cached: bool = False  # read back, at no cost

    def cell(self, weights_digest: str) -> Cell:
        """Return its cell of the matrix."""
        return Cell(
            score=self.score,
            num_items=self.num_items,
            items_digest=self.items_digest,
            reason=self.reason,
            flags=tuple(self.flags),
            weights_digest=weights_digest,
            seconds=sum(self.seconds.values()),
            engine=self.engine,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        return dataclasses.asdict(self) | {"flags": list(self.flags)}

    @classmethod
    def from_cache(cls, stored: Mapping[str, Any]) -> EvalResult:
        """Rebuild a stored result; reading it back costs no time and no tokens."""
        free = {"seconds": dict.fromkeys(stored["seconds"], 0.0), "tokens_generated": 0}
        return cls(**{**stored, **free, "flags": tuple(stored["flags"]), "cached": True})


def new_item(item_id: str, cluster: str, prompt_digest: str, gold: Any) -> Item:
    """Return an item with every field of the record, those not measured being None."""
    return {
        "id": item_id,
        "cluster": cluster,
        "prompt_digest": prompt_digest,
        "output": None,
        "filtered": None,
        "gold": gold,
        "stop_reason": None,
        "tokens": None,
        "scores": {},
        "score": None,
        "lls": None,
        "outcome": None,
        "detail": None,
        "em": None,
        "em_lenient": None,
        "em_lenient_floor": None,
        "gold_ll": None,
        "gold_rank": None,
    }


def count_items(items: Sequence[Item]) -> dict[str, int]:
    """Return how many items ended in each stop reason and in each outcome class."""
    found = Counter(
        item[name] for item in items for name in ("stop_reason", "outcome") if item[name]
    )
    return dict(sorted(found.items()))


def cell_flags(items: Sequence[Item], *, limited: bool, truncated: bool) -> list[str]:
    """Return what a reader must know of the cell beside its score."""
    flags = []
    if limited:
        flags.append("limited")
    if truncated:
        flags.append("truncated")
    if sum(item["stop_reason"] == "length" for item in items) > MOST_LENGTH * len(items):
        flags.append("length")
    if len({item["cluster"] for item in items}) < FEW_ITEMS:
        flags.append("few_items")
    return flags


def run_code(
    items: Sequence[Item],
    docs: Sequence[Mapping[str, Any]],
    metric: str,
    isolation: sandbox.Isolation | None,
) -> None:
    """Execute each item's completion on its document's cases; writes outcome, detail, score.

    A program is the document's `prefix`, the completion and its `suffix`. Without isolation
    nothing runs and every outcome is `refused`.
    """
    if isolation is None:
        for item in items:
            item |= {"outcome": "refused", "detail": "isolation"}
        return
    jobs = [job(doc, item["output"]) for doc, item in zip(docs, items, strict=True)]
    verdicts = sandbox.run_many(jobs, isolation, workers=len(os.sched_getaffinity(0)))
    for item, verdict in zip(items, verdicts, strict=True):
        score = float(verdict.outcome == "pass")
        item |= {"outcome": str(verdict.outcome), "detail": verdict.detail, "score": score}
        item["scores"] = {metric: score}


def job(doc: Mapping[str, Any], completion: str) -> sandbox.Job:
    """Return the program that a completion makes, with the cases or asserts it must satisfy.

    A document's `cpu_seconds` take the place of the usual limit.
    """
    program = doc.get("prefix", "") + completion + doc.get("suffix", "")
    limits = sandbox.Limits()
    if "cpu_seconds" in doc:
        limits = sandbox.Limits(doc["cpu_seconds"], wall_seconds=2 * doc["cpu_seconds"])
    if "cases" not in doc:
        return sandbox.Job(program, limits=limits)
    cases = [(tuple(arguments), expected) for arguments, expected in doc["cases"]]
    return sandbox.Job(program, doc["entry_point"], cases, limits)


def code_score(items: Sequence[Item], isolation: sandbox.Isolation | None) -> Scored:
    """Return the share of programs that pass, or why there is none."""
    if isolation is None:
        return Scored(None, "refused", NO_ISOLATION)
    if any(item["outcome"] == "refused" for item in items):
        return Scored(None, "refused", NOT_STARTED)
    return Scored(math.fsum(item["score"] for item in items) / len(items))


def add_lenient(
    items: Sequence[Item],
    aliases: Mapping[str, Sequence[str]],
    outputs: Mapping[str, str],
    seed: str,
) -> None:
    """Write the lenient reading of open answers, and what rambling alone would have earned.

    `outputs` holds the long form of the items whose exact match is 0; where that is 1, so is
    the lenient one, and the short form is all there is.
    """
    partners = drift.derangement(aliases, seed)
    for item in items:
        output = outputs.get(item["id"], item["output"])
        right = item["em"] == 1 or drift.lenient_match(output, aliases[item["id"]])
        item["em_lenient"] = float(right)
        partner = aliases[partners[item["id"]]]
        item["em_lenient_floor"] = float(drift.lenient_match(output, partner))
        if item["id"] in outputs:
            item["long_output"] = output
