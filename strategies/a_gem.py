"""A-GEM: no step may go against a batch from the memory of past tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clbench.data import num_labels, num_tokens
from clbench.linalg import seeded_generator
from clbench.strategy import Example, Step, Strategy, TaskContext
from clbench.training import answer_loss

from .checks import check_count
from .passes import eval_mode, forward, trainables
from .reservoir import Reservoir


@dataclass
class AGem(Strategy):
    """Averaged gradient episodic memory (Chaudhry et al., arXiv 1812.00420).

    Before every step the gradient g_ref of `batch_size` random examples of past tasks is taken on
    the present weights. Where `g . g_ref < 0`, over all trained values at once, g loses its part
    along g_ref; elsewhere it stays what it is. The memory is a uniform sample of `memory_size`
    examples of the tasks that have ended.
    """

    kind: ClassVar[Literal["adapter", "guard"]] = "guard"
    implies: ClassVar[str | None] = "lora"

    memory_size: int = 500
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_count(self, "memory_size")
        check_count(self, "batch_size")

    @classmethod
    def name(cls) -> str:
        """Return the name on the command line."""
        return "a-gem"

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Start a stream with an empty memory, and count anew."""
        if task.index == 0:
            self.memory_ = Reservoir(self.memory_size, self._generator(task, "memory")).state()
        self.seed_, self.index_ = task.seed, task.index
        self.tokens_ = self.conflicts_ = self.steps_ = 0
        return model

    def before_step(self, model: nn.Module, step: Step) -> None:
        """Make the gradient agree with that of a memory batch."""
        if not self.memory_["items"]:
            return
        drawn = self._drawn(step)
        parameters = [p for p in trainables(model) if p.grad is not None]
        reference = _gradient(model, drawn, parameters)
        self.tokens_ += num_tokens(drawn)
        self.steps_ += 1
        self.conflicts_ += _project([p.grad for p in parameters if p.grad is not None], reference)

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Offer each of the task's examples to the memory, once."""
        memory = Reservoir.load(self.memory_, self._generator(task, "memory"))
        for example in task.examples():
            memory.offer(example)
        self.memory_ = memory.state()
        return model

    def facts(self) -> dict[str, Any]:
        """Return how many of the task's steps were in conflict, and what it cost."""
        items = self.memory_["items"]
        return {
            "conflicts": self.conflicts_,
            "steps_compared": self.steps_,
            "memory_examples": len(items),
            "memory_bytes": 9 * num_tokens(items),  # an int64 id and a byte of mask
            "tokens_extra_forward": self.tokens_,
            "tokens_extra_backward": self.tokens_,
        }

    def _drawn(self, step: Step) -> list[Example]:
        items = self.memory_["items"]
        generator = seeded_generator(self.seed_, self.name(), "batch", self.index_, step.index)
        order = torch.randperm(len(items), generator=generator)[: self.batch_size]
        return [items[index] for index in order.tolist()]

    def _generator(self, task: TaskContext, purpose: str) -> torch.Generator:
        return seeded_generator(task.seed, self.name(), purpose, task.index)


def _gradient(
    model: nn.Module, examples: Sequence[Example], parameters: Sequence[nn.Parameter]
) -> list[Tensor]:
    """Return the gradient of the examples' loss per answer token; `.grad` stays as it is."""
    with eval_mode(model):
        batch, logits = forward(model, examples)
        loss = answer_loss(logits, batch.labels) / num_labels(examples)
        return list(torch.autograd.grad(loss, parameters, materialize_grads=True))


def _project(gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> bool:
    """Remove from the gradients, in place, their part along the reference if that is negative."""
    product = _dot(gradients, reference)
    if not product < 0:
        return False
    share = product / _dot(reference, reference)
    for gradient, along in zip(gradients, reference, strict=True):
        gradient -= share * along
    return True


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the inner product over all tensors, summed in float64."""
    products = [(a * b).sum(dtype=torch.float64) for a, b in zip(one, other, strict=True)]
    return float(torch.stack(products).sum())
