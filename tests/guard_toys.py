"""Tasks of a few random examples, and what it takes to learn them under a guard."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from toys import VOCABULARY, toy_windows

from clbench.adapters import adapted, find_targets
from clbench.calibration import calibrate
from clbench.config import TrainConfig
from clbench.data import one_pass
from clbench.registry import build_strategy
from clbench.strategy import Batch, Covariances, Example, Strategy, TaskContext
from clbench.training import TrainLog, train

CPU = torch.device("cpu")


def make_examples(count: int, index: int = 0, *, size: int = 6) -> list[Example]:
    """Return examples of task `index` with prompts of 3 tokens and answers of 2 to `size`."""
    generator = torch.Generator().manual_seed(100 + index)
    examples = []
    for number in range(count):
        length = 2 + number % (size - 1)
        ids = torch.randint(3, VOCABULARY, (3 + length,), generator=generator).tolist()
        mask = (False,) * 3 + (True,) * length
        examples.append(Example(tuple(ids), mask, f"task{index}", number))
    return examples


def seen_covariances(model: nn.Module, index: int) -> Covariances:
    """Return those of random text in place of the tasks before `index`; none before the first."""
    if index == 0:
        return {}
    windows = toy_windows(32, 24, seed=index)
    return calibrate(model, windows, find_targets(model), budget_bytes=2**22).covariances


def context(
    model: nn.Module,
    examples: list[Example],
    index: int,
    *,
    batch_size: int = 4,
    sources: frozenset[str] = frozenset(),
) -> TaskContext:
    """Return what a strategy is told of a task, with the covariances it asked for."""

    def batches() -> Iterator[Batch]:
        return one_pass(examples, batch_size, 0, CPU)

    covariances: Mapping[str, Covariances] = {
        source: seen_covariances(model, index if source == "seen" else index + 1)
        for source in sources
    }
    return TaskContext(
        name=f"task{index}",
        index=index,
        seed=0,
        examples=lambda: list(examples),
        batches=batches,
        covariances=covariances,
        targets=find_targets(model),
    )


def build(expression: str, **params: Mapping[str, Any]) -> Strategy:
    """Return a composition; hyperparameters by part, with _ for - in its name."""
    return build_strategy(expression, {k.replace("_", "-"): v for k, v in params.items()})


def fit(model: nn.Module, strategy: Strategy, task: TaskContext, **train_fields: Any) -> TrainLog:
    """Train a task that has begun; the model comes back in eval mode."""
    examples = task.examples()
    values = {"steps": 4, "batch_size": 4, "lr": 1e-2, "schedule": "constant", "warmup": 0.0}
    config = TrainConfig.of(values | train_fields)
    tokens = sum(len(e.ids) for e in examples) * (config.steps or 1) * config.batch_size
    return train(
        model,
        strategy,
        task,
        examples,
        config,
        pad_id=0,
        device=CPU,
        budget_tokens=tokens // len(examples),
    )


def learn(
    model: nn.Module,
    strategy: Strategy,
    index: int,
    examples: list[Example] | None = None,
    **train_fields: Any,
) -> nn.Module:
    """Begin, train and end one task."""
    task = started(model, strategy, index, examples)
    fit(model, strategy, task, **train_fields)
    return strategy.end_task(model, task)


def started(
    model: nn.Module,
    strategy: Strategy,
    index: int,
    examples: list[Example] | None = None,
    **options: Any,
) -> TaskContext:
    """Begin a task and return its context."""
    task = context(
        model,
        make_examples(8, index) if examples is None else examples,
        index,
        sources=strategy.calibration_sources(),
        **options,
    )
    assert strategy.begin_task(model, task) is model
    return task


def part(strategy: Strategy, kind: type[Strategy]) -> Any:
    """Return the part of a composition that is of a class."""
    return next(p for p in strategy.parts if isinstance(p, kind))  # type: ignore[attr-defined]


def displace(model: nn.Module, size: float = 0.02, *, seed: int = 5) -> None:
    """Move every trained value by something random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in adapted(model).values():
            for parameter in layer.trainables().values():
                parameter += size * torch.randn(parameter.shape, generator=generator)


def twin(strategy: Strategy) -> Strategy:
    """Return a new object of the same fields and state, by way of a file without pickle."""
    buffer = io.BytesIO()
    torch.save(strategy.state(), buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals([Example]):
        state = torch.load(buffer, weights_only=True)
    other = copy.deepcopy(strategy)
    for one in getattr(other, "parts", (other,)):
        for key in list(one.state()):
            delattr(one, key)
    other.load_state(state)
    return other
