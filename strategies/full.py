"""Full fine-tuning of the target weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clbench.adapters import AdaptedLinear, fold, freeze, is_transposed, replace
from clbench.strategy import Strategy, TaskContext


class FullLinear(AdaptedLinear):
    """A linear layer that trains all of its weight, in float32, beside the frozen one.

    The frozen weight is the start that guards and the record measure the change from. On a
    bfloat16 model the trained weight is its float32 master; it is rounded in every forward pass
    and once, for good, when it is folded. Biases stay as they are.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        self.master = nn.Parameter(self.weight.detach().to(dtype, copy=True))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the base layer computes with the trained weight."""
        weight = self.weight if self._without else self.master.to(self.weight.dtype)
        output: Tensor = functional_call(self.base, {"weight": weight}, (x,))
        return output

    def settings(self) -> dict[str, Any]:
        """Return nothing: the structure follows from the base layer."""
        return {}

    @classmethod
    def rebuild(cls, base: nn.Module, settings: Mapping[str, Any]) -> FullLinear:
        """Return a layer that starts at the base weight."""
        return cls(base)

    def folded(self) -> Tensor:
        """Return the trained weight, rounded once."""
        return self.master.detach().to(self.weight.dtype)

    def change(self) -> Tensor:
        """Return the trained weight minus the frozen one, (out, in)."""
        return self.delta().detach()

    def delta(self) -> Tensor:
        """Return the same with gradient."""
        moved = self.master - self.weight
        return moved.T if is_transposed(self.base) else moved

    @torch.no_grad()
    def scale_delta(self, alpha: float) -> None:
        """Move the trained weight to start + alpha * change."""
        self.master.copy_(self.weight + alpha * (self.master - self.weight))

    @torch.no_grad()
    def shift(self, change: Tensor) -> None:
        """Add `change`, (out, in), to both the frozen and the trained weight."""
        moved = self.master - self.weight
        self.weight.add_(change.T if is_transposed(self.base) else change)
        self.master.copy_(self.weight + moved)

    def start(self) -> dict[str, Tensor]:
        """Return the weight at the start of the task, in the trained weight's own layout."""
        return {"master": self.weight.detach().to(self.master.dtype)}


@dataclass
class Full(Strategy):
    """Train every target weight as a whole: the most plastic strategy, and the most forgetful."""

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Let the target weights train, and nothing else."""
        freeze(model)
        layers = {name: FullLinear(model.get_submodule(name)) for name in task.targets}
        for name, layer in layers.items():
            replace(model, name, layer)
        task.trained = dict(layers)
        return model

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Round the trained weights into the model."""
        return fold(model)
