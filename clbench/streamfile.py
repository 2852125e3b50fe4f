"""Stream files: TOML to a Stream, every key checked; an edition is built when it is asked for."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from clbench import registry, scoring
from clbench.config import read_toml
from clbench.dataset import Columns, DataSet, Source, Template, data_file, fields_of
from clbench.digests import file_digest
from clbench.errors import UserError, unknown
from clbench.stream import Edition, Stream, at_most, limited
from clbench.streamtables import (
    CalibrationTable,
    DataTable,
    EditionTable,
    EvalTable,
    TaskTable,
    TextTable,
    TopTable,
    label,
    task_table,
    world_table,
)
from clbench.task import Eval, Task

OWN = "own"  # the only edition of a file without editions


def read(path: Path) -> Stream:
    """Return the stream that a file defines, under the name of the file.

    All of the file is checked at once; the names of tasks, evals and sources are looked up when
    an edition is built. Raises UserError, which begins with the path of the file.
    """
    tables = read_toml(path, "stream file")
    with _named(str(path)):
        for key in tables:
            if key not in {**TopTable.model_fields, **EditionTable.model_fields}:
                known = {*TopTable.model_fields, *EditionTable.model_fields}
                raise unknown("key of the stream file", key, known)
        content = {k: v for k, v in tables.items() if k in EditionTable.model_fields}
        top = TopTable.of({k: v for k, v in tables.items() if k not in content})
        if top.editions is not None and content:
            raise UserError(f"{next(iter(content))} stands beside editions: move it into one")
        written = {OWN: content} if top.editions is None else top.editions
        editions = {
            name: _Edition(
                path, EditionTable.of(table, f"editions.{name}" if top.editions else "stream")
            )
            for name, table in written.items()
        }
    return Stream(
        name=path.stem,
        about=top.about,
        editions={name: edition.build for name, edition in editions.items()},
        notes=top.notes,
        source=top.source,
        definitions={name: edition.definition for name, edition in editions.items()},
    )


class _Edition:
    """One checked edition of a file, which builds its tasks and evals."""

    def __init__(self, path: Path, table: EditionTable) -> None:
        self.path = path
        self.table = table
        self.tasks = [task_table(entry, at) for at, entry in enumerate(table.tasks)]
        self.evals = [task.evals for task in self.tasks]
        self.world = [world_table(entry, at) for at, entry in enumerate(table.world)]
        self.calibration: str | CalibrationTable | None = None
        if isinstance(table.calibration, Mapping):
            self.calibration = CalibrationTable.of(table.calibration)
        else:
            self.calibration = table.calibration
        _refuse_twins("tasks", map(label, self.tasks))
        _refuse_twins("world evals", map(label, self.world))
        _refuse_twins("diagnostics", table.diagnostics)

    def definition(self) -> dict[str, Any]:
        """Return, ready for JSON, what decides a run, by the names of tasks, evals and files."""
        calibration = self.calibration
        tables: list[Any] = [*self.tasks, *chain(*self.evals), *self.world, calibration]
        files = {t.data: self._path(t.data) for t in tables if getattr(t, "data", None)}
        return {
            "order": [label(task) for task in self.tasks],
            "tasks": {
                label(task): _said(task, "about", "eval")
                | {"evals": [_said(entry) for entry in evals]}
                for task, evals in zip(self.tasks, self.evals, strict=True)
            },
            "world": {label(entry): _said(entry) for entry in self.world},
            "diagnostics": self.table.diagnostics,
            "calibration": _said(calibration)
            if isinstance(calibration, CalibrationTable)
            else calibration,
            "train_limit": self.table.train_limit,
            "eval_limit": self.table.eval_limit,
            "files": {name: file_digest(path) for name, path in files.items()},
        }

    def build(self) -> Edition:
        """Return the edition; raises UserError for a name that is not registered."""
        with _named(str(self.path)):
            tasks = tuple(map(self._task, self.tasks, self.evals))
            world = tuple(self._world(table) for table in self.world)
            beside = tuple(map(self._registered, self.table.diagnostics))
            calibration = self._calibration()
            edition = Edition(tasks, world, *calibration, self.table.preset, beside)
            _refuse_twins("tasks", (task.name for task in tasks))
            _refuse_twins("evals", (spec.id for spec in edition.measured))
        return edition

    def _task(self, table: TaskTable, evals: Sequence[EvalTable]) -> Task:
        if table.use is None:
            task = self._written(table, evals)
        else:
            task = registry.make(registry.TASKS, table.use, Task)
            task = dataclasses.replace(task, name=table.name or task.name)
        if table.epochs is not None:
            task = dataclasses.replace(task, epochs=table.epochs)
        return limited(
            task,
            rows=_least(table.train_limit, self.table.train_limit),
            items=_least(table.eval_limit, self.table.eval_limit),
        )

    def _written(self, table: TaskTable, evals: Sequence[EvalTable]) -> Task:
        with _named(f"tasks.{table.name}"):
            data = self._data(table)
            if any(entry.held_out for entry in evals):
                data = dataclasses.replace(data, part="kept")
            source = _source(data, table)
        whole = [entry.beside(table) for entry in evals]
        with _named(f"tasks.{table.name}.eval"):
            made = tuple(map(self._eval, evals, whole))
        return Task(
            name=str(table.name),
            train=source,
            evals=made,
            about=table.about,
            license=data.license,
            info={"id": data.id},
        )

    def _eval(self, said: EvalTable, table: EvalTable) -> Eval:
        """Return an eval; `said` is what its own table says of it, without its task's."""
        if table.use is not None:
            made = registry.make(registry.EVALS, table.use, Eval)
        else:
            data = self._data(table)
            if said.held_out:
                data = dataclasses.replace(data, part="held_out")
            made = _lm_eval(said, data) if table.lm_eval else _scored(table, data)
        return made if table.eval_limit is None else at_most(made, table.eval_limit)

    def _world(self, table: EvalTable) -> Eval:
        with _named(f"world.{label(table)}"):
            made = self._eval(table, table)
        return self._limited(made)

    def _registered(self, name: str) -> Eval:
        return self._limited(registry.make(registry.EVALS, name, Eval))

    def _limited(self, spec: Eval) -> Eval:
        limit = self.table.eval_limit
        return spec if limit is None else at_most(spec, limit)

    def _calibration(self) -> tuple[Callable[[], Sequence[str]] | Source | None, str]:
        table = self.calibration
        if table is None:
            return None, ""
        if isinstance(table, CalibrationTable):
            with _named("calibration"):
                if not fields_of(table.text):
                    raise UserError(f"text {table.text!r} names no column of the data")
                text = TextTable(columns=table.columns, prompt="", answer=table.text)
                source = _source(self._data(table), text)
            return dataclasses.replace(source, limit=table.limit), source.data.id
        made = registry.load(registry.SOURCES, table)()
        if not (isinstance(made, Source) or callable(made)):
            raise UserError(f"source {table!r} makes {made!r}, neither a Source nor a function")
        return made, made.data.id if isinstance(made, Source) else getattr(made, "id", table)

    def _data(self, table: DataTable) -> DataSet:
        license = table.license or "not stated"
        if table.hub is not None:
            return DataSet(
                table.hub,
                split=table.split or "train",
                config=table.config,
                files=table.files,
                revision=table.revision,
                license=license,
            )
        assert table.data is not None
        base = str(self.path.resolve().parent)
        data_file(base, table.data)
        return DataSet(table.data, "", license=license, place="file", base=base)

    def _path(self, data: str) -> Path:
        return self.path.resolve().parent / Path(data).expanduser()


