"""Sparse: let each task change few entries of the weights."""

from dataclasses import dataclass
from typing import ClassVar

from clbench import Strategy
from clbench.adapters import adapted


@dataclass
class Sparse(Strategy):
    """Add `strength` times the mean absolute change of every trained weight to the loss."""

    kind: ClassVar = "guard"
    implies: ClassVar = "lora"
    strength: float = 1.0

    def penalty(self, model, batch, outputs):
        return self.strength * sum(t.delta().abs().mean() for t in adapted(model).values())
