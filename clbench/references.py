"""Reference runs: ordinary runs of an ordinary strategy that a result is compared with.

`single` trains each task alone from the base model, `joint` trains all of them together with
the sum of their budgets. `base` is row 0 of every run and costs nothing. They go where any run
of their configuration goes, so that every strategy of the stream shares them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clbench import api, recording, rescoring
from clbench.errors import RunFailed
from clbench.matrix import References
from clbench.results import Record, read_items, write_items

if TYPE_CHECKING:
    from clbench.config import EvalConfig, RunConfig
    from clbench.preparation import Plan
    from clbench.progress import Progress
    from clbench.rundir import RunDirectory


RECIPE = "lora"  # the strategy that a reference trains with, under its own settings


def configurations(plan: Plan, engine: str) -> dict[str, RunConfig]:
    """Return the runs that the asked references need, by name: "single <task>", "joint".

    `engine` is what scored the run that they are compared with.
    """
    found: dict[str, RunConfig] = {}
    scored = plan.config.eval.model_copy(update={"engine": engine})
    if "single" in plan.config.reference:
        for task in plan.edition.tasks:
            found[f"single {task.name}"] = _configuration(plan.config, scored, tasks=(task.name,))
    if "joint" in plan.config.reference:
        found["joint"] = _configuration(plan.config, scored, joint=True)
    return found


def _configuration(config: RunConfig, scored: EvalConfig, **what: Any) -> RunConfig:
    known = api.resolve(
        config.stream, RECIPE, model=config.model, data=config.data, preset=config.preset, **what
    )
    return config.model_copy(
        update={
            "strategy": RECIPE,
            "params": known.params,
            "train": config.train.model_copy(update={"lr": known.train.lr}),
            "trials": known.trials,
            "eval": scored,
            "reference": (),
            "order": None,
            **what,
        }
    )


def attach(plan: Plan, book: RunDirectory, progress: Progress) -> None:
    """Run the references that are missing and score the record against all of them.

    Their items are copied beside the run's own, so that it can be scored again without them.
    Raises RunFailed for a reference without a score.
    """
    from clbench import experiment

    scores: dict[str, dict[str, float]] = {}
    sources: dict[str, tuple[str, ...]] = {}
    scored_by = recording.engine_of(book.record)
    for name, config in configurations(plan, scored_by).items():
        progress.note(f"reference {name}")
        record = experiment.carry_out(config, config.directory(), False, progress)
        kind, _, alone = name.partition(" ")
        sources[kind] = (*sources.get(kind, ()), record.record_digest())
        last = len(record.matrix.rows) - 1
        for task in plan.edition.tasks:
            if alone in ("", task.name):
                evals = [e.id for e in task.evals]
                scores.setdefault(kind, {})[task.name] = _score(record, evals)
                for eval_id in evals:
                    items = read_items(config.directory(), last, eval_id)
                    write_items(book.path, kind, eval_id, items)
    found = book.record.replace(references=References(**scores, sources=sources))
    summary = rescoring.summarize_run(found, book.path)
    book.save(references=found.references, **summary._asdict())


def _score(record: Record, evals: Sequence[str]) -> float:
    matrix = record.matrix
    scores = [matrix.score(len(matrix.rows) - 1, e) for e in evals]
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        raise RunFailed(f"reference run {record.identity.run_id} has no score on {evals}")
    return math.fsum(known) / len(known)
