"""Measure what each tiny task asks of the embedded model: untrained, and trained on it alone.

Runs `lora` at the settings of preset `tiny` from the base model, one task and one seed a run,
and prints the scores before and after, with the share of the most frequent predicted label. An
interrupted measurement goes on where it stopped. Looks at no other strategy.

    python benchmarks/mirrors.py --json benchmarks/results/mirrors.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

import clbench
from clbench import registry
from clbench.items import label_columns, label_share, sum_columns
from clbench.progress import Lines
from clbench.results import Record, read_items

STREAMS = ("secura-16", "standard-cl")
COLUMNS = ("eval", "metric", "chance", "base", "base_label_share", "single", "label_share")


def figures(record: Record, run: Path) -> dict[str, Any]:
    """Return what one run says of its task."""
    eval_id = next(iter(record.matrix.evals))
    spec = record.evals[eval_id]
    base, single = (read_items(run, row, eval_id) for row in (0, 1))
    return {
        "eval": eval_id,
        "metric": spec.metric,
        "chance": spec.chance,
        "base": record.matrix.score(0, eval_id),
        "base_label_share": share(base),
        "single": record.matrix.score(1, eval_id),
        "label_share": share(single),
    }


def share(items: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the share of the most frequent option (by place), None where nothing is chosen."""
    if not all(item["lls"] for item in items):
        return None
    return float(label_share(sum_columns(label_columns(items)))[0])


def homes() -> dict[str, str]:
    """Return each tiny task with a stream that holds it."""
    return {
        task.name: name
        for name in reversed(STREAMS)
        for task in registry.stream(name).edition("tiny").tasks
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=sorted(homes()), choices=sorted(homes()))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/mirrors"))
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    found = {}
    for task in options.tasks:
        place = options.runs / f"{task}-{options.seed}"
        record = clbench.run(
            homes()[task],
            "lora",
            seed=options.seed,
            threads=1,
            progress=Lines(sys.stderr),
            tasks=(task,),
            out=place,
        )
        found[task] = figures(record, place)
    rows = [[task, *(entry[key] for key in COLUMNS)] for task, entry in found.items()]
    print(tabulate(rows, ["task", *COLUMNS], floatfmt=".3f", tablefmt="github"))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        known = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps(dict(sorted((known | found).items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
