"""Strategies with one bug each, of kinds found in published continual-learning code."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from clbench.adapters import (
    FactorLinear,
    adapted,
    fold,
    freeze,
    is_transposed,
    read_weight,
    replace,
)
from clbench.errors import UserError
from clbench.linalg import (
    Factors,
    bottom_eigenvectors,
    input_factors,
    orthonormal,
    output_factors,
    seeded_generator,
)
from clbench.strategy import Batch, Example, Step, Strategy, TaskContext

# Two sound strategies; every bug below is a small change to one of them.


@dataclass
class Residual(Strategy):
    """Factors start at a random part of each weight and are folded after each task."""

    layer: ClassVar[type[FactorLinear]] = FactorLinear
    options: ClassVar[dict[str, Any]] = {"scale": 2.0}

    rank: int = 4

    def factors(self, weight: Tensor, generator: torch.Generator) -> Factors:
        directions = orthonormal(weight.shape[1], self.rank, generator)
        return input_factors(weight, directions, 2.0)

    def starts(self, model: nn.Module, task: TaskContext) -> dict[str, Factors]:
        generator = seeded_generator(task.seed, "start", task.index)
        weights = {name: read_weight(model.get_submodule(name)) for name in task.targets}
        return {name: self.factors(weight, generator) for name, weight in weights.items()}

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        starts = self.starts(model, task)
        freeze(model)
        for name, factors in starts.items():
            layer = self.layer(model.get_submodule(name), *factors, **self.options)
            replace(model, name, layer)
        task.trained = dict(adapted(model))
        return model

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        return fold(model)


@dataclass
class Anchored(Strategy):
    """A guard that pulls on what moved, the harder the more the tasks before needed it."""

    kind: ClassVar[Literal["adapter", "guard"]] = "guard"
    implies: ClassVar[str | None] = "lora"

    strength: float = 1.0

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        self.anchors_ = {name: layer.start() for name, layer in adapted(model).items()}
        return model

    def penalty(self, model: nn.Module, batch: Batch, outputs: Any) -> Tensor | float:
        needed: dict[str, float] = getattr(self, "needed_", {})
        if not needed:
            return 0.0
        pulls = [
            needed[name] * (parameter - self.anchors_[name][key]).square().sum()
            for name, layer in adapted(model).items()
            for key, parameter in self.trainables(layer).items()
        ]
        return self.strength * torch.stack(pulls).sum()

    def trainables(self, layer: Any) -> dict[str, Tensor]:
        return dict(layer.trainables())

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        before: dict[str, float] = getattr(self, "needed_", {})
        self.needed_ = {
            name: before.get(name, 0.0) + float(layer.delta().detach().norm())
            for name, layer in adapted(model).items()
        }
        return model


@dataclass
class Null(Residual):
    """Residual factors in the null space of the inputs."""

    def calibration_sources(self) -> frozenset[str]:
        return frozenset({"world"})

    def starts(self, model: nn.Module, task: TaskContext) -> dict[str, Factors]:
        missing = set(task.targets) - set(task.covariances.get("world", {}))
        if missing:
            raise UserError(f"null needs the covariance of {min(missing)}")
        found = {}
        for name, covariance in task.covariances["world"].items():
            weight = read_weight(model.get_submodule(name))
            found[name] = self.start(name, weight, covariance)
        return found

    def start(self, name: str, weight: Tensor, covariance: Tensor) -> Factors:
        return input_factors(weight, bottom_eigenvectors(covariance, self.rank), 2.0)


# constructs_from_its_params


@dataclass
class HalvesItsStrength(Anchored):
    """Writes a derived value over the hyperparameter, so the next object halves it again."""

    def __post_init__(self) -> None:
        self.strength = self.strength / 2


class IsNoDataclass(Anchored):
    """Its field is accepted nowhere and always the default."""

    temperature: float = 2.0


# constructor_is_pure


@dataclass
class DrawsAtOnce(Residual):
    """Chooses its columns in the constructor, without a seed."""

    def __post_init__(self) -> None:
        self.columns_ = torch.randperm(32)[: self.rank]


# begin_task_keeps_function


@dataclass
class DoesNotSubtract(Residual):
    """Adds the start to the weight that it was taken from."""

    options = {"scale": 2.0, "form": "zero"}  # noqa: RUF012


# only_trainables_move


@dataclass
class MergesEveryStep(Residual):
    """Adds the product to the frozen weight after each step, and starts again at zero."""

    options = {"scale": 2.0, "form": "zero"}  # noqa: RUF012

    def factors(self, weight: Tensor, generator: torch.Generator) -> Factors:
        start = super().factors(weight, generator)
        return Factors(torch.zeros_like(start.up), start.down)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: Step) -> None:
        for layer in adapted(model).values():
            layer.weight.copy_(layer.folded())
            layer.up.zero_()


@dataclass
class DecaysEverything(Residual):
    """Decays all parameters, not only those that train."""

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: Step) -> None:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.mul_(1 - step.lr * 0.1)


# penalty_has_gradient


@dataclass
class Detaches(Anchored):
    """Computes its penalty from `.data`: it shows in the log and pulls on nothing."""

    def trainables(self, layer: Any) -> dict[str, Tensor]:
        return {name: parameter.data for name, parameter in layer.trainables().items()}


@dataclass
class MovesItsAnchor(Anchored):
    """Keeps the parameters themselves as anchors, so that nothing is ever away from them."""

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        trained = adapted(model).items()
        self.anchors_ = {
            name: {key: parameter.detach() for key, parameter in layer.trainables().items()}
            for name, layer in trained
        }
        return model


@dataclass
class OverwritesItsFisher(Anchored):
    """Starts what the tasks before needed anew with every task."""

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        self.needed_ = dict.fromkeys(adapted(model), 0.0)
        return super().begin_task(model, task)


# learns


class SlowLayer(FactorLinear):
    """Reads an average of its `up` in eval mode."""

    slow: Tensor

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_buffer("slow", self.up.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        moved = (self.slow - self.up0) @ self.down0 * self.scale
        return self.base(x) + functional.linear(x.to(moved.dtype), moved).to(x.dtype)


@dataclass
class AveragesTheWrongCopy(Residual):
    """Updates a copy that nobody scores; the one that is scored stays at the start."""

    layer = SlowLayer
    options = {"scale": 2.0, "carry": True, "trains": "both"}  # noqa: RUF012

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        if task.index == 0:
            return super().begin_task(model, task)
        for layer in adapted(model).values():
            layer.start_task()
        task.trained = dict(adapted(model))
        return model

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: Step) -> None:
        for layer in adapted(model).values():
            average = layer.slow.clone()
            average.lerp_(layer.up, 0.5)

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        return model


@dataclass
class Ascends(Residual):
    """Projects its gradients with the wrong sign."""

    def before_step(self, model: nn.Module, step: Step) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.neg_()


# end_task_keeps_function


@dataclass
class FoldsWithoutScale(Residual):
    """Leaves the scale out when it folds."""

    @torch.no_grad()
    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        for layer in adapted(model).values():
            layer.scale = 1.0
        return fold(model)


@dataclass
class LosesItsChange(Residual):
    """Puts the old layers back and calls that folding."""

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        for name, layer in adapted(model).items():
            replace(model, name, layer.base)
        return model


@dataclass
class FoldsSidewaysOnConv1D(Residual):
    """Forgets that GPT-2 stores its weights transposed, which square layers let pass."""

    @torch.no_grad()
    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        for name, layer in adapted(model).items():
            change = layer.change()
            square = change.shape[0] == change.shape[1]
            change = change.T if is_transposed(layer) and not square else change
            layer.weight.add_(change.to(layer.weight.dtype))
            replace(model, name, layer.base)
        return model


# second_task_costs_no_more


@dataclass
class LeavesAHook(Anchored):
    """Registers a hook for each task and removes none."""

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        model.register_forward_hook(lambda *_: None)
        return super().begin_task(model, task)


@dataclass
class GrowsItsRank(Residual):
    """Adds a rank with every task and calls that capacity."""

    def factors(self, weight: Tensor, generator: torch.Generator) -> Factors:
        directions = orthonormal(weight.shape[1], self.rank + self.extra_, generator)
        return input_factors(weight, directions, 2.0)

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        self.extra_ = task.index
        return super().begin_task(model, task)


# same_seed_same_weights


@dataclass
class ReplaysUnseeded(Anchored):
    """Draws from its memory with everybody's generator."""

    def batches(self, batches: Iterator[list[Example]]) -> Iterator[list[Example]]:
        kept: list[Example] = getattr(self, "kept_", [])
        for rows in batches:
            yield [random.choice(kept), *rows[1:]] if kept else rows

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        self.kept_ = getattr(self, "kept_", []) + task.examples()
        return super().end_task(model, task)


