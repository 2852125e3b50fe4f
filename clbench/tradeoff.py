"""The trade-off frontier of a sweep: tasks learned (x) against world knowledge kept (y)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """One setting of a sweep, each coordinate a mean over seeds; higher is better in both."""

    x: float
    y: float


def dominates(p: Point, q: Point) -> bool:
    """Return whether p is at least as good as q in both coordinates and better in one."""
    return p.x >= q.x and p.y >= q.y and p != q


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that none dominates, in the order given; equal points are all kept."""
    return [q for q in points if not any(dominates(p, q) for p in points)]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the area that the points dominate above a reference point.

    For `hv_raw.v1` the reference is (mean base score on the tasks, 0) with x = final_avg; for
    `hv_rel.v1` it is (0, 0) with x = rel_pooled.
    """
    above = {p for p in points if p.x > reference.x and p.y > reference.y}
    area, height = 0.0, reference.y
    for p in sorted(above, reverse=True):  # from the right, each adds what rises above the last
        if p.y > height:
            area += (p.x - reference.x) * (p.y - height)
            height = p.y
    return area


def keep_at(points: Sequence[Point], x: float) -> float | None:
    """Return the best y among points that reach x, `keep_at.v1`; None if none does."""
    return max((p.y for p in points if p.x >= x), default=None)
