"""The other half of a composition: a plain adapter, a guard that looks, a guard that replays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clbench.adapters import adapted, attach, fold, freeze, read_weight, weight_shape
from clbench.errors import UserError
from clbench.linalg import seeded_generator
from clbench.strategy import Batch, Example, Strategy, TaskContext, Trained
from clbench.testing.course import logits
from clbench.testing.subject import CheckFailed


def require(holds: bool, sentence: str) -> None:
    """Raise CheckFailed with a sentence unless the promise holds."""
    if not holds:
        raise CheckFailed(sentence)


def largest(difference: Tensor) -> float:
    """Return the largest absolute entry."""
    return float(difference.detach().abs().max())


@dataclass
class Plain(Strategy):
    """The least of an adapter: up starts at 0, down at random, folded after each task."""

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Attach rank 4 to every target."""
        freeze(model)
        generator = seeded_generator(task.seed, self.name(), task.index)
        for name in task.targets:
            num_out, num_in = weight_shape(model.get_submodule(name))
            down = torch.randn(4, num_in, generator=generator) / num_in**0.5
            attach(model, name, torch.zeros(num_out, 4), down, scale=1.0, form="zero")
        task.trained = dict(adapted(model))
        return model

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Fold."""
        return fold(model)


@dataclass
class Witness(Strategy):
    """A guard that reads all that an adapter tells guards, and compares it with the weights."""

    kind: ClassVar[Literal["adapter", "guard"]] = "guard"

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Look at what trains and where it starts; remember the weights and the function."""
        require(bool(task.trained), "begin_task tells guards of no trained matrix (task.trained)")
        parameters = {id(p) for p in model.parameters()}
        for name, trained in task.trained.items():
            trains = trained.trainables()
            require(bool(trains), f"trainables() of {name} is empty")
            loose = [key for key, p in trains.items() if id(p) not in parameters]
            require(not loose, f"trainables() of {name} names {loose}, not parameters of the model")
            start = trained.start()
            same = set(start) == set(trains) and all(
                torch.equal(start[key], p.to(start[key].dtype)) for key, p in trains.items()
            )
            require(same, f"start() of {name} is not where its trainables are at the start")
            require(
                largest(trained.delta()) < 1e-6, f"delta() of {name} is not 0 before any training"
            )
        self.weights_ = self._weights(model, task)
        self.logits_ = logits(model)
        return model

    def penalty(self, model: nn.Module, batch: Batch, outputs: Any) -> Tensor | float:
        """Pull on every delta, as regularizers do."""
        deltas = {name: layer.delta() for name, layer in adapted(model).items()}
        for name, delta in deltas.items():
            require(delta.requires_grad, f"delta() of {name} has no gradient, so no guard can pull")
        return 1e-3 * torch.stack([delta.square().sum() for delta in deltas.values()]).sum()

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Compare delta() with how far the weights went, and without_delta() with the start."""
        for name, weight in self._weights(model, task).items():
            delta, moved = task.trained[name].delta().detach(), weight - self.weights_[name]
            require(
                delta.shape == moved.shape
                and largest(delta - moved) < 1e-5 + 1e-3 * largest(moved),
                f"delta() of {name} is not the change of its weight since the start of the task",
            )
            _halve(name, task.trained[name])
        with ExitStack() as stack:
            for trained in task.trained.values():
                stack.enter_context(trained.without_delta())
            off = largest(logits(model) - self.logits_)
        require(
            off < 1e-4,
            f"without_delta() is not the model at the start of the task: off by {off:.1e}",
        )
        return model

    def _weights(self, model: nn.Module, task: TaskContext) -> dict[str, Tensor]:
        return {
            name: read_weight(model.get_submodule(name)).detach().clone() for name in task.trained
        }


@dataclass
class Rehearse(Strategy):
    """A guard that puts an example of an earlier task in the place of each micro-batch's first."""

    kind: ClassVar[Literal["adapter", "guard"]] = "guard"

    def batches(self, batches: Iterator[list[Example]]) -> Iterator[list[Example]]:
        """Replace one example of each list, from the second task on."""
        kept: list[Example] = getattr(self, "kept_", [])
        for number, rows in enumerate(batches):
            yield [kept[number % len(kept)], *rows[1:]] if kept else rows

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Keep half of the task's examples."""
        self.kept_ = [*getattr(self, "kept_", []), *task.examples()[::2]]
        return model


def _halve(name: str, trained: Trained) -> None:
    """Halve the change and double it again, where it can be scaled at all."""
    before = trained.delta().detach().clone()
    try:
        trained.scale_delta(0.5)
    except UserError:  # of a carried adapter, for one
        return
    after = trained.delta().detach()
    trained.scale_delta(2.0)
    require(
        largest(after - 0.5 * before) <= 1e-6 + 1e-3 * largest(before),
        f"scale_delta(0.5) of {name} does not halve delta()",
    )
