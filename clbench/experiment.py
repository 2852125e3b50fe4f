"""The whole experiment on one page: calibrate, begin, train, end, evaluate, record."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from clbench import estimate, phases, recording, references, training
from clbench.adapters import adapted, find_targets
from clbench.checkpoint import Checkpoints
from clbench.config import RunConfig
from clbench.data import derived_seed
from clbench.errors import RunFailed
from clbench.hubcache import network_off
from clbench.movement import StartWeights, task_movement
from clbench.phases import Meter
from clbench.preparation import Plan, prepare
from clbench.progress import Progress, Silent
from clbench.results import Record
from clbench.rundir import RunDirectory
from clbench.sources import measure

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run(
    config: RunConfig,
    *,
    out: Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Record:
    """Run one strategy on one stream and return its record; go on with one that was interrupted.

    Raises UserError for what cannot be run, before anything is written, and RunFailed for a run
    that diverged, with its record kept.
    """
    progress = progress or Silent()
    try:
        with network_off() if config.locked else nullcontext():
            return carry_out(config, out or config.directory(), fresh, progress)
    finally:
        progress.done()


def carry_out(config: RunConfig, place: Path, fresh: bool, progress: Progress) -> Record:
    """Do what `run` promises, leaving the display open."""
    plan = prepare(config)
    with RunDirectory(place, recording.new_record(plan), fresh=fresh) as book:
        if book.record.status == "partial":
            if config.model != "tiny":
                needs = estimate.estimate(
                    *(config, plan.strategy, plan.device, plan.workload(), plan.hub.repositories)
                )
                progress.note(f"this run needs {needs.sentence()}")
                estimate.check(needs, plan.device, place)
                progress.note("the first run of a model checks that batches move no outcome")
            if config.eval.engine != recording.REFERENCE:
                progress.note(f"engine {config.eval.engine} is compared with the reference first")
            learn_stream(plan, book, progress)
        if book.record.status == "diverged":
            raise RunFailed(recording.divergence(book))
        if config.reference:
            references.attach(plan, book, progress)
        return book.record


def learn_stream(plan: Plan, book: RunDirectory, progress: Progress) -> None:
    """Carry out the phases that the record does not list yet, and complete it."""
    model: nn.Module = plan.loaded.model
    strategy = plan.strategy
    targets = find_targets(model, plan.config.targets)
    start = StartWeights(model, targets)
    checkpoints = Checkpoints(book.path / "weights", model)
    plan.read(progress)
    book.describe(**recording.description(plan, targets, book.record))
    for note in recording.notes(plan, book.record):
        progress.note(note)
    if book.checkpoint is not None:
        model = checkpoints.load(book.checkpoint, model, strategy)
    progress.plan(phases.remaining(plan, book))

    if not book.done(0, "evaluate"):
        with Meter(plan, book, progress, 0, "evaluate") as meter:
            meter.facts |= recording.evaluate(plan, book, model, 0)

    for row, task in enumerate(plan.edition.tasks, start=1):
        examples = plan.examples(task)
        context = plan.context(row - 1, examples, targets)

        if not book.done(row, "calibrate"):
            with Meter(plan, book, progress, row, "calibrate") as meter:
                torch.manual_seed(derived_seed("begin", plan.config.seed, row))
                measured = measure(plan, model, row - 1, targets)
                context.covariances = measured.covariances
                model = strategy.begin_task(model, context)
                context.covariances = {}
                meter.facts |= measured.finish(model) | recording.sizes(model)
                checkpoints.save(f"{row}-calibrate", model, strategy)
                for note in measured.notes:
                    progress.note(note)

        context.trained = dict(adapted(model))
        if not book.done(row, "train"):
            budget = plan.budget(task)
            with Meter(plan, book, progress, row, "train", budget) as meter:
                log = training.train(
                    cast("PreTrainedModel", model),
                    strategy,
                    context,
                    examples,
                    plan.config.train,
                    pad_id=plan.pad_id,
                    device=plan.device,
                    budget_tokens=budget,
                    on_step=meter.on_step,
                )
                meter.facts |= recording.training_facts(log)
                checkpoints.save(f"{row}-train", model, strategy)
            if log.diverged:
                recording.diverge(plan, book, row)
                return

        if not book.done(row, "fold"):
            with Meter(plan, book, progress, row, "fold") as meter:
                torch.manual_seed(derived_seed("end", plan.config.seed, row))
                meter.facts["dw_rel_task"] = task_movement(model)
                model = strategy.end_task(model, context)
                meter.facts["dw_rel"] = start.movement(model)
                meter.facts["strategy"] = strategy.facts()
                meter.facts["kept_bytes"] = recording.state_bytes(strategy.state())
                checkpoints.save(f"{row}-fold", model, strategy)
            checkpoints.prune(f"{row}-fold")

        if not book.done(row, "evaluate"):
            with Meter(plan, book, progress, row, "evaluate") as meter:
                meter.facts |= recording.evaluate(plan, book, model, row)

    recording.complete(book)
