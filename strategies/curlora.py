"""CURLoRA: a small square matrix between columns and rows of the weight itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .cur import Chosen, CoreLinear, CurStrategy, blank


class CurLinear(CoreLinear):
    """`W x + C U R x` with a U, (rank, rank), that starts at zero and alone trains."""

    core: nn.Parameter
    core_start: Tensor

    def __init__(self, base: nn.Module, chosen: Chosen, *, carry: bool = False) -> None:
        rank = len(chosen.rows)
        super().__init__(base, chosen, {"core": torch.zeros(rank, rank)}, carry)

    def settings(self) -> dict[str, Any]:
        """Return the rank, and whether U is carried on."""
        return {"rank": self.rank, "carry": self.carry}

    @classmethod
    def rebuild(cls, base: nn.Module, settings: Mapping[str, Any]) -> CurLinear:
        """Return a layer of the recorded rank, all zero."""
        return cls(base, blank(base, settings["rank"]), carry=settings["carry"])

    def core_delta(self) -> Tensor:
        """Return U minus U at the start of the task."""
        return self.core - self.core_start

    def scale_core_delta(self, alpha: float) -> None:
        """Move U to start + alpha * change."""
        self.core.copy_(self.core_start + alpha * self.core_delta())


@dataclass
class CurLora(CurStrategy):
    """CURLoRA (Fawi, arXiv 2408.14572): `W + C U R`, where U alone trains, from zero.

    C and R are columns and rows of W that matter little: drawn without replacement, with odds
    inverse to their share of the squared norm ("inverse"), the smallest ones ("smallest"), or
    any ("uniform", a control).
    """

    between_tasks: Literal["fold", "carry"] = "carry"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.between_tasks not in ("fold", "carry"):
            self._refuse("between_tasks", "unknown; choices: fold, carry")

    def layer(self, base: nn.Module, kept: Mapping[str, Tensor], seed: str) -> CurLinear:
        """Return a layer with U = 0 between the chosen columns and rows."""
        return CurLinear(base, Chosen(**kept), carry=self.between_tasks == "carry")

    def switches(self) -> dict[str, Any]:
        """Return how columns and rows are chosen, and a fold where there is one."""
        folds = {"between_tasks": "fold"} if self.between_tasks == "fold" else {}
        return {"selection": self.selection, **folds}
