"""Experience replay: some of what a task trains on is drawn from a memory of past tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, count, islice
from math import floor
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from clbench.data import derived_seed, endless, num_tokens
from clbench.errors import UserError, unknown
from clbench.linalg import seeded_generator
from clbench.strategy import Example, Strategy, TaskContext

from .reservoir import BalancedReservoir, Memory, Reservoir

MEMORIES: dict[str, type[Reservoir | BalancedReservoir]] = {
    "reservoir": Reservoir,
    "balanced": BalancedReservoir,
}


@dataclass
class Replay(Strategy):
    """Replay `share` of every batch from a memory of `memory_size` examples of past tasks.

    Each distinct example of a task is offered to the memory once, when the task ends; a replayed
    one never again. `policy="reservoir"` samples all past examples uniformly, "balanced" gives
    every task an equal part of the memory. With `mode="replace"` a batch keeps its size B and
    after n batches floor(n B share) of the examples were old; with "add" as many come on top.
    The memory is walked through in random orders, so that every example is replayed equally
    often; nothing is replayed in the first task.
    """

    kind: ClassVar[Literal["adapter", "guard"]] = "guard"
    implies: ClassVar[str | None] = "lora"

    memory_size: int = 500
    share: float = 0.1
    policy: Literal["reservoir", "balanced"] = "reservoir"
    mode: Literal["replace", "add"] = "replace"

    def __post_init__(self) -> None:
        if type(self.memory_size) is not int or self.memory_size < 1:
            raise UserError(
                f"{self.name()}: memory_size {self.memory_size!r} is not a positive integer"
            )
        if self.policy not in MEMORIES:
            raise unknown(f"policy of {self.name()}", str(self.policy), MEMORIES)
        if self.mode not in ("replace", "add"):
            raise unknown(f"mode of {self.name()}", str(self.mode), ("replace", "add"))
        share = self.share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise UserError(f"{self.name()}: share {share!r} is not a number from 0 to 1")
        if self.mode == "replace" and share == 1:
            raise UserError(f"{self.name()}: share 1 leaves no room for the task in a batch")

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Seed the draws of this task and start counting."""
        self.seed_ = derived_seed(self.name(), task.seed, task.index)
        self.num_drawn_ = self.tokens_fed_ = self.tokens_old_ = 0
        if not hasattr(self, "memory_"):
            self.memory_ = MEMORIES[self.policy](self.memory_size, self._generator()).state()
            self.offered_: dict[str, int] = {}
        return model

    def batches(self, batches: Iterator[list[Example]]) -> Iterator[list[Example]]:
        """Return the batches with old examples in them, or as they are while there are none."""
        held = self._memory().items
        return self._mixed(batches, held) if held and self.share else batches

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Note what was replayed, then offer this task's examples to the memory."""
        examples, memory = task.examples(), self._memory()
        replayed = self._replayed(memory.items, len(examples))
        for example in examples:
            memory.offer(example)
        self.memory_ = memory.state()
        self.offered_ = self.offered_ | {task.name: len(examples)}
        self.facts_ = replayed | {
            "memory_examples": len(memory.items),
            "memory_bytes": 9 * num_tokens(memory.items),  # an int64 id and a byte of mask
        }
        return model

    def facts(self) -> dict[str, Any]:
        """Return the three replay ratios of the task that ended, and what is in memory after it.

        `kept` is the share of each past task's examples that was in memory, `batch` the share of
        the tokens trained on that was old, `buffer` the memory's size over that of the task, and
        `used` the number of distinct examples that were replayed.
        """
        return dict(self.facts_)

    def _mixed(
        self, batches: Iterator[list[Example]], held: list[Example]
    ) -> Iterator[list[Example]]:
        first = next(batches)
        size, share = len(first), Fraction(str(self.share))  # 0.1 itself, not its nearest float
        current = (example for batch in chain([first], batches) for example in batch)
        memory = (example for [example] in endless(held, 1, derived_seed(self.seed_, "memory")))
        for number in count(1):
            num_old = floor(number * size * share) - floor((number - 1) * size * share)
            num_new = size - num_old if self.mode == "replace" else size
            new, old = list(islice(current, num_new)), list(islice(memory, num_old))
            if num_new and not new:
                return
            self.num_drawn_ += len(old)
            self.tokens_old_ += num_tokens(old)
            self.tokens_fed_ += num_tokens(new) + num_tokens(old)
            yield new + old

    def _replayed(self, held: list[Example], task_size: int) -> dict[str, Any]:
        stored = Counter(example.task for example in held)
        return {
            "kept": {task: stored[task] / max(1, num) for task, num in self.offered_.items()},
            "batch": self.tokens_old_ / max(1, self.tokens_fed_),
            "buffer": len(held) / max(1, task_size),
            "used": min(self.num_drawn_, len(held)),
        }

    def _memory(self) -> Memory:
        return MEMORIES[self.policy].load(self.memory_, self._generator())

    def _generator(self) -> torch.Generator:
        return seeded_generator(self.seed_, "reservoir")
