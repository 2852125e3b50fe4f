"""The paired bootstrap over items, `boot.v1`: the same resamples for every row and strategy."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Interval = tuple[float, float]
Key = TypeVar("Key", bound=Hashable)

RESAMPLES = 10_000
FEW_UNITS = 50  # below this an interval is shown with the flag few_items
MOST_DROPPED = 0.01  # share of resamples in which a guard may fire
CHUNK = 1 << 17  # resampled units held at once


def stream(name: str, *parts: str) -> np.random.Generator:
    """Return the generator of a named random stream, seeded by BLAKE2b-64 of its parts."""
    text = "|".join(("clbench", name, *parts))
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    return np.random.Generator(np.random.PCG64(seed))


def index_chunks(
    eval_id: str, items_digest: str, num_units: int, resamples: int = RESAMPLES
) -> Iterator[Integers]:
    """Yield the index matrix (resamples, units) of an eval in chunks of rows."""
    generator = stream("boot.v1", eval_id, items_digest)
    rows = max(1, CHUNK // num_units)
    for start in range(0, resamples, rows):
        yield generator.integers(0, num_units, size=(min(rows, resamples - start), num_units))


def units_of(clusters: Sequence[str]) -> Integers:
    """Return the unit (0, 1, ... by first appearance) of each item; a cluster is one unit."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(c, len(numbers)) for c in clusters], dtype=np.int64)


def resample_sums(
    eval_id: str,
    items_digest: str,
    units: Integers,
    columns: Mapping[Key, Array],
    resamples: int = RESAMPLES,
) -> dict[Key, Array]:
    """Return, per column of item values (items,), its sum on every resample (resamples,).

    Equal columns give bit-equal sums, so what is compared with itself differs by exactly 0.
    """
    num_units = int(units.max()) + 1
    names = {key: np.ascontiguousarray(column).tobytes() for key, column in columns.items()}
    distinct = {names[key]: column for key, column in columns.items()}
    per_unit = {
        name: np.bincount(units, weights=column, minlength=num_units)
        for name, column in distinct.items()
    }
    parts: dict[bytes, list[Array]] = {name: [] for name in distinct}
    for indices in index_chunks(eval_id, items_digest, num_units, resamples):
        rows = len(indices)
        flat = (indices + num_units * np.arange(rows)[:, None]).ravel()
        counts = np.bincount(flat, minlength=rows * num_units).reshape(rows, num_units)
        drawn = counts.astype(np.float64)
        for name, values in per_unit.items():
            parts[name].append(drawn @ values)  # one product per column: equal in, equal out
    sums = {name: np.concatenate(chunks) for name, chunks in parts.items()}
    return {key: sums[name] for key, name in names.items()}


def percentile_interval(samples: Array) -> Interval | None:
    """Return the 95 % percentile interval; None if a guard fired in more than 1 % of them."""
    defined = samples[~np.isnan(samples)]
    if len(samples) - len(defined) > MOST_DROPPED * len(samples):
        return None
    low, high = np.quantile(defined, [0.025, 0.975], method="linear")
    return float(low), float(high)


def p_value(differences: Array) -> float:
    """Return the two-sided p of a difference from its resamples; at least 2 / (B + 1)."""
    defined = differences[~np.isnan(differences)]
    below = (1 + int((defined <= 0).sum())) / (len(defined) + 1)
    above = (1 + int((defined >= 0).sum())) / (len(defined) + 1)
    return min(1.0, 2 * min(below, above))


def num_resamples(num_rows: int) -> int:
    """Return how many resamples Holm needs for all pairs of so many rows."""
    return max(RESAMPLES, 80 * (num_rows * (num_rows - 1) // 2))
