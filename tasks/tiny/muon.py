"""Muon: momentum made orthogonal (Jordan et al. 2024); it learns rare facts in fewer steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Push the singular values of each matrix of (count, rows, columns) towards 1."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: torch.Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Steps matrices along their orthogonalized momentum; `lr` is the size of a step's entries."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], momentum: float = 0.95) -> None:
        """Keep a buffer per matrix; matrices of one shape are stepped together."""
        groups: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            groups[parameter.shape].append(parameter)
        self.groups = list(groups.values())
        self.buffers = {p: torch.zeros_like(p) for group in self.groups for p in group}
        self.momentum = momentum

    @torch.no_grad()
    def step(self, lr: float, decay: float) -> None:
        """Take one step with Nesterov momentum and decoupled decay."""
        for group in self.groups:
            updates = []
            for parameter in group:
                assert parameter.grad is not None
                buffer = self.buffers[parameter].lerp_(parameter.grad, 1 - self.momentum)
                updates.append(parameter.grad.lerp(buffer, self.momentum))
            rows, columns = group[0].shape
            scale = max(1.0, rows / columns) ** 0.5
            for parameter, update in zip(group, orthogonalize(torch.stack(updates)), strict=True):
                parameter.mul_(1 - lr * decay).add_(update, alpha=-lr * scale)
