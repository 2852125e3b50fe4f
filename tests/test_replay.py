"""Replay memories and the guard that feeds from them: what is stored, what is drawn, and when."""

from __future__ import annotations

import pytest
import torch
from clbench_strategies.reservoir import BalancedReservoir, Reservoir
from scipy.stats import chisquare

from clbench.linalg import seeded_generator
from clbench.strategy import Example


def rows(num: int, task: str = "a") -> list[Example]:
    """Return distinct examples of 3 to 6 tokens with an answer of 2."""
    return [
        Example(
            ids=tuple(3 + (i * 7 + k) % 60 for k in range(3 + i % 4)),
            loss_mask=(*[False] * (1 + i % 4), True, True),
            task=task,
            index=i,
        )
        for i in range(num)
    ]


def uniformity(counts: torch.Tensor, kept: int) -> float:
    """Return what is chi-square with n - 1 degrees if each run keeps `kept` of n uniformly."""
    num = len(counts)  # the examples of one run exclude one another, which shrinks the variance
    statistic: float = chisquare(counts.numpy()).statistic
    return statistic / (1 - kept / num) * (num - 1) / num


def fill(memory, examples):
    for example in examples:
        memory.offer(example)
    return memory


# The memories


def test_a_reservoir_keeps_early_and_late_examples_with_equal_probability() -> None:
    examples, runs, capacity = rows(100), 2000, 10
    generator = seeded_generator(0, "inclusion")
    counts = torch.zeros(len(examples))
    for _ in range(runs):
        kept = [e.index for e in fill(Reservoir(capacity, generator), examples).items]
        assert len(set(kept)) == capacity
        counts[kept] += 1
    expected = runs * capacity / len(examples)  # 200 each
    assert counts.sum() == runs * capacity
    assert 60 < uniformity(counts, capacity) < 149  # 99 degrees of freedom: 1e-3 on either side
    assert counts[:10].mean() == pytest.approx(expected, rel=0.06)
    assert counts[-10:].mean() == pytest.approx(expected, rel=0.06)


def test_a_reservoir_with_room_keeps_everything_in_order() -> None:
    examples = rows(7)
    assert fill(Reservoir(10, seeded_generator(0)), examples).items == examples


@pytest.mark.parametrize("kind", [Reservoir, BalancedReservoir])
def test_a_reloaded_memory_goes_on_as_the_first_would(kind) -> None:
    first = fill(kind(8, seeded_generator(1)), rows(30))
    state = first.state()
    twin = kind.load(state, seeded_generator(2))
    first.generator.set_state(seeded_generator(2).get_state())
    for memory in (first, twin):
        fill(memory, rows(30, "b"))
    assert twin.items == first.items
    assert twin.state() == first.state() != state
    assert fill(kind(8, seeded_generator(1)), rows(30)).state() == state


def test_a_balanced_memory_gives_each_task_its_share() -> None:
    memory = BalancedReservoir(11, seeded_generator(3))
    sizes = []
    for task, num in (("a", 100), ("b", 20), ("c", 40), ("d", 2)):
        held = set(memory.items)
        fill(memory, rows(num, task))
        assert {e for e in memory.items if e.task != task} <= held
        assert len(set(memory.items)) == len(memory.items) <= 11
        sizes.append([sum(e.task == t for e in memory.items) for t in "abcd"])
    assert sizes == [[11, 0, 0, 0], [6, 5, 0, 0], [4, 4, 3, 0], [3, 3, 3, 2]]


def test_a_balanced_memory_drops_early_and_late_examples_alike() -> None:
    generator, counts = seeded_generator(4), torch.zeros(20)
    for _ in range(2000):
        memory = fill(BalancedReservoir(10, generator), rows(20) + rows(20, "b") + rows(20, "c"))
        counts[[e.index for e in memory.items if e.task == "a"]] += 1
    assert counts.sum() == 2000 * 4
    assert 5 < uniformity(counts, 4) < 44  # 19 degrees of freedom: 1e-3 on either side


def test_a_balanced_memory_smaller_than_the_number_of_tasks_keeps_the_earliest() -> None:
    memory = BalancedReservoir(1, seeded_generator(5))
    fill(memory, rows(5) + rows(5, "b"))
    assert [e.task for e in memory.items] == ["a"]
