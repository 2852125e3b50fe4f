"""LoRA: the plain low-rank adapter, and the baseline that every other one must beat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from clbench.adapters import Form, adapted, weight_shape
from clbench.errors import UserError
from clbench.linalg import Factors, seeded_generator
from clbench.strategy import Step, TaskContext

from .factors import FactorStrategy, Start


@dataclass
class Lora(FactorStrategy):
    """Low-rank adaptation (Hu et al., arXiv 2106.09685): up starts at 0, down at random.

    `down` is uniform in +-1/sqrt(in). `weight_decay` pulls both factors toward zero after each
    step, decoupled from the gradient: every factor is multiplied by `1 - lr * weight_decay`.
    That is harmless only because the product starts at zero.
    """

    form: ClassVar[Form] = "zero"

    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        decay = self.weight_decay
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not decay >= 0:
            raise UserError(f"{self.name()}: weight_decay {decay!r} is not a number from 0 up")

    def starts(self, model: nn.Module, task: TaskContext) -> Iterator[Start]:
        """Yield up = 0 and a random down for every target, from the task's own generator."""
        generator = seeded_generator(task.seed, self.name(), task.index)
        for name in task.targets:
            num_out, num_in = weight_shape(model.get_submodule(name))
            rank = min(self.rank, num_out, num_in)
            down = torch.rand(rank, num_in, generator=generator)  # (rank, in)
            down = (2.0 * down - 1.0) / num_in**0.5
            yield Start(name, Factors(torch.zeros(num_out, rank), down))

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: Step) -> None:
        """Decay the factors toward zero."""
        if self.weight_decay:
            for layer in adapted(model).values():
                for factor in layer.trainables().values():
                    factor.mul_(1.0 - step.lr * self.weight_decay)
