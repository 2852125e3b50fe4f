"""What a record says of its data as text: data sets, templates, metric keys, limits, leaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from tabulate import tabulate

from clbench.matrix import Cell
from clbench.results import Record

Block = Mapping[str, Any]
Named = tuple[str, Block]  # "train math" or "eval gsm8k", and what the record says of it

PARTS = {"kept": "without the last tenth", "held_out": "the last tenth"}


def data(record: Record) -> str:
    """Return everything that a record names of what it was trained and scored on."""
    evals = {f"eval {name}": spec.model_dump(mode="json") for name, spec in record.evals.items()}
    trained = list(_trained(record))
    rows = [_row(role, block) for role, block in [*trained, *_scored(evals)]]
    base = record.matrix.rows[0] if record.matrix.rows else {}
    asked = [_asked(*named, base) for named in evals.items()]
    parts = [
        _table(rows, ["", "data set", "revision", "rows", "license"]),
        "\n".join(_templates(trained, evals)),
        _table(asked, ["", "metric", "items", "shots", "up to"]),
        "\n".join(_limits(record)),
        "\n".join(_leaks(cast(Block, record.data.get("leak") or {}))),
    ]
    return "\n\n".join(part for part in parts if part)


def _trained(record: Record) -> Iterator[Named]:
    for name, block in cast(Mapping[str, Block], record.data.get("tasks", {})).items():
        yield f"train {name}", block
    if record.data.get("calibration"):
        yield "calibration", cast(Block, record.data["calibration"])


def _scored(evals: Mapping[str, Block]) -> Iterator[Named]:
    """Yield the data sets of the evals; several of one eval each have a line."""
    for role, block in evals.items():
        for tables in block.get("data", {}).values():
            for table in tables:
                yield role, table


def _row(role: str, block: Block) -> list[str]:
    about = [block.get("config"), block.get("split"), PARTS.get(block.get("part", "all"))]
    words = ", ".join(word for word in about if word)
    return [
        role,
        f"{block['id']} ({words})" if words else str(block["id"]),
        (block.get("revision") or "")[:12],
        f"{block['num_rows']:,}" if "num_rows" in block else "",
        block.get("license") or "",
    ]


def _templates(trained: Sequence[Named], evals: Mapping[str, Block]) -> Iterator[str]:
    """Yield the texts that records become, written as Python writes them."""
    for role, block in trained:
        if isinstance(block.get("template"), Mapping):
            yield f"{role}: {_texts(block['template'])}"
        elif block.get("template"):
            yield f"{role}: template {block['template']}"
    for role, block in evals.items():
        prepare = block.get("prepare")
        if isinstance(prepare, Mapping) and "template" in prepare:
            yield f"{role}: {_texts(prepare['template'])}"
        elif "prompt" in block:
            yield f"{role}: lm-eval's {block['definition']}, prompt {block['prompt']!r}"


def _texts(template: Block) -> str:
    return ", ".join(f"{name} {text!r}" for name, text in template.items() if text)


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


def _leaks(leak: Block) -> Iterator[str]:
    """Yield where items of an eval were found in what the model was trained or calibrated on."""
    found = [
        f"{source} holds {100 * numbers['leak_exact.v1']:.1f} % of {eval_id} word for word, "
        f"{100 * numbers['leak_ngram.v1']:.1f} % in long parts"
        for source, by_eval in leak.get("evals", {}).items()
        for eval_id, numbers in by_eval.items()
        if numbers["hits"]
    ]
    yield from (f"leak: {line}" for line in found)
    for source, eval_id in leak.get("same_source", []):
        yield f"leak: {source} and {eval_id} are of the same distribution"
    if leak and not found:
        yield "leak: no item of an eval was found in what the model was trained or calibrated on"


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    if not rows:
        return ""
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True)
