"""Streams: ordered tasks, world evals and a calibration source, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clbench.dataset import DataSet, Source
from clbench.errors import UserError, unknown
from clbench.task import Eval, Row, Task


@dataclass(frozen=True)
class Edition:
    """The content of a stream in one choice of data ("tiny", "full")."""

    tasks: tuple[Task, ...]
    world: tuple[Eval, ...]
    # World text of a train split, no eval's; without one no strategy can be calibrated on it.
    calibration: Callable[[], Sequence[str]] | Source | None = None
    calibration_id: str = ""
    preset: str | None = None  # applied below the user's own configuration
    diagnostics: tuple[Eval, ...] = ()  # measured beside the scores whenever the world is

    def __post_init__(self) -> None:
        """Raise UserError for a diagnostic among the scores, and for a score among those."""
        for spec in self.evals:
            if spec.diagnostic:
                raise UserError(f"eval {spec.id!r} is no score; it belongs under diagnostics")
        for spec in self.diagnostics:
            if not spec.diagnostic:
                raise UserError(f"eval {spec.id!r} is a score and no diagnostic")

    @property
    def evals(self) -> tuple[Eval, ...]:
        """Return every column: those of the tasks in order, then the world."""
        return tuple(e for task in self.tasks for e in task.evals) + self.world

    @property
    def measured(self) -> tuple[Eval, ...]:
        """Return everything that is run on a model: the columns, then the diagnostics."""
        return self.evals + self.diagnostics

    @property
    def data_sets(self) -> list[DataSet]:
        """Return every data set that the content is read from, each once."""
        tasks = (part for task in self.tasks for part in (task.parts or (task,)))
        read = [*(task.train for task in tasks), self.calibration]
        sources = [each.data for each in read if isinstance(each, Source)]
        held_out = (spec for task in self.tasks for spec in task.validation_evals)
        return list(dict.fromkeys([*sources, *data_sets(*self.measured, *held_out)]))

    @property
    def single_tasks(self) -> list[Task]:
        """Return the tasks in order, the parts of a joint one in its place."""
        return [part for task in self.tasks for part in (task.parts or (task,))]

    def reordered(self, order: Sequence[int]) -> Edition:
        """Return the same content with its tasks in another order; raises UserError."""
        if sorted(order) != list(range(len(self.tasks))):
            choices = ",".join(str(i) for i in range(len(self.tasks)))
            raise UserError(f"order {list(order)} is not a permutation of {choices}")
        return dataclasses.replace(self, tasks=tuple(self.tasks[i] for i in order))

    def only(self, names: Sequence[str]) -> Edition:
        """Return the content with the named tasks alone, in stream order; raises UserError."""
        known = [task.name for task in self.tasks]
        for at, name in enumerate(names):
            if name not in known:
                raise unknown("task", name, known)
            if name in names[:at]:
                raise UserError(f"task {name} is named twice; each is learned once")
        if not names:
            raise UserError(f"no task is named; choices: {', '.join(known)}")
        return dataclasses.replace(self, tasks=tuple(t for t in self.tasks if t.name in names))

    def limited(self, rows: int) -> Edition:
        """Return the content with the first `rows` training rows of every task."""
        tasks = tuple(limited(task, rows=rows) for task in self.tasks)
        return dataclasses.replace(self, tasks=tasks)

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
        """Return the content scored on rows cut from training data, and on nothing else.

        This is what settings are chosen by; raises UserError if a task has no such eval.
        """
        for task in self.tasks:
            if not task.validation_evals:
                raise UserError(f"task {task.name} has no validation eval to choose settings by")
        tasks = tuple(dataclasses.replace(t, evals=t.validation_evals) for t in self.tasks)
        return dataclasses.replace(self, tasks=tasks, world=(), diagnostics=())


def data_sets(*specs: Eval) -> list[DataSet]:
    """Return the data sets that evals read, each once."""
    found = (data for spec in specs for table in spec.tables.values() for data in table)
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Stream:
    """A named stream with its editions, each built when asked for.

    `definitions` give, ready for JSON, what a stream file says of each edition and the digests of
    the files beside it.
    """

    name: str
    about: str
    editions: Mapping[str, Callable[[], Edition]]
    notes: str = ""  # which choices are ours
    source: str | None = None  # whose protocol a preset of published settings means
    definitions: Mapping[str, Callable[[], dict[str, Any]]] = field(default_factory=dict)

    def edition(self, data: str) -> Edition:
        """Return the content for one choice of data; raises UserError for an unknown one."""
        if data not in self.editions:
            raise unknown(f"data of stream {self.name}", data, self.editions)
        return self.editions[data]()


def limited(task: Task, *, rows: int | None = None, items: int | None = None) -> Task:
    """Return a task with its first `rows` training rows and `items` scored in the default run."""
    if rows is not None:
        task = dataclasses.replace(task, train=_first(task.train, rows))
        task = dataclasses.replace(task, info={**task.info, "limit": rows})
    if items is not None:
        task = dataclasses.replace(task, evals=tuple(at_most(e, items) for e in task.evals))
    return task


def at_most(spec: Eval, items: int) -> Eval:
    """Return an eval that scores a seeded subset of at most `items` in the default run."""
    usual = spec.default_items
    return dataclasses.replace(spec, default_items=items if usual is None else min(items, usual))


def _first(
    train: Callable[[], Sequence[Row]] | Source, rows: int
) -> Callable[[], Sequence[Row]] | Source:
    if isinstance(train, Source):
        limit = rows if train.limit is None else min(rows, train.limit)
        return dataclasses.replace(train, limit=limit)
    return lambda: train()[:rows]