def _source(data: DataSet, table: TextTable) -> Source:
    template = Template(table.prompt or "", table.answer or "", table.request)
    template.check()
    columns = _columns(data, table, template)
    return Source(_using(data, columns), template, columns)


def _scored(table: EvalTable, data: DataSet) -> Eval:
    template = Template(table.prompt or "", table.answer or "", table.request)
    template.check()
    columns = _columns(data, table, template)
    chance = table.chance
    if chance is None and table.score == "choice":
        if isinstance(columns.options, str):
            raise UserError(
                f"chance is missing: options is the column {columns.options!r}, so say how often "
                "a guess is right, e.g. chance = 0.25"
            )
        chance = 1 / len(columns.options) if columns.options else None
    return scoring.build(
        str(table.name),
        str(table.score),
        _using(data, columns),
        template,
        columns,
        stops=table.stops,
        new_tokens=table.new_tokens,
        chance=chance or 0.0,
    )


def _lm_eval(table: EvalTable, data: DataSet) -> Eval:
    """Return one of lm-eval's own tasks, which reads the split of the same name."""
    return Eval(
        id=table.name or str(table.lm_eval),
        version=None,
        config=str(table.lm_eval),
        metric=str(table.metric),
        chance=table.chance or 0.0,
        shots=table.shots,
        data={table.split or "test": data},
    )


def _columns(data: DataSet, table: TextTable, template: Template) -> Columns:
    """Return how the columns of a data set become what a template names; raises UserError."""
    names = {name: table.columns.get(name, name) for name in template.columns()}
    answer = dict.fromkeys(fields_of(template.answer))
    options = table.options
    if options and len(answer) > 1:
        raise UserError(f"options go with one column in the answer, not {', '.join(answer)}")
    if isinstance(options, str):
        options = table.columns.get(options, options)
    return Columns(data.name, names, next(iter(answer)) if len(answer) == 1 else None, options)


def _using(data: DataSet, columns: Columns) -> DataSet:
    """Return the data set with the columns that are read, each of which has to be there."""
    used = [*columns.names.values()]
    if isinstance(columns.options, str):
        used.append(columns.options)
    return dataclasses.replace(data, columns=tuple(dict.fromkeys(used)))


def _said(table: DataTable, *but: str) -> dict[str, Any]:
    return table.model_dump(mode="json", exclude_unset=True, exclude=set(but))


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _refuse_twins(kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"two {kind} are called {name!r}; give one of them another name")
        seen.add(name)


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    """Put the place in the file before what is wrong there."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
