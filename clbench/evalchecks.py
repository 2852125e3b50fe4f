"""Checks of the measurement itself: batch size must not matter, code evals must discriminate."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from clbench import decoding, evalcache, evalresult, sandbox
from clbench.config import EngineName, EvalConfig
from clbench.evalplan import EvalPlan
from clbench.evalresult import EvalResult
from clbench.evaluation import Evaluator

NUM_ITEMS = 64
MOST_LL_DIFFERENCE = 1e-4  # nats per token, in float32
LEAST_SAME_OUTCOMES, LEAST_SAME_CHOICES = 0.98, 0.99  # in half precision, and of engines
NUM_ENGINE_ITEMS = 200
MOST_SCORE_DIFFERENCE = 0.01  # of two engines
ROUNDING = 1e-12


Check = Callable[[nn.Module, Evaluator, Sequence[str]], Mapping[str, Any]]


class Agreement(NamedTuple):
    """How one eval at batch size 1 compares with the same at the run's batch size."""

    num_items: int
    same_output: float  # share of items with the same text of the same length
    same_outcome: float  # share of items with the same score
    same_choice: float  # share of items with the same likeliest option
    ll_difference: float  # largest of an option, nats
    passed: bool


class EngineAgreement(NamedTuple):
    """How another engine compares with the reference on the same items of one eval."""

    num_items: int
    same_output: float  # share of items with the same text of the same length
    same_outcome: float  # share of items with the same score
    score_difference: float
    passed: bool


def check_batch_invariance(
    model: nn.Module, evaluator: Evaluator, eval_ids: Sequence[str] | None = None
) -> dict[str, Agreement]:
    """Score 64 items of each eval one by one and in batches, and compare.

    In float32 the outputs must be equal and log-likelihoods within 1e-4; in half precision
    98 % of the outcomes and 99 % of the choices must be. Code is not executed.
    """
    exact = next(model.parameters()).dtype is torch.float32
    sizes = (1, evaluator.config.batch_size)
    alone, together = (
        _smaller(evaluator, NUM_ITEMS, eval_ids, batch_size=size).evaluate(model) for size in sizes
    )
    return {name: compare(alone[name], together[name], exact=exact) for name in alone}


def check_engine(
    model: nn.Module, evaluator: Evaluator, eval_ids: Sequence[str] | None = None
) -> dict[str, EngineAgreement]:
    """Score 200 items of each eval by the evaluator's engine and by the reference, and compare.

    98 % of the outcomes must be the same, and the scores within 0.01.
    """
    theirs, ours = (
        _smaller(
            evaluator, NUM_ENGINE_ITEMS, eval_ids, engine=engine, isolation=evaluator.isolation
        ).evaluate(model)
        for engine in (evaluator.engine, EvalConfig().engine)
    )
    return {name: compare_engines(theirs[name], ours[name]) for name in ours}


def _smaller(
    evaluator: Evaluator,
    samples: int,
    eval_ids: Sequence[str] | None,
    *,
    batch_size: int | None = None,
    engine: EngineName | None = None,
    isolation: sandbox.Isolation | None = None,
) -> Evaluator:
    """Return the same evaluation of fewer items, without cache, ranks and judge."""
    config = evaluator.config
    wanted = evaluator.evals if eval_ids is None else eval_ids
    return Evaluator(
        evaluator.model_info,
        evaluator.tokenizer,
        [evaluator.evals[name] for name in wanted],
        EvalConfig(
            samples=min(samples, config.samples or samples),
            batch_size=batch_size or config.batch_size,
            rank_items=0,
            engine=engine or evaluator.engine,
        ),
        isolation=isolation,
        hub=evaluator.hub,
        chat=evaluator.chat,
    )


CHECKS: dict[str, Check] = {"batch.v1": check_batch_invariance, "engine.v1": check_engine}


def recalled_agreement(
    check: str,
    model: nn.Module,
    evaluator: Evaluator,
    eval_ids: Sequence[str],
    weights_digest: str,
    cache_dir: Path,
) -> dict[str, dict[str, Any]]:
    """Return what one of CHECKS finds, by eval, ready for JSON.

    It is made once per weights, dtype, engine and whatever else decides an eval.
    """
    identities = {
        name: {"check": check, **evaluator.identity(name, weights_digest)} for name in eval_ids
    }
    stored = {name: evalcache.load(cache_dir, identities[name]) for name in eval_ids}
    missing = [name for name in eval_ids if stored[name] is None]
    made = CHECKS[check](model, evaluator, missing) if missing else {}
    for name, agreement in made.items():
        evalcache.store(cache_dir, identities[name], agreement._asdict())
    return {name: stored[name] or made[name]._asdict() for name in eval_ids}


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


def compare_engines(theirs: EvalResult, ours: EvalResult) -> EngineAgreement:
    """Compare two results of one eval on the same items."""
    pairs = list(zip(theirs.items, ours.items, strict=True))
    same_output = _share(a["output"] == b["output"] for a, b in pairs)
    same_outcome = _share(a["score"] == b["score"] for a, b in pairs)
    difference = 0.0  # of code that is not run here
    if theirs.score is not None and ours.score is not None:
        difference = abs(theirs.score - ours.score)
    passed = same_outcome >= LEAST_SAME_OUTCOMES and difference <= MOST_SCORE_DIFFERENCE + ROUNDING
    return EngineAgreement(len(pairs), same_output, same_outcome, difference, passed)


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
