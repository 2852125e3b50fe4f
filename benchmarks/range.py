"""Measure the dynamic range of tiny: what it knows, can learn, and loses, over several seeds.

Runs `lora` through the stream with its single and joint references, one run per seed, and
prints each figure with its 95 % interval over seeds. An interrupted measurement goes on where
it stopped. Looks at no other strategy.

    python benchmarks/range.py --seeds 5 --json benchmarks/results/range.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean

from tabulate import tabulate

import clbench
from clbench.progress import Lines
from clbench.results import Record
from clbench.statistics import t_estimate

TASKS = {"math": "tiny_math", "code": "tiny_code", "if": "tiny_instruct"}
WORLD = ("tiny_facts", "tiny_facts_greedy")
STREAM = "math-code-if"


def figures(record: Record) -> dict[str, float]:
    """Return the figures of the range from one run with its references."""
    matrix, found = record.matrix, {}
    for eval_id in WORLD:
        found[f"base {eval_id}"] = matrix.score(0, eval_id)
    for task, eval_id in TASKS.items():
        found[f"base {eval_id}"] = matrix.score(0, eval_id)
        found[f"single {eval_id}"] = record.references.single[task]
    for row, eval_id in enumerate(TASKS.values(), start=1):
        found[f"sequential {eval_id}, its own row"] = matrix.score(row, eval_id)
    found["joint, mean of tasks"] = mean(record.references.joint.values())
    for name in ("bwt.v1", "world_delta.v1", "learning_acc.v1", "final_avg.v1"):
        found[f"sequential {name}"] = record.metrics[name].value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    seeds = range(options.seeds)
    runs = []
    for seed in seeds:
        record = clbench.run(
            STREAM,
            "lora",
            seed=seed,
            reference=("single", "joint"),
            threads=options.threads,
            progress=Lines(sys.stderr),
        )
        runs.append(figures(record))
    table = []
    for name in runs[0]:
        values = [run[name] for run in runs]
        low, high = t_estimate(values).interval or (None, None)
        table.append([name, mean(values), low, high, min(values), max(values)])
    headers = ["figure", "mean", "95 % low", "high", "min", "max"]
    print(tabulate(table, headers, floatfmt=".3f", tablefmt="github"))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"seeds": list(seeds), "figures": {n: [r[n] for r in runs] for n in runs[0]}}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
