"""How sure a number is: tests between artifacts, intervals over seeds, pooled errors, ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr, stdtr, stdtrit

from clbench.bootstrap import Array, Interval, stream

FLIPS = 10_000
OUTLYING = 4.0  # times the pooled variance: such a row leaves the pool


def mcnemar(n10: int, n01: int) -> float:
    """Return the exact two-sided p of McNemar's test on the discordant items."""
    discordant = n10 + n01
    if discordant == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(n10, n01), discordant, 0.5)))


def sign_flip(differences: Array, eval_id: str, items_digest: str) -> float:
    """Return the p of the paired sign-flip permutation test, `perm.v1`, on unit differences."""
    generator = stream("perm.v1", eval_id, items_digest)
    observed = abs(math.fsum(differences))
    tolerance = 1e-12 * max(1.0, float(np.abs(differences).sum()))
    rows = max(1, (1 << 20) // len(differences))
    extreme = 0
    for start in range(0, FLIPS, rows):
        size = (min(rows, FLIPS - start), len(differences))
        signs = 2.0 * generator.integers(0, 2, size=size) - 1.0
        extreme += int((np.abs(signs @ differences) >= observed - tolerance).sum())
    return (1 + extreme) / (FLIPS + 1)


class Estimate(NamedTuple):
    """A mean over seeds with its interval and the p of its being 0; None for one seed."""

    mean: float
    interval: Interval | None
    p: float | None


def t_estimate(values: Sequence[float]) -> Estimate:
    """Return mean ± t·sd/√S over seeds, `seeds.v1`; for two strategies, of the differences."""
    size, mean = len(values), math.fsum(values) / len(values)
    if size < 2:
        return Estimate(mean, None, None)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (size - 1))
    half = float(stdtrit(size - 1, 0.975)) * sd / math.sqrt(size)
    return Estimate(
        mean, (mean - half, mean + half), two_sided(mean, sd / math.sqrt(size), size - 1)
    )


def two_sided(difference: float, error: float, df: int) -> float:
    """Return the two-sided p of a difference by Student's t; 0 or 1 where the error is 0."""
    if error == 0.0:
        return 1.0 if difference == 0.0 else 0.0
    return 2 * float(stdtr(df, -abs(difference) / error))


def crossed(samples: Array, seeds: Sequence[int]) -> Array:
    """Return resampled means over seeds and items, `crossed.v1`; (seeds, B) to (B,).

    Row s holds the metric of seed s on the shared item resamples. Each resample draws the
    seeds with replacement and reads all of them on the same items, because the same items
    were answered under every seed (Owen 2007, crossed random effects).
    """
    size, resamples = samples.shape
    generator = stream("crossed.v1", *(str(seed) for seed in seeds))
    drawn = generator.integers(0, size, size=(resamples, size))
    return np.asarray(samples[drawn, np.arange(resamples)[:, None]].mean(axis=1))


def hull(a: Interval | None, b: Interval | None) -> Interval | None:
    """Return the smallest interval holding both, None if one is unknown."""
    return None if a is None or b is None else (min(a[0], b[0]), max(a[1], b[1]))


def seed_values(runs: Mapping[tuple[int, tuple[int, ...]], float]) -> dict[int, float] | None:
    """Return each seed's mean over orders, None unless every seed ran every order."""
    seeds, orders = {seed for seed, _ in runs}, {order for _, order in runs}
    if len(runs) != len(seeds) * len(orders):
        return None
    return {
        seed: math.fsum(runs[seed, order] for order in orders) / len(orders)
        for seed in sorted(seeds)
    }


class Pooled(NamedTuple):
    """The pooled error of a board's column and the p of every pair (rows, rows)."""

    mse: float
    df: int
    p: Array
    outlying: tuple[int, ...]


def pooled(values: Array) -> Pooled:
    """Compare rows over matched seeds (rows, seeds) with one pooled error, `pooled.v1`.

    A two-way layout without interaction: the mean square of its residuals stands for the
    noise of every row. A row whose own residual variance exceeds 4 times the pooled one
    leaves the pool and is compared by pairwise t.
    """
    num_rows, num_seeds = values.shape
    mse, own = residual_variances(values)
    outlying = tuple(int(i) for i in np.flatnonzero(own > OUTLYING * mse))
    inside = [i for i in range(num_rows) if i not in outlying]
    if outlying:
        mse, _ = residual_variances(values[inside])
    df = (len(inside) - 1) * (num_seeds - 1)
    means = [math.fsum(row) / num_seeds for row in values]
    p = np.ones((num_rows, num_rows))
    for i in range(num_rows):
        for j in range(i):
            if i in outlying or j in outlying:
                pair = t_estimate((values[i] - values[j]).tolist()).p
            else:
                pair = two_sided(means[i] - means[j], math.sqrt(2 * mse / num_seeds), df)
            p[i, j] = p[j, i] = 1.0 if pair is None else pair
    return Pooled(mse, df, p, outlying)


def residual_variances(values: Array) -> tuple[float, Array]:
    """Return the pooled residual variance of (rows, seeds) and each row's own."""
    num_rows, num_seeds = values.shape
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    df = (num_rows - 1) * (num_seeds - 1)
    squares = (rest**2).sum(axis=1)  # (rows,); the mean of `own` is the pooled variance
    return float(squares.sum()) / df, np.asarray(squares * num_rows / df)


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values, in the order given."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def rank_intervals(num_rows: int, better: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (best, worst) rank of each row, given the pairs (better, worse) that differ."""
    ahead, behind = [0] * num_rows, [0] * num_rows
    for winner, loser in better:
        behind[winner] += 1
        ahead[loser] += 1
    return [(1 + ahead[i], num_rows - behind[i]) for i in range(num_rows)]


class Detectable(NamedTuple):
    """What a test set of so many items can show, as scores in 0..1."""

    standard_error: float
    unpaired: float  # smallest difference of two independent artifacts at 95 %


def detectable(num_items: int, score: float) -> Detectable:
    """Return the standard error of a score and the unpaired difference it can show."""
    error = math.sqrt(score * (1 - score) / num_items)
    return Detectable(error, 1.96 * math.sqrt(2) * error)


def paired_detectable(num_items: int, discordant: float) -> float:
    """Return the smallest true difference found with power 0.80 at two-sided 0.05.

    Two artifacts answer the same items; `discordant` is the share they answer differently.
    """
    shift = 2.80 * math.sqrt(discordant / num_items)
    spread = 0.84 * math.sqrt(discordant - shift**2)
    return (1.96 * math.sqrt(discordant) + spread) / math.sqrt(num_items)