# hyperparameters_survive_a_run


@dataclass
class CapsItsRank(Residual):
    """Writes the rank of the narrowest layer over the one that was asked for."""

    rank: int = 16

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        shapes = [read_weight(model.get_submodule(name)).shape for name in task.targets]
        self.rank = min(self.rank, *(side for shape in shapes for side in shape))
        return super().begin_task(model, task)


# state_round_trips


@dataclass
class ForgetsOnResume(Anchored):
    """Keeps its anchors in an attribute that is not saved."""

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        super().begin_task(model, task)
        self.anchors = self.__dict__.pop("anchors_")
        return model

    def penalty(self, model: nn.Module, batch: Batch, outputs: Any) -> Tensor | float:
        self.anchors_ = self.anchors
        try:
            return super().penalty(model, batch, outputs)
        finally:
            del self.anchors_


@dataclass
class HoldsOnToLayers(Anchored):
    """Keeps the layers themselves, which a new process cannot have."""

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        self.layers_ = list(adapted(model).values())
        return super().begin_task(model, task)


# uses_fresh_calibration


@dataclass
class CachesByName(Null):
    """Finds the null space of a layer once, and takes it for that of every later model."""

    def start(self, name: str, weight: Tensor, covariance: Tensor) -> Factors:
        cache: dict[str, Tensor] = self.__dict__.setdefault("cache_", {})
        if name not in cache:
            cache[name] = bottom_eigenvectors(covariance, self.rank)
        return input_factors(weight, cache[name], 2.0)


