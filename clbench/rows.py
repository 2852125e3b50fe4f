"""The training rows of a task: made anew at every pass, never all in memory where they are read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from clbench.dataset import Source
from clbench.digests import ListDigest, file_digest
from clbench.hub import Hub
from clbench.task import Row, Task


class Rows:
    """The rows of one task in the order of its data; a joint task has those of its parts."""

    def __init__(self, task: Task, hub: Hub) -> None:
        self.task, self.hub = task, hub
        self.parts = [Rows(part, hub) for part in task.parts]

    def __iter__(self) -> Iterator[Row]:
        if self.parts:
            return (row for part in self.parts for row in part)
        if isinstance(self.task.train, Source):
            return self.hub.iter_rows(self.task.train)
        return iter(self.task.train())

    @property
    def real(self) -> bool:
        """Return whether they are read, not generated so that no eval asks the same."""
        return isinstance(self.task.train, Source) or any(part.real for part in self.parts)

    @property
    def at_most(self) -> int:
        """Return the number of rows, those included that turn out to be unusable."""
        if self.parts:
            return sum(part.at_most for part in self.parts)
        source = self.task.train
        if not isinstance(source, Source):
            return len(source())
        size = len(self.hub.table(source.data))
        return size if source.limit is None else min(size, source.limit)

    @cached_property
    def identity(self) -> Any:
        """Return, ready for JSON, what decides the rows; read ones are not made for it."""
        if self.parts:
            return [part.identity for part in self.parts]
        if isinstance(self.task.train, Source):
            return source_identity(self.task.train, self.hub)
        return {"rows": ListDigest.of(list(row) for row in self)}


def source_identity(source: Source, hub: Hub) -> dict[str, Any]:
    """Return, ready for JSON, what decides the rows of a source: its fields and its files.

    A commit says what the files of a repository hold; those of the user are hashed.
    """
    found = hub.find(source.data)
    held: dict[str, Any] = {"files": list(found.names), "revision": found.revision}
    if found.revision is None:
        held["file_digests"] = [file_digest(path) for path in found.paths]
    return source.identity() | held
