"""What cur-lora and secura share: a change made of a weight's own columns and rows.

The change of a weight is `C core R`: C are some of its columns, R some of its rows, both frozen,
and only the small core between them trains.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from clbench.adapters import (
    AdaptedLinear,
    adapted,
    fold,
    freeze,
    is_transposed,
    read_weight,
    replace,
    weight_shape,
)
from clbench.errors import UserError
from clbench.linalg import exact_float32, seeded_generator
from clbench.strategy import Strategy, TaskContext, Trained

Selection = Literal["inverse", "smallest", "uniform"]
SELECTIONS = ("inverse", "smallest", "uniform")


class Chosen(NamedTuple):
    """Columns and rows of one weight, by value and by index; no index occurs twice."""

    columns: Tensor  # C, (out, rank)
    rows: Tensor  # R, (rank, in)
    column_index: Tensor  # (rank,) int64
    row_index: Tensor  # (rank,) int64


class CoreLinear(AdaptedLinear):
    """A frozen linear layer plus `C core R`, with C and R stored by value.

    A subclass names the matrices whose product is the (rank, rank) core. They are float32 on any
    base dtype (float64 on a float64 base) and the product is zero when it is attached. `carry`
    says that they live on for the whole stream.
    """

    columns: Tensor
    rows: Tensor
    column_index: Tensor
    row_index: Tensor

    def __init__(
        self, base: nn.Module, chosen: Chosen, core: Mapping[str, Tensor], carry: bool
    ) -> None:
        super().__init__(base)
        self.carry = carry
        self._core_names = tuple(core)  # left to right
        for name, value in chosen._asdict().items():
            self.register_buffer(name, self._own(value))
        for name, value in core.items():
            self._train(name, value)

    def _own(self, value: Tensor) -> Tensor:
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        dtype = exact if value.is_floating_point() else value.dtype
        return value.detach().to(self.weight.device, dtype, copy=True).contiguous()

    def _train(self, name: str, value: Tensor) -> None:
        self.register_parameter(name, nn.Parameter(self._own(value)))
        self.register_buffer(f"{name}_start", self._own(value))  # at the start of the task

    @property
    def rank(self) -> int:
        """Return the number of columns, and of rows, that were chosen."""
        return self.rows.shape[0]

    @abstractmethod
    def core_delta(self) -> Tensor:
        """Return the core minus the core at the start of the task, (rank, rank)."""

    @abstractmethod
    def scale_core_delta(self, alpha: float) -> None:
        """Multiply `core_delta()` by `alpha`, in place."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted output, in the dtype of the base layer's output."""
        y: Tensor = self.base(x)
        return y + self._added(x).to(y.dtype)

    def _added(self, x: Tensor) -> Tensor:
        """Return `C core R x`, from the right, so that no (out, in) matrix is formed."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.rows.dtype)
        core = self._core("_start" if self._without else "")
        for matrix in (self.rows, *reversed(core), self.columns):
            x = functional.linear(x, matrix)
        return x

    def _core(self, suffix: str = "") -> tuple[Tensor, ...]:
        """Return the core's matrices, or with "_start" what they were at the start of the task."""
        return tuple(getattr(self, name + suffix) for name in self._core_names)

    @torch.no_grad()
    def change(self) -> Tensor:
        """Return `C core R`, (out, in)."""
        with self._plain():
            return self.columns @ functools.reduce(torch.matmul, self._core()) @ self.rows

    def delta(self) -> Tensor:
        """Return the weight's change since the start of the task, (out, in), with gradient."""
        with self._plain():
            return self.columns @ self.core_delta() @ self.rows

    def squared_norm(self) -> Tensor:
        """Return `||C K R||^2` with K = `core_delta()`, from the two small Gram matrices."""
        with self._plain():
            core = self.core_delta()
            seen = self.columns.T @ self.columns @ core @ (self.rows @ self.rows.T)
            return (core * seen).sum()

    @torch.no_grad()
    def scale_delta(self, alpha: float) -> None:
        """Multiply the change since the start of the task by `alpha`, in place."""
        with self._plain():
            self.scale_core_delta(alpha)

    @torch.no_grad()
    def shift(self, change: Tensor) -> None:
        """Add `change`, (out, in), to the weight that the task started from, in place."""
        self.weight.add_(change.T if is_transposed(self.base) else change)

    def start(self) -> dict[str, Tensor]:
        """Return the values that the trainables had at the start of the task."""
        return {name: getattr(self, f"{name}_start") for name in self.trainables()}

    @torch.no_grad()
    def start_task(self) -> None:
        """Take the present values as the start of a task."""
        for name, value in self.trainables().items():
            getattr(self, f"{name}_start").copy_(value)

    @contextmanager
    def _plain(self) -> Iterator[None]:
        with torch.autocast(self.rows.device.type, enabled=False), exact_float32():
            yield


