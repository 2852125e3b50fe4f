"""Streams: ordered tasks, world evals and a calibration source, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from clbench.dataset import Source
from clbench.errors import UserError, unknown
from clbench.task import Eval, Task


@dataclass(frozen=True)
class Edition:
    """The content of a stream in one choice of data ("tiny", "full")."""

    tasks: tuple[Task, ...]
    world: tuple[Eval, ...]
    calibration: Callable[[], Sequence[str]] | Source  # world text of a train split, no eval's
    calibration_id: str
    preset: str | None = None  # applied below the user's own configuration

    @property
    def evals(self) -> tuple[Eval, ...]:
        """Return every column: those of the tasks in order, then the world."""
        return tuple(e for task in self.tasks for e in task.evals) + self.world

    def reordered(self, order: Sequence[int]) -> Edition:
        """Return the same content with its tasks in another order; raises UserError."""
        if sorted(order) != list(range(len(self.tasks))):
            choices = ",".join(str(i) for i in range(len(self.tasks)))
            raise UserError(f"order {list(order)} is not a permutation of {choices}")
        return dataclasses.replace(self, tasks=tuple(self.tasks[i] for i in order))

    def only(self, names: Sequence[str]) -> Edition:
        """Return the content with the named tasks alone, in stream order; raises UserError."""
        known = [task.name for task in self.tasks]
        for name in names:
            if name not in known:
                raise unknown("task", name, known)
        return dataclasses.replace(self, tasks=tuple(t for t in self.tasks if t.name in names))

    def joined(self) -> Edition:
        """Return the content with one task, `joint`, that is the union of all of them."""
        parts = self.tasks
        joint = Task(
            name="joint",
            train=tuple,  # its rows are those of its parts
            evals=tuple(e for part in parts for e in part.evals),
            validation_evals=tuple(e for part in parts for e in part.validation_evals),
            about="all tasks of the stream, shuffled together",
            parts=parts,
        )
        return dataclasses.replace(self, tasks=(joint,))

    def validating(self) -> Edition:
        """Return the content scored on rows cut from training data, without the world.

        This is what settings are chosen by; raises UserError if a task has no such eval.
        """
        for task in self.tasks:
            if not task.validation_evals:
                raise UserError(f"task {task.name} has no validation eval to choose settings by")
        tasks = tuple(dataclasses.replace(t, evals=t.validation_evals) for t in self.tasks)
        return dataclasses.replace(self, tasks=tasks, world=())


@dataclass(frozen=True)
class Stream:
    """A named stream with its editions, each built when asked for."""

    name: str
    about: str
    editions: Mapping[str, Callable[[], Edition]]
    source: str | None = None  # whose protocol a preset of published settings means

    def edition(self, data: str) -> Edition:
        """Return the content for one choice of data; raises UserError for an unknown one."""
        if data not in self.editions:
            raise unknown(f"data of stream {self.name}", data, self.editions)
        return self.editions[data]()
