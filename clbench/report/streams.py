"""What streams hold, as JSON and as text: nothing is read or downloaded for it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from clbench import registry
from clbench.dataset import DataSet, Source
from clbench.errors import UserError
from clbench.stream import Edition, data_sets
from clbench.task import Eval, Row, Task

HEADERS = ("task", "trained on", "rows", "license", "evals")


def described(name: str) -> dict[str, Any]:
    """Return, ready for JSON, what every edition of a stream holds.

    What cannot be loaded or built has one key, `error`, and the rest is described.
    """
    try:
        stream = registry.stream(name)
    except UserError as error:
        return {"error": str(error)}
    return {
        "about": stream.about,
        "notes": stream.notes,
        "source": stream.source,
        "editions": {name: _edition(make) for name, make in stream.editions.items()},
    }


def as_text(found: Mapping[str, Any]) -> str:
    """Return the description of a stream as indented lines for a terminal."""
    lines = [found["error"]] if "error" in found else list(_stream(found))
    return "\n".join(f"    {line}".rstrip() for line in lines)


def _stream(found: Mapping[str, Any]) -> Iterator[str]:
    if found["about"]:
        yield found["about"]
    if found["source"]:
        yield f"settings of --preset paper: those of {found['source']}"
    if found["notes"]:
        yield from textwrap.wrap(f"ours: {found['notes']}", 92)
    for edition, content in found["editions"].items():
        yield ""
        yield f"--data {edition}"
        yield from _lines(content)


def _edition(make: Callable[[], Edition]) -> dict[str, Any]:
    try:
        edition = make()
    except UserError as error:
        return {"error": str(error)}
    source = edition.calibration
    return {
        "preset": edition.preset,
        "tasks": [_task(task) for task in edition.tasks],
        "world": [_eval(spec) for spec in edition.world],
        "diagnostics": [_eval(spec) for spec in edition.diagnostics],
        "calibration": None
        if source is None
        else {"id": edition.calibration_id, **_source(source)},
    }


def _task(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "about": task.about,
        "id": task.info.get("id", ""),
        **_source(task.train),
        "rows": _limit(task),
        "license": task.license
        or (task.train.data.license if isinstance(task.train, Source) else ""),
        "evals": [_eval(spec) for spec in task.evals],
    }


def _limit(task: Task) -> int | None:
    if isinstance(task.train, Source):
        return task.train.limit
    limit: int | None = task.info.get("limit")
    return limit


def _source(source: Callable[[], Sequence[Row] | Sequence[str]] | Source) -> dict[str, Any]:
    return {"data": _data(source.data), "rows": source.limit} if isinstance(source, Source) else {}


def _eval(spec: Eval) -> dict[str, Any]:
    return {
        "id": spec.id,
        "metric": spec.metric,
        "items": spec.default_items,
        "chance": spec.chance,
        "data": [_data(data) for data in data_sets(spec)],
    }


def _data(data: DataSet) -> dict[str, Any]:
    return {"name": data.name, **data.identity(), "revision": data.revision}


def _lines(content: Mapping[str, Any]) -> Iterable[str]:
    if "error" in content:
        return [content["error"]]
    rows = [
        (
            task["name"],
            task["data"]["name"] if "data" in task else task["id"],
            "all" if task["rows"] is None else f"{task['rows']:,}",
            task["license"],
            _names(task["evals"]),
        )
        for task in content["tasks"]
    ]
    align = ("left", "left", "right", "left", "left")
    table = tabulate(rows, HEADERS, tablefmt="simple", colalign=align, disable_numparse=True)
    calibration = content["calibration"]
    return [
        *table.splitlines(),
        f"world: {_names(content['world']) or 'none'}",
        *([f"diagnostics: {_names(found)}"] if (found := content["diagnostics"]) else []),
        f"calibration: {'none' if calibration is None else calibration['id']}",
        *([f"preset: {content['preset']}"] if content["preset"] else []),
    ]


def _names(evals: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(
        spec["id"] if spec["items"] is None else f"{spec['id']} ({spec['items']:,} items)"
        for spec in evals
    )
