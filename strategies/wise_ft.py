"""WiSE-FT: what is kept of a task lies between where it started and where it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from clbench.adapters import AdaptedLinear, adapted, read_weight
from clbench.errors import UserError
from clbench.strategy import Strategy, TaskContext

from .checks import carries, check_choice, check_number


@dataclass
class WiseFt(Strategy):
    """Interpolate at the end of a task (Wortsman et al., arXiv 2109.01903): 1 keeps all of it.

    `anchor="task"` scales the change of this task alone. "stream" goes back toward the base model
    after every task, so that of T tasks the k-th keeps `alpha ** (T - k + 1)` of its change.
    """

    kind: ClassVar[Literal["adapter", "guard"]] = "guard"
    implies: ClassVar[str | None] = "lora"

    alpha: float
    anchor: Literal["task", "stream"] = "task"

    def __post_init__(self) -> None:
        check_number(self, "alpha", lambda value: 0 <= value <= 1, "a number from 0 to 1")
        check_choice(self, "anchor", "task", "stream")

    def expected_failures(self) -> dict[str, str]:
        """Return what interpolation is for."""
        if self.alpha == 1:
            return {}
        return {
            "end_task_keeps_function": "moving the weights at the end of a task is what it does"
        }

    def refuses(self, others: Sequence[Strategy]) -> str | None:
        """Return why the change of one task must be separable."""
        adapter = carries(others)
        if adapter is None:
            return None
        return (
            "wise-ft scales the change of one task, and factors that are carried on hold those of "
            f"all tasks; let {adapter.name()} fold its change at the end of each task"
        )

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Remember the base model where it is the anchor.

        Raises UserError for a layer that cannot go back to it.
        """
        if task.index > 0 or self.anchor == "task":
            return model
        self.base_: dict[str, Tensor] = {}
        for name, layer in adapted(model).items():
            if type(layer).shift is AdaptedLinear.shift:
                raise UserError(
                    f"wise-ft: anchor 'stream' moves the weight that a task started from, which "
                    f"{name}, a layer of type {type(layer).__name__}, cannot; use anchor=task"
                )
            self.base_[name] = read_weight(layer.base).clone()
        return model

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Scale this task's change and, toward the base model, what the ones before left."""
        if self.alpha == 1:
            return model
        for name, layer in adapted(model).items():
            layer.scale_delta(self.alpha)
            if self.anchor == "stream":
                start = read_weight(layer.base).float()
                before = start - self.base_[name].to(start)  # (out, in)
                layer.shift((self.alpha - 1.0) * before)
        return model
