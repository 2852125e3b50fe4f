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

from .factors import FactorStrategy, Start, is_number


@dataclass
class RandomStart(FactorStrategy):
    """Factors that start at up = 0 and a random down, uniform in +-1/sqrt(in)."""

    form: ClassVar[Form] = "zero"

    def starts(self, model: nn.Module, task: TaskContext) -> Iterator[Start]:
        """Yield them for every target, drawn from the task's own generator."""
        generator = seeded_generator(task.seed, self.name(), task.index)
        for name in task.targets:
            num_out, num_in = weight_shape(model.get_submodule(name))
            rank = min(self.rank, num_out, num_in)
            down = torch.rand(rank, num_in, generator=generator)  # (rank, in)
            down = (2.0 * down - 1.0) / num_in**0.5
            yield Start(name, Factors(torch.zeros(num_out, rank), down))


@dataclass
class Lora(RandomStart):
    """Low-rank adaptation (Hu et al., arXiv 2106.09685): up starts at 0, down at random.

    `weight_decay` pulls both factors toward zero after each step, decoupled from the gradient:
    every factor is multiplied by `1 - lr * weight_decay`. That is harmless only because the
    product starts at zero.
    """

    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(
                f"{self.name()}: weight_decay {self.weight_decay!r} is not a number from 0 up"
            )

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: Step) -> None:
        """Decay the factors toward zero."""
        if self.weight_decay:
            for layer in adapted(model).values():
                for factor in layer.trainables().values():
                    factor.mul_(1.0 - step.lr * self.weight_decay)
