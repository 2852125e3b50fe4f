"""What the tasks on published data have in common."""

from __future__ import annotations

from typing import Any

from clbench.dataset import DataSet, Source
from clbench.task import Eval, Task

ROWS = 100_000  # the first ones; what the LoRA-Null and CorDA papers train on


def learning(name: str, source: Source, evals: tuple[Eval, ...], about: str) -> Task:
    """Return the task of learning a source, with what the record says of its data."""
    info = {"id": source.data.id}
    license = source.data.license
    return Task(name=name, train=source, evals=evals, about=about, license=license, info=info)


def parquet(repo: str, split: str, config: str | None = None, **fields: Any) -> DataSet:
    """Return a split that lies in Parquet files named after it, in a folder per configuration."""
    folder = "*" if config is None else f"{config}/"
    return DataSet(repo, split, config, files=(f"{folder}{split}-*.parquet",), **fields)


def greedy(stops: tuple[str, ...], new_tokens: int) -> dict[str, Any]:
    """Return lm-eval's settings of a greedy generation."""
    return {"until": list(stops), "max_gen_toks": new_tokens, "do_sample": False}


def mean(metric: str) -> dict[str, Any]:
    """Return lm-eval's entry of a metric that is averaged over items."""
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}
