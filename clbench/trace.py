"""The stability gap, read off evaluations during training (De Lange et al., arXiv 2205.13452)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clbench.matrix import Metric, ScoreMatrix

WINDOW = 10  # evaluations


@dataclass(frozen=True)
class Trace:
    """Scores by task during training; steps count over the whole stream.

    `ends` holds the step at which each task ended; `points` maps a task (from 1) to its
    recorded (step, score), ascending. `grid` says how fine that is: the steps between
    evaluations, or "task" for the rows of the matrix alone.
    """

    ends: tuple[int, ...]
    points: Mapping[int, Sequence[tuple[int, float]]]
    grid: str

    @classmethod
    def from_json(cls, value: Mapping[str, Any], matrix: ScoreMatrix) -> Trace:
        """Build a trace from {eval_every, ends, points: [{step, scores: {eval id: score}}]}."""
        points: dict[int, list[tuple[int, float]]] = {}
        for point in value["points"]:
            for j, task in enumerate(matrix.tasks, start=1):
                members = matrix.task_evals[task]
                if all(member in point["scores"] for member in members):
                    score = math.fsum(point["scores"][m] for m in members) / len(members)
                    points.setdefault(j, []).append((point["step"], score))
        return cls(tuple(value["ends"]), points, str(value["eval_every"]))

    def score_at(self, task: int, step: int) -> float | None:
        """Return the score of a task at a step, None if it was not evaluated there."""
        return dict(self.points.get(task, ())).get(step)


def min_acc(trace: Trace, k: int) -> Metric:
    """Return the mean over tasks i < k of the lowest score after t_i and up to t_k."""
    if k < 2:
        return Metric(None, reason="needs_two_tasks", grid=trace.grid)
    lowest = []
    missing = []
    for i in range(1, k):
        window = (trace.ends[i - 1], trace.ends[k - 1])
        scores = [a for n, a in trace.points.get(i, ()) if window[0] < n <= window[1]]
        if scores:
            lowest.append(min(scores))
        else:
            missing.append(f"A(E_{i}, {window[0]}..{window[1]}]")
    if missing:
        return Metric(None, k - 1, tuple(missing), "missing", grid=trace.grid)
    return Metric(math.fsum(lowest) / (k - 1), k - 1, grid=trace.grid)


def wc_acc(trace: Trace, k: int) -> Metric:
    """Return (1/k) A(E_k, t_k) + (1 - 1/k) min_acc[k]; for k = 1, A(E_1, t_1)."""
    own = trace.score_at(k, trace.ends[k - 1])
    if own is None:
        return Metric(None, 1, (f"A(E_{k}, {trace.ends[k - 1]})",), "missing", grid=trace.grid)
    if k == 1:
        return Metric(own, 1, grid=trace.grid)
    lowest = min_acc(trace, k)
    if lowest.value is None:
        return Metric(None, 1, lowest.missing, lowest.reason, grid=trace.grid)
    return Metric(own / k + (1 - 1 / k) * lowest.value, 1, grid=trace.grid)


def largest_change(trace: Trace, window: int, sign: int) -> Metric:
    """Return the largest fall (sign -1) or rise (1) of one eval within so many evaluations."""
    changes = [
        sign * (scores[b] - scores[a])
        for points in trace.points.values()
        for scores in [[score for _, score in points]]
        for a in range(len(scores))
        for b in range(a + 1, min(a + window, len(scores)))
    ]
    if not changes:
        return Metric(None, 0, reason="missing", grid=trace.grid)
    return Metric(max(changes), len(changes), grid=trace.grid)


def window_drop(trace: Trace, window: int = WINDOW) -> Metric:
    """Return the largest A[a] - A[b] over evaluations a < b <= a + window - 1 of one eval."""
    return largest_change(trace, window, -1)


def window_rise(trace: Trace, window: int = WINDOW) -> Metric:
    """Return the largest A[b] - A[a] over evaluations a < b <= a + window - 1 of one eval."""
    return largest_change(trace, window, 1)


def trace_metrics(trace: Trace) -> dict[str, Metric]:
    """Return every metric of a trace by id."""
    ks = range(1, len(trace.ends) + 1)
    metrics = {f"min_acc.v1[{k}]": min_acc(trace, k) for k in ks if k > 1 or len(ks) == 1}
    metrics |= {f"wc_acc.v1[{k}]": wc_acc(trace, k) for k in ks}
    return metrics | {
        f"window_drop.v1[{WINDOW}]": window_drop(trace),
        f"window_rise.v1[{WINDOW}]": window_rise(trace),
    }
