"""Run every listed strategy, and compositions, on one stream of tiny and print one table.

It shows that all of them complete and where each stands with the settings of preset `tiny`. One
seed ranks nothing. Interrupted, it goes on where it stopped.

    python benchmarks/every_strategy.py --json benchmarks/results/every_strategy.json
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, cast

from tabulate import tabulate

import clbench
from clbench import registry
from clbench.progress import Lines

COMPOSITIONS = (
    "lora+replay",
    "lora+l2",
    "lora-null+ewc",
    "lora-null+replay",
    "lora-null-zero+l2+replay",
    "pissa+wise-ft",
    "corda+lwf",
    "full+ewc",
    "full+a-gem",
    "dora+replay",
)
METRICS = ("learning_acc.v1", "final_avg.v1", "bwt.v1", "world_delta.v1", "knowledge_delta.v1")


def measure(strategy: str, stream: str, settings: dict[str, int], threads: int | None) -> list[str]:
    """Return one row of the table: the metrics in points, or why there are none."""
    try:
        record = clbench.run(
            stream, strategy, settings=settings, threads=threads, progress=Lines(sys.stderr)
        )
    except (clbench.UserError, clbench.RunFailed) as error:
        return [strategy, f"failed: {error}"]
    values = [record.metrics[name].value for name in METRICS]
    points = ["–" if value is None else f"{100 * value:.1f}" for value in values]
    phases = cast(list[dict[str, Any]], record.provenance["phases"])
    seconds = math.fsum(phase["seconds"] for phase in phases)
    return [strategy, record.status, *points, f"{seconds:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stream", default="math-code-if")
    parser.add_argument("--steps", type=int, help="per task; the preset's if not given")
    parser.add_argument("--samples", type=int, help="items per eval; all if not given")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", nargs="+", help="these instead of all")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    listed = [entry.name for entry in registry.listing(registry.STRATEGIES)]
    given = {"train.steps": options.steps, "eval.samples": options.samples}
    settings = {name: value for name, value in given.items() if value is not None}
    names = options.only or [*listed, *COMPOSITIONS]
    rows = [measure(name, options.stream, settings, options.threads) for name in names]
    headers = ["strategy", "status", *METRICS, "seconds"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"settings": settings, "columns": headers, "rows": rows}
        options.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if any(row[1] != "complete" for row in rows):
        sys.exit(3)


if __name__ == "__main__":
    main()
