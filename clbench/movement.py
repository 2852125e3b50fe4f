"""How far the target weights have moved, relative to where they were."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clbench.adapters import adapted, read_weight


class StartWeights:
    """Copies of the base model's target weights, on the CPU and in its dtype."""

    def __init__(self, model: nn.Module, targets: Sequence[str]) -> None:
        self.weights = {name: _weight(model, name) for name in targets}

    def movement(self, model: nn.Module) -> dict[str, float]:
        """Return ||W - W_0||_F / ||W_0||_F over all targets ("all") and per kind of module."""
        moved: dict[str, list[float]] = defaultdict(list)
        norms: dict[str, list[float]] = defaultdict(list)
        for name, start in self.weights.items():
            difference = _weight(model, name).float() - start.float()
            for kind in ("all", name.rpartition(".")[2]):
                moved[kind].append(_squared_norm(difference))
                norms[kind].append(_squared_norm(start))
        return {kind: _ratio(moved[kind], norms[kind]) for kind in sorted(moved)}


@torch.no_grad()
def task_movement(model: nn.Module) -> float | None:
    """Return ||W_k - W_{k-1}||_F / ||W_{k-1}||_F of the adapted layers, None without any."""
    layers = adapted(model)
    if not layers:
        return None
    moved = [_squared_norm(layer.delta()) for layer in layers.values()]
    return _ratio(moved, [_squared_norm(layer.weight) for layer in layers.values()])


def _weight(model: nn.Module, name: str) -> Tensor:
    return read_weight(model.get_submodule(name)).cpu().clone()


def _squared_norm(tensor: Tensor) -> float:
    return float(tensor.detach().float().square().sum(dtype=torch.float64))


def _ratio(moved: Sequence[float], norms: Sequence[float]) -> float:
    total = math.fsum(norms)
    return math.sqrt(math.fsum(moved) / total) if total else 0.0
