"""What every factor adapter shares: fields, attaching, folding or carrying on."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

from torch import nn

from clbench.adapters import AdaptedLinear, Form, Side, adapted, attach, fold, freeze
from clbench.errors import UserError
from clbench.linalg import Factors
from clbench.strategy import Strategy, TaskContext, Trained


class Start(NamedTuple):
    """The factors that one layer starts a task with."""

    layer: str
    factors: Factors


@dataclass
class FactorStrategy(Strategy):
    """A low-rank adapter on every target: a subclass says what its factors start at.

    `alpha` is the numerator of the scale alpha / rank; None is alpha = rank. With
    `between_tasks="fold"` each task gets fresh factors that are folded into the weight at its
    end; with "carry" one set lives on for the whole stream.
    """

    form: ClassVar[Form] = "difference"

    rank: int = 16
    alpha: float | None = None
    between_tasks: Literal["fold", "carry"] = "fold"

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise UserError(f"{self.name()}: rank {self.rank!r} is not a positive integer")
        if self.alpha is not None and not (is_number(self.alpha) and self.alpha > 0):
            raise UserError(f"{self.name()}: alpha {self.alpha!r} is not a positive number")
        self._check_choice("between_tasks", "fold", "carry")

    def switches(self) -> dict[str, Any]:
        """Return what makes it another method: one set of factors for the whole stream."""
        return {"between_tasks": "carry"} if self.between_tasks == "carry" else {}

    @property
    def scale(self) -> float:
        """Return alpha / rank, of the requested rank even where a narrow layer gets less."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def trained_side(self) -> Side:
        """Return which factors train; the other one is frozen."""
        return "both"

    @abstractmethod
    def starts(self, model: nn.Module, task: TaskContext) -> Iterable[Start]:
        """Yield the starting factors of every target; the model is not changed meanwhile."""

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Attach fresh factors, or go on with the ones that are carried."""
        carried = adapted(model)
        if carried and self.between_tasks == "carry":
            for layer in carried.values():
                layer.start_task()
            task.trained = dict(cast("dict[str, Trained]", carried))
            return model
        starts = list(self.starts(model, task))  # all of them before the model changes
        freeze(model)
        task.trained = {start.layer: self.attach(model, start) for start in starts}
        return model

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Fold the factors into the weights, unless they are carried."""
        return fold(model) if self.between_tasks == "fold" else model

    def attach(self, model: nn.Module, start: Start) -> AdaptedLinear:
        """Put starting factors on their layer."""
        return attach(
            model,
            start.layer,
            *start.factors,
            scale=self.scale,
            trains=self.trained_side(),
            form=self.form,
            carry=self.between_tasks == "carry",
        )

    def _check_choice(self, field: str, *choices: str) -> None:
        value = getattr(self, field)
        if value not in choices:
            raise UserError(
                f"{self.name()}: {field} {value!r} is unknown; choices: {', '.join(choices)}"
            )

    def _check_share(self, field: str) -> None:
        value = getattr(self, field)
        if not (is_number(value) and 0 <= value <= 1):
            raise UserError(f"{self.name()}: {field} {value!r} is not a number from 0 to 1")


def is_number(value: object) -> bool:
    """Say whether a hyperparameter is a finite number, which True is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
