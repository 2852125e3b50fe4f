"""Checks of the measurement itself: batch size must not matter, code evals must discriminate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from clbench import decoding, evalcache, evalresult, sandbox
from clbench.config import EvalConfig
from clbench.evalplan import EvalPlan
from clbench.evalresult import EvalResult
from clbench.evaluation import Evaluator

NUM_ITEMS = 64
MOST_LL_DIFFERENCE = 1e-4  # nats per token, in float32
LEAST_SAME_OUTCOMES, LEAST_SAME_CHOICES = 0.98, 0.99  # in half precision


class Agreement(NamedTuple):
    """How one eval at batch size 1 compares with the same at the run's batch size."""

    num_items: int
    same_output: float  # share of items with the same text of the same length
    same_outcome: float  # share of items with the same score
    same_choice: float  # share of items with the same likeliest option
    ll_difference: float  # largest of an option, nats
    passed: bool


def check_batch_invariance(
    model: nn.Module, evaluator: Evaluator, eval_ids: Sequence[str] | None = None
) -> dict[str, Agreement]:
    """Score 64 items of each eval one by one and in batches, and compare.

    In float32 the outputs must be equal and log-likelihoods within 1e-4; in half precision
    98 % of the outcomes and 99 % of the choices must be. Code is not executed.
    """
    exact = next(model.parameters()).dtype is torch.float32
    found = {}
    for name in evaluator.evals if eval_ids is None else eval_ids:
        runs = []
        for batch_size in (1, evaluator.config.batch_size):
            samples = min(NUM_ITEMS, evaluator.config.samples or NUM_ITEMS)
            config = EvalConfig(samples=samples, batch_size=batch_size, rank_items=0)
            small = Evaluator(
                evaluator.model_info,
                evaluator.tokenizer,
                [evaluator.evals[name]],
                config,
                hub=evaluator.hub,
                chat=evaluator.chat,
            )
            runs.append(small.evaluate(model)[name])
        found[name] = compare(*runs, exact=exact)
    return found


def recalled_agreement(
    model: nn.Module, evaluator: Evaluator, weights_digest: str, cache_dir: Path
) -> dict[str, dict[str, Any]]:
    """Return each eval's agreement ready for JSON; checked once per weights, dtype and engine."""
    found = {}
    for name in evaluator.evals:
        identity = {"check": "batch.v1", **evaluator.identity(name, weights_digest)}
        stored = evalcache.load(cache_dir, identity)
        if stored is None:
            stored = check_batch_invariance(model, evaluator, [name])[name]._asdict()
            evalcache.store(cache_dir, identity, stored)
        found[name] = stored
    return found


def code_checks(evaluator: Evaluator) -> dict[str, dict[str, Any]]:
    """Return, for each eval that runs code, which of its items cannot tell right from wrong.

    Nothing is run without isolation, and once per items digest and backend where results are
    cached.
    """
    if evaluator.isolation is None:
        return {}
    found = {}
    for name, spec in evaluator.evals.items():
        if spec.execution:
            check = check_code_eval(evaluator.plan(name), evaluator.isolation, evaluator.cache_dir)
            found[name] = {
                "num_items": check.num_items,
                "failing_references": list(check.failing_references),
                "passing_empties": list(check.passing_empties),
            }
    return found


def compare(alone: EvalResult, together: EvalResult, *, exact: bool) -> Agreement:
    """Compare two results of one eval on the same items; `exact` asks for equal outputs."""
    pairs = list(zip(alone.items, together.items, strict=True))
    options = [(a["lls"], b["lls"]) for a, b in pairs if a["lls"] is not None]
    same_output = _share(
        a["output"] == b["output"] and a["tokens"] == b["tokens"] for a, b in pairs
    )
    same_outcome = _share(a["score"] == b["score"] for a, b in pairs)
    same_choice = _share(a.index(max(a)) == b.index(max(b)) for a, b in options)
    difference = max(
        (abs(x - y) for a, b in options for x, y in zip(a, b, strict=True)), default=0.0
    )
    passed = (
        same_output == 1 and difference <= MOST_LL_DIFFERENCE
        if exact
        else same_outcome >= LEAST_SAME_OUTCOMES and same_choice >= LEAST_SAME_CHOICES
    )
    return Agreement(len(pairs), same_output, same_outcome, same_choice, difference, passed)


def _share(truths: Any) -> float:
    listed = list(truths)
    return sum(listed) / len(listed) if listed else 1.0


@dataclass(frozen=True)
class CodeCheck:
    """Items of a code eval that cannot tell a right program from a wrong one."""

    num_items: int
    failing_references: tuple[str, ...]  # ids whose reference solution does not pass
    passing_empties: tuple[str, ...]  # ids that a body of nothing passes

    @property
    def passed(self) -> bool:
        """Return whether every reference passes and every emptied body fails."""
        return not self.failing_references and not self.passing_empties


def check_code_eval(
    plan: EvalPlan, isolation: sandbox.Isolation, cache_dir: Path | None = None
) -> CodeCheck:
    """Run the reference solutions, cut at the eval's stops, and the emptied ones.

    Documents need `reference` and `emptied`. With `cache_dir` it is done once per items digest
    and backend.
    """
    identity = {"check": "code.v1", "items": plan.items_digest, "isolation": isolation.name}
    if cache_dir is not None:
        stored = evalcache.load(cache_dir, identity)
        if stored is not None:
            return CodeCheck(
                stored["num_items"],
                tuple(stored["failing_references"]),
                tuple(stored["passing_empties"]),
            )
    stops = plan.stops or ()
    references = [decoding.cut_at_stops(doc["reference"], stops) for doc in plan.docs]
    emptied = [str(doc["emptied"]) for doc in plan.docs]
    jobs = [
        evalresult.job(doc, text)
        for texts in (references, emptied)
        for doc, text in zip(plan.docs, texts, strict=True)
    ]
    verdicts = sandbox.run_many(jobs, isolation, workers=len(os.sched_getaffinity(0)))
    passes = [verdict.outcome == "pass" for verdict in verdicts]
    size = len(plan.ids)
    failing = [name for name, ok in zip(plan.ids, passes[:size], strict=True) if not ok]
    passing = [name for name, ok in zip(plan.ids, passes[size:], strict=True) if ok]
    check = CodeCheck(size, tuple(failing), tuple(passing))
    if cache_dir is not None:
        evalcache.store(cache_dir, identity, asdict(check))
    return check
