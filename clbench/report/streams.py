"""What streams hold, as JSON and as text: nothing is read or downloaded for it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from clbench import registry
from clbench.dataset import MOST_HELD_OUT, DataSet, Source
from clbench.errors import UserError
from clbench.stream import Edition, data_sets
from clbench.task import Eval, Row, Task

TASKS = ("task", "trained on", "rows", "license", "evals")
EVALS = ("eval", "of", "scored on", "items", "license")


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
        "num_rows": task.num_rows,
        "license": task.license
        or (task.train.data.license if isinstance(task.train, Source) else ""),
        "evals": [_eval(spec) for spec in task.evals],
    }


def _limit(task: Task) -> int | None:
    if isinstance(task.train, Source):
        return _least(task.train.limit, _most(task.train.data))
    limit: int | None = task.info.get("limit")
    return limit


def _source(source: Callable[[], Sequence[Row] | Sequence[str]] | Source) -> dict[str, Any]:
    return {"data": _data(source.data), "rows": source.limit} if isinstance(source, Source) else {}


def _eval(spec: Eval) -> dict[str, Any]:
    return {
        "id": spec.id,
        "metric": spec.metric,
        "items": _least(spec.default_items, _scored(spec)),
        "num_items": spec.num_items,
        "chance": spec.chance,
        "data": [_data(data) for data in data_sets(spec)],
        "license": spec.license
        or ", ".join(dict.fromkeys(data.license for data in data_sets(spec))),
    }


def _scored(spec: Eval) -> int | None:
    """Return how many records of its data sets are used at most, where each of them says so."""
    most = [limit for data in data_sets(spec) if (limit := _most(data)) is not None]
    return sum(most) if most and len(most) == len(data_sets(spec)) else None


def _most(data: DataSet) -> int | None:
    return _least(data.draw, MOST_HELD_OUT if data.part == "held_out" else None)


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _data(data: DataSet) -> dict[str, Any]:
    return {"name": data.name, **data.identity(), "revision": data.revision}


def _lines(content: Mapping[str, Any]) -> Iterable[str]:
    if "error" in content:
        return [content["error"]]
    evals = [(task["name"], spec) for task in content["tasks"] for spec in task["evals"]]
    evals += [(kind, spec) for kind in ("world", "diagnostics") for spec in content[kind]]
    return [
        *_table(TASKS, map(_task_line, content["tasks"]), right=2),
        "",
        *_table(EVALS, (_eval_line(*entry) for entry in evals), right=3),
        "",
        f"calibration: {_calibration(content['calibration'])}",
        *([f"preset: {content['preset']}"] if content["preset"] else []),
    ]


def _task_line(task: Mapping[str, Any]) -> Sequence[str]:
    return (
        task["name"],
        task["data"]["name"] if "data" in task else task["id"],
        _size(task["num_rows"], task["rows"]),
        task["license"],
        ", ".join(spec["id"] for spec in task["evals"]),
    )


def _eval_line(of: str, spec: Mapping[str, Any]) -> Sequence[str]:
    data = spec["data"]
    ids = ", ".join(dict.fromkeys(table["id"] for table in data))
    name = f"{ids} ({len(data)} parts)" if data else "items of its own"
    if len(data) == 1:
        name = data[0]["name"]
    return (spec["id"], of, name, _size(spec["num_items"], spec["items"]), spec["license"])


def _size(known: int | None, most: int | None) -> str:
    """Return how many there are and, where these are fewer, how many of them are used."""
    if known is None:
        return "size not stated" if most is None else f"at most {most:,}"
    return f"{known:,}" if most is None or most >= known else f"{most:,} of {known:,}"


def _calibration(source: Mapping[str, Any] | None) -> str:
    if source is None:
        return "none"
    if "data" not in source:
        return str(source["id"])
    return f"{source['data']['name']}, license {source['data']['license']}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: int) -> list[str]:
    align = ["right" if at == right else "left" for at in range(len(head))]
    written = tabulate([*rows], head, tablefmt="simple", colalign=align, disable_numparse=True)
    return written.splitlines()
