"""Replay memories of bounded size: a reservoir over all examples, or one for each task.

A memory gives its content as plain values (`state`) and is rebuilt from them (`load`) together
with a generator for the draws to come: seed one per task (`clbench.linalg.seeded_generator`)
and no generator has to be saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

import torch

from clbench.strategy import Example


class Memory(Protocol):
    """A bounded memory of examples, filled by offering it each distinct example once."""

    @property
    def items(self) -> list[Example]:
        """Return what is stored."""

    def offer(self, example: Example) -> None:
        """Store the example, or not, as the policy draws."""

    def state(self) -> dict[str, Any]:
        """Return the content as numbers, lists and examples."""


class Reservoir:
    """A uniform random sample of all examples offered so far (Vitter's Algorithm R).

    Example number n, from 1, is stored while n <= capacity; afterwards j is drawn from 1..n and
    slot j is replaced if j <= capacity. Every example is then stored with probability
    capacity / n, early and late ones alike, if each is offered once.
    """

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        self.capacity, self.generator = capacity, generator
        self.num_offered = 0
        self._items: list[Example] = []

    @property
    def items(self) -> list[Example]:
        """Return what is stored, in the order of the slots."""
        return self._items

    def offer(self, example: Example) -> None:
        """Count the example, and store it if there is room or its draw hits a slot."""
        self.num_offered += 1
        if self.num_offered <= self.capacity:
            self._items.append(example)
            return
        slot = int(torch.randint(self.num_offered, (), generator=self.generator))
        if slot < self.capacity:
            self._items[slot] = example

    def shrink(self, capacity: int) -> None:
        """Drop stored examples at random down to a smaller capacity; the sample stays uniform."""
        order = torch.randperm(len(self._items), generator=self.generator)
        self._items = [self._items[slot] for slot in sorted(order[:capacity].tolist())]
        self.capacity = capacity

    def state(self) -> dict[str, Any]:
        """Return the content as numbers, lists and examples."""
        return {
            "capacity": self.capacity,
            "num_offered": self.num_offered,
            "items": list(self._items),
        }

    @classmethod
    def load(cls, state: Mapping[str, Any], generator: torch.Generator) -> Self:
        """Return the memory that gave this state."""
        memory = cls(state["capacity"], generator)
        memory.num_offered, memory._items = state["num_offered"], list(state["items"])
        return memory


class BalancedReservoir:
    """One reservoir per task, of equal size whatever the tasks' sizes.

    With t tasks each may hold floor(capacity / t) examples, and the first capacity mod t tasks
    one more. When a task joins, the older ones drop examples at random.
    """

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        self.capacity, self.generator = capacity, generator
        self.parts: dict[str, Reservoir] = {}  # by task, in the order they came

    @property
    def items(self) -> list[Example]:
        """Return what is stored, task by task."""
        return [example for part in self.parts.values() for example in part.items]

    def offer(self, example: Example) -> None:
        """Offer the example to its task's reservoir, making room for a task that is new."""
        if example.task not in self.parts:
            self._join(example.task)
        self.parts[example.task].offer(example)

    def state(self) -> dict[str, Any]:
        """Return the content as numbers, lists and examples."""
        parts = {task: part.state() for task, part in self.parts.items()}
        return {"capacity": self.capacity, "parts": parts}

    @classmethod
    def load(cls, state: Mapping[str, Any], generator: torch.Generator) -> Self:
        """Return the memory that gave this state."""
        memory = cls(state["capacity"], generator)
        for task, part in state["parts"].items():
            memory.parts[task] = Reservoir.load(part, generator)
        return memory

    def _join(self, task: str) -> None:
        share, remainder = divmod(self.capacity, len(self.parts) + 1)
        for number, part in enumerate(self.parts.values()):
            part.shrink(share + (number < remainder))
        self.parts[task] = Reservoir(share, self.generator)
