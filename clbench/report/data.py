"""What a record says of its data as text: data sets, templates, metric keys, limits, leaks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, cast

from tabulate import tabulate

from clbench.matrix import Cell
from clbench.report.templates import templates
from clbench.results import Record

Block = Mapping[str, Any]
Named = tuple[str, Block]  # "train math" or "eval gsm8k", and what the record says of it

LEFT_OUT = {
    "num_empty": "empty",
    "num_too_long": "longer than train.max_length",
    "num_in_evals": "asked by an eval",
}
PARTS = {"kept": "without the last tenth", "held_out": "the last tenth"}


def data(record: Record) -> str:
    """Return everything that a record names of what it was trained and scored on."""
    blocks = {name: spec.model_dump(mode="json") for name, spec in record.evals.items()}
    evals = {f"{_kind(block)} {name}": block for name, block in blocks.items()}
    trained = list(_trained(record))
    rows = [_row(*named) for named in _read(record, evals)]
    base = record.matrix.rows[0] if record.matrix.rows else {}
    asked = [_asked(*named, base) for named in evals.items()]
    parts = [
        _table(rows, ["", "data set", "revision", "rows", "license"]),
        templates(record, dict(trained), evals),
        _table(asked, ["", "metric", "items", "shots", "up to"]),
        "\n".join([*_limits(record), *_left_out(trained)]),
        "\n".join(leaks(cast(Block, record.data.get("leak") or {}))),
    ]
    return "\n\n".join(part for part in parts if part)


def _kind(block: Block) -> str:
    return "diagnostic" if block.get("diagnostic") else "eval"


def _read(record: Record, evals: Mapping[str, Block]) -> Iterator[Named]:
    """Yield everything that was read: the model, and each data set with its revision."""
    model = record.model
    yield "model", {"id": model.id, "revision": model.revision}
    for role, block in _trained(record):
        yield role, {**block, "revision": _revision(block, block)}
    for role, block in evals.items():
        for tables in _alike(chain(*block.get("data", {}).values())):
            first = tables[0]
            several = {"config": f"{len(tables)} configurations"} if len(tables) > 1 else {}
            yield role, {**first, **several, "revision": _revision(block, first)}


def _alike(tables: Iterable[Block]) -> Iterable[Sequence[Block]]:
    """Return the data sets of an eval, those together that differ in their configuration alone."""
    found: dict[tuple[Any, ...], list[Block]] = {}
    for table in tables:
        key = tuple(table.get(name) for name in ("id", "split", "part", "draw"))
        found.setdefault(key, []).append(table)
    return found.values()


def _trained(record: Record) -> Iterator[Named]:
    for name, block in cast(Mapping[str, Block], record.data.get("tasks", {})).items():
        yield f"train {name}", block
    if record.data.get("calibration"):
        yield "calibration", cast(Block, record.data["calibration"])


def _revision(block: Block, table: Block) -> str | None:
    """Return the commit that a data set was read at, or the digest of a file of the user's."""
    keys = ("id", "config", "split")
    for source in block.get("sources", ()):
        if all(source[key] == table.get(key) for key in keys):
            digests = [file["sha256"] for file in source["files"].values()]
            commit: str | None = source["revision"]
            return commit or (f"sha256 {digests[0][:12]}" if len(digests) == 1 else None)
    return None


def _row(role: str, block: Block) -> list[str]:
    about = [block.get("config"), block.get("split"), PARTS.get(block.get("part", "all"))]
    if block.get("draw"):
        about.append(f"{block['draw']:,} drawn")
    words = ", ".join(word for word in about if word)
    return [
        role,
        f"{block['id']} ({words})" if words else str(block["id"]),
        (block.get("revision") or "")[:19],
        f"{block['num_examples']:,}" if "num_examples" in block else "",
        block.get("license") or "",
    ]


def _left_out(trained: Sequence[Named]) -> Iterator[str]:
    """Yield which rows of a task were not trained on, and why."""
    for role, block in trained:
        counts = {words: block.get(key) for key, words in LEFT_OUT.items()}
        why = ", ".join(f"{count:,} {words}" for words, count in counts.items() if count)
        if why:
            yield f"{role}: {block['num_rows']:,} rows, of which left out: {why}"


def _asked(role: str, block: Block, scored: Mapping[str, Cell]) -> list[str]:
    cell = scored.get(role.removeprefix("eval "))
    items = f"{cell.num_items:,}" if cell is not None and cell.num_items else ""
    tokens = block.get("new_tokens")
    return [
        role,
        block["metric"],
        f"{items} drawn" if block.get("limit") else items,
        str(block.get("shots", "")),
        "" if tokens is None else f"{tokens} new tokens",
    ]


def _limits(record: Record) -> Iterator[str]:
    """Yield what the run was told to leave out or put in another order."""
    asked = cast(Block, (record.config.model_extra or {}).get("run", {}))
    given = {
        "tasks": ", ".join(asked.get("tasks") or ()),
        "order": ", ".join(str(at) for at in asked.get("order") or ()),
        "training rows of each task, at most": asked.get("train_limit"),
        "items of each eval, at most": asked.get("eval", {}).get("samples"),
    }
    yield from (f"{name}: {value}" for name, value in given.items() if value)
    if asked.get("definition"):
        yield f"stream file: {asked['stream']}"


def leaks(leak: Block) -> Iterator[str]:
    """Yield where items of an eval were found in what a model is trained or calibrated on."""
    found = [
        f"rows left out of {source} because they ask what an eval asks: {before['removed']:,}"
        for source, before in leak.get("before_removal", {}).items()
    ]
    found += _hits(leak.get("evals", {}))
    yield from (f"leak: {line}" for line in found)
    for source, eval_id in leak.get("same_source", []):
        yield (
            f"same distribution: {source} reads the data set that {eval_id} asks about, which by "
            "itself is no leaked question"
        )
    if leak and not found:
        yield "leak: none; no eval's question is in what the model was trained or calibrated on"


def _hits(evals: Mapping[str, Mapping[str, Block]]) -> Iterator[str]:
    for source, by_eval in evals.items():
        for eval_id, numbers in by_eval.items():
            if numbers["hits"]:
                yield (
                    f"{source} holds {100 * numbers['leak_exact.v1']:.1f} % of {eval_id} word for "
                    f"word, {100 * numbers['leak_ngram.v1']:.1f} % in long parts"
                )


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    if not rows:
        return ""
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True)
