"""What an experiment writes into its record: who, what, with which evals, at what cost."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

import clbench
from clbench import composition, engines, evalchecks, judge, models, provenance, rescoring
from clbench.adapters import fused_parameters
from clbench.config import EngineName
from clbench.dataset import Source
from clbench.excerpts import excerpt
from clbench.matrix import Cell, ScoreMatrix
from clbench.phases import PHASES
from clbench.results import Record, write_items
from clbench.stream import data_sets

if TYPE_CHECKING:
    from clbench.evalresult import EvalResult
    from clbench.preparation import Plan
    from clbench.rundir import RunDirectory
    from clbench.task import Task
    from clbench.training import TrainLog

REFERENCE: EngineName = "hf"
FLAGS = {"batch_agreement": "batch_dependent", "engine_agreement": "engine_disagrees"}


def new_record(plan: Plan) -> Record:
    """Return the record of a run that has not begun."""
    config, edition = plan.config, plan.edition
    return Record.model_validate(
        {
            "identity": {
                "run_id": config.digest()[:12],
                "suite_version": clbench.__version__,
                "started": provenance.now(),
                **provenance.commit(),
            },
            "config": {
                "stream": config.stream_name,
                "strategy": composition.label(plan.strategy),
                "params": composition.params_by_part(plan.strategy),
                "seed": config.seed,
                "order": config.order,
                "schedule": config.eval.schedule,
                "token_budget": config.train.model_dump(
                    include={"steps", "epochs", "tokens", "batch_size", "max_length"}
                ),
                "targets": config.targets,
                "trials": config.trials,
                "run": config.identity(),
            },
            "model": {"id": config.model, "revision": config.revision, "dtype": config.dtype},
            "matrix": ScoreMatrix(
                tasks=tuple(task.name for task in edition.tasks),
                task_evals={task.name: tuple(e.id for e in task.evals) for task in edition.tasks},
                world=tuple(e.id for e in edition.world),
            ),
            "provenance": {
                "command": sys.argv,
                "packages": provenance.versions() | engines.packages(config.eval.engine),
                "hardware": provenance.hardware(),
                "device": str(plan.device),
                "threads": torch.get_num_threads(),
                "locked": config.locked,
                "lock_digest": plan.hub.repositories.lock.digest() if config.locked else None,
                "phases": [],
            },
        }
    )


def description(plan: Plan, targets: Sequence[str], before: Record) -> dict[str, Any]:
    """Return the blocks of the record that say what is trained and scored, and on what.

    `before` is the record as it is: a run that goes on keeps the engine it has begun with.
    """
    config = new_record(plan).config.model_dump(mode="json") | {
        "targets": sorted({name.rpartition(".")[2] for name in targets}),
        "token_budget": {task.name: plan.budget(task) for task in plan.edition.tasks},
    }
    calibration = None
    source = plan.edition.calibration
    if source is not None:
        calibration = {
            **(source.identity() if isinstance(source, Source) else {}),
            "id": plan.edition.calibration_id,
            "text_digest": plan.calibration_digest,
            **plan.config.calibration.model_dump(include={"source", "num_windows", "window"}),
            "sources": _sources(plan, source),
        }
    tasks = {task.name: _task_block(plan, task) for task in plan.edition.tasks}
    return {
        "config": config,
        "model": plan.loaded.info
        | {
            "not_adapted": list(fused_parameters(plan.loaded.model)),
            "sources": [
                entry.model_dump(mode="json", include={"id", "revision", "files"})
                for entry in plan.hub.repositories.used.values()
                if entry.kind == "model"
            ],
        },
        "data": {"tasks": tasks, "calibration": calibration, "leak": plan.leaks()},
        "evals": _eval_blocks(plan, before),
    }


def _eval_blocks(plan: Plan, before: Record) -> dict[str, dict[str, Any]]:
    """Describe the evals, after it is settled which engine scores them.

    For a model other than tiny this also says whether the measurement holds up.
    """
    agreements = {"engine_agreement": _settle_engine(plan, before)}
    if plan.config.model != "tiny":  # its card says so, and tests hold for its programs
        agreements["batch_agreement"] = _agreement(plan, "batch.v1")
        agreements["code_check"] = evalchecks.code_checks(plan.evaluator)
    blocks = plan.evaluator.describe()
    for spec in plan.edition.measured:
        blocks[spec.id]["sources"] = plan.hub.sources(*data_sets(spec))
    for kind, found in agreements.items():
        for name, agreement in found.items():
            blocks[name][kind] = agreement
    return blocks


def _settle_engine(plan: Plan, before: Record) -> dict[str, Any]:
    """Compare the asked engine with the reference, which takes its place if they disagree."""
    evaluator = plan.evaluator
    if evaluator.config.engine == REFERENCE:
        return {}
    found = {
        name: extra["engine_agreement"]
        for name, block in before.evals.items()
        if "engine_agreement" in (extra := block.model_extra or {})
    } or _agreement(plan, "engine.v1")
    if not _all_passed(found.values()):
        evaluator.engine = REFERENCE
    return found


def _agreement(plan: Plan, check: str) -> dict[str, Any]:
    evaluator, cache = plan.evaluator, plan.evaluator.cache_dir
    assert cache is not None  # Plan gives one
    names = [spec.id for spec in plan.edition.evals if spec.id not in unjudged(plan)]
    model, base = plan.loaded.model, plan.loaded.info["weights_digest"]
    return evalchecks.recalled_agreement(check, model, evaluator, names, base, cache)


def _all_passed(agreements: Iterable[Any]) -> bool:
    return all(each is None or each["passed"] for each in agreements)


def _task_block(plan: Plan, task: Task) -> dict[str, Any]:
    """Say what is trained on: every row is an example, empty, too long, or an eval's question."""
    examples = plan.examples(task)
    counts = examples.facts
    left_out = counts["num_empty"] + counts["num_too_long"]
    return {
        **(task.train.identity() if isinstance(task.train, Source) else {}),
        **task.info,
        "license": task.license,
        "sources": _sources(plan, *(part.train for part in task.parts or (task,))),
        "num_rows": counts["num_rows"],
        "num_examples": len(examples),
        "num_empty": counts["num_empty"],
        "num_too_long": counts["num_too_long"],
        "num_in_evals": counts["num_rows"] - left_out - len(examples),
        "tokens": examples.num_tokens,
        "rows_digest": counts["rows_digest"],
        "example_row": _example_row(plan, task),
    }


