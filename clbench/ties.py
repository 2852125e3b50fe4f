"""Which rows of a board differ, which tie, and the interval of ranks that leaves to each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from clbench.bootstrap import Array, Interval, p_value, percentile_interval
from clbench.statistics import crossed, holm, hull, pooled, rank_intervals, t_estimate

FEW_SEEDS = 3  # fewer matched seeds show no difference
SMALLEST_DIFFERENCE = 0.005
ALPHA = 0.05


@dataclass(frozen=True)
class Row:
    """One strategy in one column of a board, higher being better.

    `values` maps a seed to its value, None if that run has none (it diverged, say); `samples`
    maps a seed to the same value on every item resample (B,), shared by all rows and seeds.
    """

    name: str
    values: Mapping[int, float | None]
    samples: Mapping[int, Array]

    @property
    def ranked(self) -> bool:
        """Return whether the row may have a rank: at least 3 seeds, and each has a value."""
        return len(self.values) >= FEW_SEEDS and None not in self.values.values()


@dataclass(frozen=True)
class Standing:
    """Where a row stands: its mean over seeds and the best and worst rank it may have."""

    name: str
    mean: float | None  # None if a seed has no value: it never vanishes from the mean
    num_seeds: int
    best: int | None = None
    worst: int | None = None


@dataclass(frozen=True)
class Pair:
    """The paired difference of two rows over matched seeds and shared items."""

    a: str
    b: str
    difference: float  # a - b
    interval: Interval | None  # hull of t over seeds and of seeds crossed with items
    p: float
    p_holm: float
    differs: bool


def rank_rows(rows: Sequence[Row]) -> tuple[list[Standing], list[Pair]]:
    """Return the rows by mean with their rank intervals, unranked ones last, and all pairs.

    Two rows differ only if they share at least 3 seeds, the hull interval of their difference
    excludes 0, the larger of the crossed and the pooled p passes Holm over all pairs, and the
    difference is at least half a point; otherwise they tie.
    """
    ranked = sorted((r for r in rows if r.ranked), key=lambda r: -(mean_of(r) or 0.0))
    pairs = compare_rows(ranked)
    place = {row.name: i for i, row in enumerate(ranked)}
    better = [
        (place[p.a], place[p.b]) if p.difference > 0 else (place[p.b], place[p.a])
        for p in pairs
        if p.differs
    ]
    standings = [
        Standing(row.name, mean_of(row), len(row.values), best, worst)
        for row, (best, worst) in zip(ranked, rank_intervals(len(ranked), better), strict=True)
    ]
    rest = [Standing(r.name, mean_of(r), len(r.values)) for r in rows if not r.ranked]
    return standings + rest, pairs


def mean_of(row: Row) -> float | None:
    """Return the mean over seeds, None if a seed has no value."""
    known = [value for value in row.values.values() if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(row.values) else None


def compare_rows(rows: Sequence[Row]) -> list[Pair]:
    """Return every pair of ranked rows on the seeds that all of them share."""
    seeds = sorted(set.intersection(*(set(row.values) for row in rows))) if rows else []
    if len(rows) < 2 or len(seeds) < FEW_SEEDS:
        return []
    values = np.array([[row.values[seed] for seed in seeds] for row in rows], dtype=np.float64)
    pooled_p = pooled(values).p
    measured: list[tuple[int, int, float, Interval | None, float]] = []
    for i, j in combinations(range(len(rows)), 2):
        estimate = t_estimate((values[i] - values[j]).tolist())
        samples = np.stack([rows[i].samples[s] - rows[j].samples[s] for s in seeds])
        draws = crossed(samples, seeds)
        interval = hull(estimate.interval, percentile_interval(draws))
        p = max(p_value(draws), float(pooled_p[i, j]))
        measured.append((i, j, estimate.mean, interval, p))
    adjusted = holm([p for *_, p in measured])
    return [
        Pair(
            rows[i].name,
            rows[j].name,
            difference,
            interval,
            p,
            p_holm,
            differs(difference, interval, p_holm),
        )
        for (i, j, difference, interval, p), p_holm in zip(measured, adjusted, strict=True)
    ]


def differs(difference: float, interval: Interval | None, p_holm: float) -> bool:
    """Return whether a difference over enough seeds counts as one, or is a tie."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return False
    return p_holm <= ALPHA and abs(difference) >= SMALLEST_DIFFERENCE - 1e-12
