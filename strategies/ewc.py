"""Elastic weight consolidation: what earlier tasks found important is held in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clbench.adapters import adapted
from clbench.errors import UserError
from clbench.linalg import seeded_generator
from clbench.strategy import Batch, Example, Strategy, TaskContext

from .checks import carries, check_choice, check_count, check_number, check_strength
from .fisher import Labels, Space, TokenReduction, displacement, estimate


@dataclass
class Ewc(Strategy):
    """Elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796).

    The penalty is `strength / 2 * sum F (theta - anchor)^2` with F the diagonal Fisher of earlier
    tasks. `mode="online"` keeps one F, decayed by `gamma` per task, around the latest weights;
    "separate" keeps the sum of one penalty per task, each around the weights of its own. Every
    position is relative to the start of the present task, so a fold moves no anchor. `space` is
    "factors", for factors that are carried on, or "delta", the full weight (EWC-LoRA, arXiv
    2602.17559); None takes the first where it is possible.
    """

    kind: ClassVar[Literal["adapter", "guard"]] = "guard"
    implies: ClassVar[str | None] = "lora"
    implies_params: ClassVar[Mapping[str, Any]] = {"between_tasks": "carry"}

    strength: float
    mode: Literal["online", "separate"] = "online"
    gamma: float = 1.0
    space: Space | None = None
    labels: Labels = "empirical"
    per_sample: bool = True
    num_examples: int = 512
    token_reduction: TokenReduction = "mean"

    def __post_init__(self) -> None:
        check_strength(self)
        check_choice(self, "mode", "online", "separate")
        check_number(self, "gamma", lambda value: 0 < value <= 1, "a number above 0 and up to 1")
        if self.mode == "separate" and self.gamma != 1:
            raise UserError(f"ewc: gamma {self.gamma!r} is not 1, but mode 'separate' never decays")
        if self.space is not None:
            check_choice(self, "space", "factors", "delta")
        check_choice(self, "labels", "empirical", "sampled")
        check_count(self, "num_examples")
        check_choice(self, "token_reduction", "mean", "sum")

    def refuses(self, others: Sequence[Strategy]) -> str | None:
        """Return why factors that are folded cannot be guarded one by one."""
        if self.space != "factors" or carries(others):
            return None
        return (
            "ewc.space='factors' needs factors that are carried on: after a fold the old ones are "
            "part of the weight, and their Fisher would guard new ones that have other meanings; "
            "set between_tasks=carry, or ewc.space=delta"
        )

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Start a stream without any importance."""
        if task.index == 0:
            self.fisher_: dict[str, Tensor] = {}
            self.pull_: dict[str, Tensor] = {}  # sum of F_k (anchor_k - start of this task)
        return model

    def penalty(self, model: nn.Module, batch: Batch, outputs: Any) -> Tensor | float:
        """Return `strength * sum (F/2 d^2 - pull d)`, d the displacement since the task's start."""
        if not (self.strength and self.fisher_):
            return 0.0
        total: Tensor | float = 0.0
        for key, moved in displacement(model, self._space(model)):
            if key in self.fisher_:
                total = total + 0.5 * (self.fisher_[key].to(moved) * moved.square()).sum()
            if key in self.pull_:
                total = total - (self.pull_[key].to(moved) * moved).sum()
        return self.strength * total

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Estimate the Fisher where the task has ended, and make the end the new origin."""
        space = self._space(model)
        generator = seeded_generator(task.seed, self.name(), task.index)
        found = estimate(
            model,
            self._batches(task, generator),
            space=space,
            labels=self.labels,
            token_reduction=self.token_reduction,
            generator=generator,
        )
        self.tokens_, self.mean_ = found.tokens, found.mean
        if self.mode == "separate":
            self._move_origin(model, space)
        for key, values in found.values.items():
            kept = self.fisher_.get(key)
            self.fisher_[key] = values if kept is None else self.gamma * kept.to(values) + values
        return model

    def facts(self) -> dict[str, Any]:
        """Return the mean of the Fisher of the task that ended, and the tokens it took."""
        return {
            "fisher_mean": self.mean_,
            "tokens_extra_forward": self.tokens_,
            "tokens_extra_backward": self.tokens_,
        }

    @torch.no_grad()
    def _move_origin(self, model: nn.Module, space: Space) -> None:
        """Take the anchors relative to where the weights are now."""
        for key, moved in displacement(model, space):
            if key in self.fisher_:
                step = self.fisher_[key].to(moved) * moved
                self.pull_[key] = self.pull_[key].to(moved) - step if key in self.pull_ else -step

    def _batches(
        self, task: TaskContext, generator: torch.Generator
    ) -> Iterator[Sequence[Example]]:
        """Yield `num_examples` random examples, one by one or in batches as they were trained."""
        examples = task.examples()
        order = torch.randperm(len(examples), generator=generator)[: self.num_examples].tolist()
        size = 1 if self.per_sample else len(next(task.batches()).examples)
        for start in range(0, len(order), size):
            yield [examples[index] for index in order[start : start + size]]

    def _space(self, model: nn.Module) -> Space:
        if self.space is not None:
            return self.space
        carried = all(layer.carry for layer in adapted(model).values())
        return "factors" if carried else "delta"