def _example_row(plan: Plan, task: Task) -> dict[str, Any]:
    """Return, for readers, the first row of a task as a model reads it and is to write it."""
    row, chat = plan.first_row(task), plan.chat
    texts = (row.prompt, row.answer) if chat is None else (chat.prompt(row), chat.answer(row))
    return dict(zip(("prompt", "answer"), map(excerpt, texts), strict=True))


def _sources(plan: Plan, *read: Any) -> list[dict[str, Any]]:
    """Say which commit and files were read; what is generated has none."""
    return plan.hub.sources(*(each.data for each in read if isinstance(each, Source)))


def evaluate(plan: Plan, book: RunDirectory, model: nn.Module, row: int) -> dict[str, Any]:
    """Score a row, write its items, and return what its phase commits."""
    weights_digest = models.weights_digest(model)
    wanted = scheduled(plan, row)
    results = plan.evaluator.evaluate(model, wanted, weights_digest)
    for eval_id, result in results.items():
        write_items(book.path, row, eval_id, result.items)
    columns = book.record.matrix.evals
    found = {e: results[e].cell(weights_digest) for e in columns if e in results}
    missing = Cell(None, reason="not_scheduled")
    full = {e: found.get(e, missing) for e in columns}
    parts = [result.seconds for result in results.values()]
    return {
        "record": {"matrix": book.record.matrix.with_row(row, full)},
        "weights_digest": weights_digest,
        "diagnostics": diagnostics(plan, results),
        "tokens_generated": sum(result.tokens_generated for result in results.values()),
        "seconds_by_kind": {
            k: sum(p.get(k, 0.0) for p in parts) for k in sorted(set().union(*parts))
        },
        "evals": {name: {"note": judge.NO_JUDGE} for name in unjudged(plan)}
        | {
            eval_id: {
                "others": result.others,
                "counts": result.counts,
                "note": result.note,
                "cached": result.cached,
            }
            for eval_id, result in results.items()
        },
    }


def diagnostics(plan: Plan, results: Mapping[str, EvalResult]) -> dict[str, Any]:
    """Return what was measured beside the scores, by the id of the quantity."""
    found = {}
    for spec in plan.edition.diagnostics:
        if (result := results.get(spec.id)) is not None:
            name = f"{spec.metric.partition(',')[0]}.v1[{spec.id}]"
            measured = {"value": result.score, "num_items": result.num_items}
            found[name] = measured | {"flags": list(result.flags)}
    return found


def engine_of(record: Record) -> str:
    """Return the name of the engine that scored a run; a run has one."""
    block = next(iter(record.evals.values()))
    return str(cast(Mapping[str, Any], (block.model_extra or {})["engine"])["name"])


def notes(plan: Plan, record: Record) -> list[str]:
    """Return what the display says before the first phase: of engines and judges."""
    said = [judge.NO_JUDGE] if unjudged(plan) else []
    if "engine_disagrees" in flags(record):
        said.append(
            f"engine {plan.config.eval.engine} and the reference disagree on the base model; "
            f"{REFERENCE} scores the whole run"
        )
    return said


def unjudged(plan: Plan) -> set[str]:
    """Return the evals that a judge would rate, where there is none."""
    if plan.config.eval.judge is not None:
        return set()
    return {spec.id for spec in plan.edition.evals if spec.judged}


