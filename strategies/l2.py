"""L2: every task pays for how far it moves the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from clbench.adapters import adapted
from clbench.strategy import Batch, Strategy

from .checks import check_strength


@dataclass
class L2(Strategy):
    """Add `strength / 2` times the squared norm of the weights' change since the task's start.

    The change is that of the full weight, so the same strength means the same for every adapter.
    """

    kind: ClassVar[Literal["adapter", "guard"]] = "guard"
    implies: ClassVar[str | None] = "lora"

    strength: float

    def __post_init__(self) -> None:
        check_strength(self)

    def penalty(self, model: nn.Module, batch: Batch, outputs: Any) -> Tensor | float:
        """Return `strength / 2 * sum ||delta||_F^2` over the adapted layers."""
        if not self.strength:
            return 0.0
        norms = [layer.squared_norm() for layer in adapted(model).values()]
        return 0.5 * self.strength * sum(norms[1:], norms[0])
