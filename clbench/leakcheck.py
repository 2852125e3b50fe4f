"""The leak check of one run: which of its texts hold questions of its evals, kept on disk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from clbench import evalcache, leak
from clbench.dataset import Source
from clbench.digests import digest
from clbench.progress import Progress, Silent
from clbench.rows import Rows
from clbench.stream import Edition
from clbench.task import Eval, Task


class Checked(NamedTuple):
    """A source as the leak check reads it."""

    identity: Any  # what decides the documents, ready for JSON
    documents: Callable[[], Iterable[leak.Document]]
    remove: bool = False  # whether documents that ask what an eval asks are not used


class LeakCheck:
    """Looks for the questions of an edition's evals in what is trained and calibrated on.

    What it finds is kept by the rows and the questions, so that it is looked for once.
    """

    def __init__(
        self,
        edition: Edition,
        rows: Callable[[Task], Rows],
        calibration: Checked | None,
        probes: Mapping[str, Mapping[str, leak.Probe]],
        folder: Path,
    ) -> None:
        self.edition, self.rows, self.calibration = edition, rows, calibration
        self.probes, self.folder = probes, folder

    @cached_property
    def _scans(self) -> dict[str, dict[str, Any]]:
        return {}

    def scans(self, progress: Progress | None = None) -> Mapping[str, Mapping[str, Any]]:
        """Return what is found in each source, by its name."""
        if not self._scans:
            of_probes = digest(self.probes)

            @functools.cache
            def index() -> leak.Index:
                (progress or Silent()).phase("check leaks")
                return leak.Index(self.probes)

            for name, source in self._sources().items():
                identity = {
                    "check": leak.CHECK,
                    "source": source.identity,
                    "remove": source.remove,
                    "probes": of_probes,
                }
                found = evalcache.load(self.folder, identity)
                if found is None:
                    found = index().scan(source.documents(), remove=source.remove)
                    evalcache.store(self.folder, identity, found)
                self._scans[name] = found
        return self._scans

    def removed(self, task: Task) -> list[int]:
        """Return the numbers of the rows of a single task that ask what an eval asks."""
        return list(self.scans()[f"train {task.name}"]["removed"])

    def report(self) -> dict[str, Any]:
        """Return how much of each eval occurs in what is trained and calibrated on.

        That a task and its own evals are of one data set is what they are for, and not told.
        """
        scans = self.scans()
        pairs = leak.same_source(scans, self.probes, self._data_ids())
        own = [[f"train {task.name}", e.id] for task in self.edition.tasks for e in task.evals]
        return leak.combine(scans, [pair for pair in pairs if pair not in own])

    def _sources(self) -> dict[str, Checked]:
        found = {f"train {t.name}": _of_rows(self.rows(t)) for t in self.edition.single_tasks}
        return found if self.calibration is None else found | {"calibration": self.calibration}

    def _data_ids(self) -> dict[str, str]:
        ids = {"calibration": self.edition.calibration_id}
        if isinstance(self.edition.calibration, Source):
            ids["calibration"] = self.edition.calibration.data.id
        for task in self.edition.single_tasks:
            if isinstance(task.train, Source):
                ids[f"train {task.name}"] = task.train.data.id
            elif "id" in task.info:
                ids[f"train {task.name}"] = task.info["id"]
        return ids | {e.id: name for e in self.edition.evals if (name := data_id(e)) is not None}


def _of_rows(rows: Rows) -> Checked:
    def documents() -> Iterator[leak.Document]:
        return ([row.request or row.prompt, row.answer] for row in rows)

    return Checked(rows.identity, documents, rows.real)


def data_id(spec: Eval) -> str | None:
    """Return the id of the data set that an eval asks about, whatever the split."""
    tables = spec.tables
    if spec.data_id is not None or not tables:
        return spec.data_id
    return next(iter(tables.values()))[0].id