def scheduled(plan: Plan, row: int) -> list[str]:
    """Return the evals of a row: which tasks' the schedule asks for, the world's and diagnostics.

    What a judge would rate is left out where there is none.
    """
    tasks, schedule = plan.edition.tasks, plan.config.eval.schedule
    last = len(tasks)
    chosen = {
        "full": range(last),
        "band": range(row + 1),
        "lower": range(row),
        "ends": range(last) if row == last else range(row - 1, row),
    }[schedule]
    if row == 0 and schedule in ("band", "lower", "ends"):
        chosen = range(last)
    between = schedule == "ends" and 0 < row < last
    always = [] if between else [*plan.edition.world, *plan.edition.diagnostics]
    wanted = [e.id for j in chosen if j < last for e in tasks[j].evals] + [e.id for e in always]
    return [name for name in wanted if name not in unjudged(plan)]


def diverge(plan: Plan, book: RunDirectory, row: int) -> None:
    """Close the record of a run whose loss stopped being finite in the training of `row`."""
    matrix = book.record.matrix
    for later in range(row, len(matrix.tasks) + 1):
        reasons = {
            e: Cell(None, reason="diverged" if e in scheduled(plan, later) else "not_scheduled")
            for e in matrix.evals
        }
        matrix = matrix.with_row(later, reasons)
    book.save(matrix=matrix)
    _close(book, "diverged")


def complete(book: RunDirectory) -> None:
    """Compute the metrics and close the record of a run that went through."""
    refused = any(
        cell.reason == "refused" for row in book.record.matrix.rows for cell in row.values()
    )
    _close(book, "refused" if refused else "complete")


def _close(book: RunDirectory, status: str) -> None:
    record = book.record
    book.save(
        **rescoring.summarize_run(record, book.path)._asdict(),
        cost=cost(book.phases),
        flags=flags(record),
        identity=record.identity.model_dump() | {"finished": provenance.now()},
        status=status,
    )


def flags(record: Record) -> tuple[str, ...]:
    """Return the flags of the whole run: of its cells, leaks, batches that matter, engines."""
    found = {flag for row in record.matrix.rows for cell in row.values() for flag in cell.flags}
    leaks = cast(Mapping[str, Any], record.data.get("leak", {}))
    found |= set(cast(Sequence[str], leaks.get("flags", [])))
    for kind, flag in FLAGS.items():
        if not _all_passed(getattr(block, kind, None) for block in record.evals.values()):
            found.add(flag)
    checks = [getattr(block, "code_check", None) or {} for block in record.evals.values()]
    if any(each.get("failing_references") or each.get("passing_empties") for each in checks):
        found.add("code_check")
    return tuple(sorted(found))


def divergence(book: RunDirectory) -> str:
    """Say in one sentence where a run diverged."""
    last = next(p for p in reversed(book.phases) if p["phase"] == "train")
    task = book.record.matrix.tasks[last["row"] - 1]
    return (
        f"the loss of task {task} was not finite at step {last['steps']}; the record in "
        f"{book.path} keeps what was measured, with status diverged; a smaller --set train.lr "
        "may help"
    )


def sizes(model: nn.Module) -> dict[str, int]:
    """Return how many elements the model has and how many of them train, tied ones once."""
    return {
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def cost(phases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the finished phases cost in all, by the ids of the metrics."""
    found: dict[str, Any] = {}
    for name in PHASES:
        of_kind = [p for p in phases if p["phase"] == name]
        found[f"seconds.{name}.v1"] = sum(p["seconds"] for p in of_kind)
        for place in ("host", "device"):
            peaks = [p["peak_bytes"][place] for p in of_kind if place in p["peak_bytes"]]
            if peaks:
                found[f"peak_bytes.{place}.v1[{name}]"] = max(peaks)
    found["seconds.v1"] = sum(p["seconds"] for p in phases)
    for name in ("seen", "loss", "replayed", "calibrated", "generated"):
        found[f"tokens.{name}.v1"] = sum(p.get(f"tokens_{name}", 0) for p in phases)
    for name in ("trainable", "parameters", "kept_bytes"):
        values = [p[name] for p in phases if name in p]
        if values:
            found[f"{name}.v1"] = max(values)
    found["steps.v1"] = sum(p.get("steps", 0) for p in phases)
    return found


def training_facts(log: TrainLog) -> dict[str, Any]:
    """Return what the training of one task did, without its per-step values."""
    values = dataclasses.asdict(log)
    kept = {k: v for k, v in values.items() if k not in ("losses", "lrs", "seconds")}
    finite = [loss for loss in log.losses if math.isfinite(loss)]
    return {
        **kept,
        "steps": log.steps,
        "sum_lr": log.sum_lr,
        "first_loss": finite[0] if finite else None,
        "last_loss": sum(finite[-10:]) / len(finite[-10:]) if finite else None,
    }


def state_bytes(state: Any) -> int:
    """Return the bytes that a strategy keeps between tasks: tensors, text, numbers."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(state_bytes(value) for value in state.values())
    if isinstance(state, str):
        return len(state.encode())
    if isinstance(state, list | tuple | set | frozenset):
        return sum(state_bytes(value) for value in state)
    return 8 if isinstance(state, int | float) else 0
