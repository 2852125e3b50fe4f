"""The phases of a run: their names, and a meter that times, shows and commits each."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from clbench import provenance

if TYPE_CHECKING:
    from clbench.preparation import Plan
    from clbench.progress import Progress
    from clbench.rundir import RunDirectory
    from clbench.training import StepLog

PHASES = ("calibrate", "train", "fold", "evaluate")


class Meter:
    """Times one phase, watches its memory, shows it, and commits it when it has succeeded."""

    def __init__(
        self,
        plan: Plan,
        book: RunDirectory,
        progress: Progress,
        row: int,
        phase: str,
        total: float | None = None,
    ) -> None:
        self.book, self.progress, self.device = book, progress, plan.device
        self.row, self.phase, self.total = row, phase, total
        self.facts: dict[str, Any] = {}
        self.name = phase_name(plan, row, phase)
        self._tokens = 0

    def __enter__(self) -> Self:
        self.progress.phase(self.name, self.total)
        self.book.event("start", row=self.row, phase=self.phase)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._started = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            return
        peak = {"host": provenance.peak_host_bytes()}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak["device"] = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.empty_cache()
        seconds = time.monotonic() - self._started
        changes = self.facts.pop("record", {})
        facts = {"seconds": seconds, "peak_bytes": peak, **self.facts}
        self.book.commit(self.row, self.phase, facts, **changes)

    def on_step(self, log: StepLog) -> None:
        """Show and log one optimizer step."""
        self.progress.advance(log.tokens_seen - self._tokens, loss=log.loss)
        self._tokens = log.tokens_seen
        facts = {"step": log.number, "loss": log.loss, "lr": log.lr, "tokens": log.tokens_seen}
        self.book.event("step", row=self.row, **facts)


def phase_name(plan: Plan, row: int, phase: str) -> str:
    """Return what the display calls a phase, e.g. "train math"."""
    what = "base" if row == 0 else plan.edition.tasks[row - 1].name
    if phase == "evaluate" and row > 0:
        return f"evaluate after {what}"
    return f"{phase} {what}"


def remaining(plan: Plan, book: RunDirectory) -> list[str]:
    """Return the names of the phases that are still to come, in order."""
    steps = [(0, "evaluate")]
    steps += [(row, p) for row in range(1, len(plan.edition.tasks) + 1) for p in PHASES]
    return [phase_name(plan, *step) for step in steps if not book.done(*step)]