@dataclass
class TakesTheWeightForTheInputs(Null):
    """Protects the weight's own small directions, whatever the inputs are."""

    def start(self, name: str, weight: Tensor, covariance: Tensor) -> Factors:
        exact = weight.double()
        return input_factors(weight, bottom_eigenvectors(exact.T @ exact, self.rank), 2.0)


@dataclass
class DoesWithoutCovariances(Null):
    """Falls back to random directions where nothing was measured."""

    def starts(self, model: nn.Module, task: TaskContext) -> dict[str, Factors]:
        try:
            return super().starts(model, task)
        except UserError:
            return Residual.starts(self, model, task)


@dataclass
class TakesTheWrongSide(Null):
    """Takes the null space of the inputs for directions of the output."""

    def start(self, name: str, weight: Tensor, covariance: Tensor) -> Factors:
        return output_factors(weight, bottom_eigenvectors(covariance, self.rank), 2.0)


# does_not_drift


@dataclass
class RoundsTwice(Residual):
    """Stores round(W - up down) in the dtype of W, and folds round(that + up down)."""

    options = {"scale": 2.0, "form": "zero"}  # noqa: RUF012

    @torch.no_grad()
    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        model = super().begin_task(model, task)
        for layer in adapted(model).values():
            change = layer.change().T if is_transposed(layer) else layer.change()
            layer.weight.copy_(layer.weight - change)
        return model


@dataclass
class DecaysTowardZero(Residual):
    """Decays factors that carry a part of the pre-trained weight."""

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: Step) -> None:
        for layer in adapted(model).values():
            for factor in layer.trainables().values():
                factor.mul_(1 - step.lr * 0.1)


# composes


class LyingLayer(FactorLinear):
    """Tells guards the product of its factors, which is no change for a residual start."""

    def delta(self) -> Tensor:
        return self.scale * self.up @ self.down


class MuteLayer(FactorLinear):
    """Tells guards how far it went, but without a gradient."""

    def delta(self) -> Tensor:
        return super().delta().detach()


@dataclass
class LiesToGuards(Residual):
    layer = LyingLayer


@dataclass
class IsMuteToGuards(Residual):
    layer = MuteLayer


@dataclass
class TellsGuardsNothing(Residual):
    """Does not say what it trains."""

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        model = super().begin_task(model, task)
        task.trained = {}
        return model