@dataclass
class CurStrategy(Strategy):
    """Change every target by `C core R`, with C and R chosen once, from the base model.

    Where the change is folded after every task, the next one starts from the same C and R, so
    the reachable space stays what it was; they are then kept in `chosen_`, because a plain model
    has no place for them.
    """

    rank: int = 16
    selection: Selection = "inverse"
    inversion_offset: float = 0.0

    def __post_init__(self) -> None:
        self._check_count("rank")
        if self.selection not in SELECTIONS:
            self._refuse("selection", f"unknown; choices: {', '.join(SELECTIONS)}")
        offset = self.inversion_offset
        if type(offset) not in (int, float) or not 0 <= offset < float("inf"):
            self._refuse("inversion_offset", "not a number from 0 up")
        if offset and self.selection != "inverse":
            self._refuse("inversion_offset", f"without meaning for selection={self.selection!r}")

    def _check_count(self, field: str) -> None:
        value = getattr(self, field)
        if type(value) is not int or value < 1:
            self._refuse(field, "not a positive integer")

    def _refuse(self, field: str, reason: str) -> None:
        raise UserError(f"{self.name()}: {field} {getattr(self, field)!r} is {reason}")

    @property
    @abstractmethod
    def between_tasks(self) -> Literal["fold", "carry"]:
        """Return whether the change is folded after every task, or carried on to the next."""

    @abstractmethod
    def layer(self, base: nn.Module, kept: Mapping[str, Tensor], seed: str) -> CoreLinear:
        """Return the layer that starts from `kept`; `seed` is for draws while it trains."""

    def kept(self, weight: Tensor, chosen: Chosen) -> dict[str, Tensor]:
        """Return all that the layer of a weight, (out, in), starts from in every task."""
        return chosen._asdict()

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Attach to the columns and rows chosen in the first task, or go on with the carried."""
        carried = adapted(model)
        if carried:
            for layer in carried.values():
                layer.start_task()
            task.trained = dict(cast("dict[str, Trained]", carried))
            return model
        known: Mapping[str, dict[str, Tensor]] = self.state().get("chosen_", {})
        kept = {name: known.get(name) or self._chosen(model, name, task) for name in task.targets}
        freeze(model)
        layers = {
            name: self.layer(model.get_submodule(name), kept[name], self._seed(task, name))
            for name in task.targets
        }
        for name, layer in layers.items():
            replace(model, name, layer)
        task.trained = dict(layers)
        self.narrow_ = {n: c for n, layer in layers.items() if (c := self.caps(layer))}
        if self.between_tasks == "fold":
            self.chosen_ = kept
        return model

    def _chosen(self, model: nn.Module, name: str, task: TaskContext) -> dict[str, Tensor]:
        weight = read_weight(model.get_submodule(name))
        generator = seeded_generator(self._seed(task, name))
        chosen = choose(weight, self.rank, self.selection, self.inversion_offset, generator)
        if chosen is None:
            raise UserError(f"{self.name()}: {name} has no column other than zero to choose")
        return self.kept(weight, chosen)

    def _seed(self, task: TaskContext, layer: str) -> str:
        return f"{task.seed}/{self.name()}/{task.index}/{layer}"

    def caps(self, layer: Any) -> dict[str, int]:
        """Return the sizes that a layer has instead of the ones asked for."""
        return {"rank": layer.rank} if layer.rank < self.rank else {}

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Fold the change into the weights, unless it is carried."""
        return fold(model) if self.between_tasks == "fold" else model

    def facts(self) -> dict[str, Any]:
        """Return, per layer that is too narrow for them, the sizes used instead of the fields."""
        return {"narrow": self.narrow_} if self.narrow_ else {}


def blank(base: nn.Module, rank: int) -> Chosen:
    """Return columns and rows of zeros, whose values are loaded afterwards."""
    num_out, num_in = weight_shape(base)
    index = torch.zeros(rank, dtype=torch.int64)
    return Chosen(torch.zeros(num_out, rank), torch.zeros(rank, num_in), index, index)


def choose(
    weight: Tensor, rank: int, selection: Selection, offset: float, generator: torch.Generator
) -> Chosen | None:
    """Return `rank` columns and rows of a weight (out, in), fewer where it has fewer but zero.

    The importance of a column is its share p of the weight's squared norm, and rows alike:
    "inverse" draws with odds 1 / (p + offset), without replacement (CURLoRA, arXiv 2408.14572),
    "uniform" with equal odds, and "smallest" takes the least important ones, in that order.
    Columns of norm zero are never taken, since nothing can be learned through them. None where
    the weight is zero.
    """
    squares = weight.detach().double().square()
    importance = [(squares.sum(axis) / squares.sum()).cpu() for axis in (0, 1)]
    count = min(rank, *(int((p > 0).sum()) for p in importance))
    if count == 0:
        return None
    columns, rows = (_indices(p, count, selection, offset, generator) for p in importance)
    here = weight.detach()
    return Chosen(here[:, columns.to(here.device)], here[rows.to(here.device)], columns, rows)


def _indices(
    importance: Tensor, count: int, selection: Selection, offset: float, generator: torch.Generator
) -> Tensor:
    """Return `count` different indices of a vector that sums to 1, (count,) int64."""
    usable = importance.nonzero().squeeze(1)
    shares = importance[usable]
    if selection == "smallest":
        return usable[shares.sort(stable=True).indices[:count]]
    odds = 1.0 / (shares + offset) if selection == "inverse" else torch.ones_like(shares)
    drawn = torch.multinomial(odds / odds.sum(), count, replacement=False, generator=generator)
    return usable[drawn]
