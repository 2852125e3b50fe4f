"""Choose each strategy's learning rate in preset `tiny`, all with the same number of trials.

A trial runs the stream once and is scored on rows cut from training data, right after each
task was learned (`learning_acc`); it reads no test item and no world score. The rate with the
best score wins, of equal ones the smaller. `joint` is the reference that learns all tasks at
once with `lora`. Interrupted, it goes on where it stopped.

    python benchmarks/choose_lr.py --json benchmarks/results/choose_lr.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tabulate import tabulate

import clbench
from clbench import registry
from clbench.progress import Lines

STREAM = "math-code-if"
SETTINGS = {"run.trials": 1, "eval.split": "validation", "eval.schedule": "ends"}
FACTORS = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
RATES = {  # where FACTORS does not bracket the best rate; always five, a factor of two apart
    "full": (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3),
    "pissa": tuple(rate / 4 for rate in FACTORS),  # large factors: larger steps
    "lora-null-v2": tuple(2 * rate for rate in FACTORS),  # one factor trains: smaller steps
}


def adapters() -> list[str]:
    """Return the adapters that come with clbench, by name; guards train at their adapter's rate."""
    entries = registry.listing(registry.STRATEGIES)
    names = [entry.name for entry in entries if entry.package == "clbench"]
    return [name for name in names if registry.strategy_class(name).kind == "adapter"]


def trial(strategy: str, rate: float, threads: int | None) -> float:
    """Return the mean validation score of the tasks, each right after it was learned."""
    joint = strategy == "joint"
    record = clbench.run(
        STREAM,
        "lora" if joint else strategy,
        joint=joint,
        settings={**SETTINGS, "train.lr": rate},
        threads=threads,
        progress=Lines(sys.stderr),
    )
    value = record.metrics["learning_acc.v1"].value
    assert value is not None, f"{strategy} at {rate} has no learning_acc"
    return value


def choose(scores: dict[float, float]) -> float:
    """Return the rate with the best score, of equal ones the smaller."""
    return min(scores, key=lambda rate: (-scores[rate], rate))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = ["joint", *adapters()]
    parser.add_argument("--strategies", nargs="+", default=choices, choices=choices)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    found = {
        name: {rate: trial(name, rate, options.threads) for rate in RATES.get(name, FACTORS)}
        for name in options.strategies
    }
    rows = [
        [name, rate, score, "chosen" if rate == choose(scores) else ""]
        for name, scores in found.items()
        for rate, score in scores.items()
    ]
    headers = ["strategy", "lr", "validation learning_acc", ""]
    print(tabulate(rows, headers, floatfmt=("", "g", ".3f", ""), tablefmt="github"))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = json.loads(options.json.read_text()) if options.json.exists() else {}
        content |= {
            name: {"scores": {str(r): s for r, s in scores.items()}, "chosen": choose(scores)}
            for name, scores in found.items()
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
