"""Learning without forgetting: stay close to what the model said before the task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.adapters import adapted
from clbench.data import num_tokens
from clbench.strategy import Batch, Strategy, TaskContext

from .checks import check_number, check_strength
from .passes import eval_mode


@dataclass
class Lwf(Strategy):
    """Distil from the model at the task's start, on the task's inputs (arXiv 1606.09282).

    The penalty is `strength * T^2 * KL(teacher || student)`, both softened by the temperature T,
    averaged over the answer tokens. The teacher is the present model without this task's change.
    """

    kind: ClassVar[Literal["adapter", "guard"]] = "guard"
    implies: ClassVar[str | None] = "lora"

    strength: float
    temperature: float = 2.0

    def __post_init__(self) -> None:
        check_strength(self)
        check_number(self, "temperature", lambda value: value > 0, "a positive number")

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Count the teacher's tokens anew."""
        self.tokens_ = 0
        return model

    def penalty(self, model: nn.Module, batch: Batch, outputs: Any) -> Tensor | float:
        """Return the divergence of the student from the teacher where there is an answer."""
        if not self.strength:
            return 0.0
        self.tokens_ += num_tokens(batch.examples)
        answers = batch.labels[:, 1:] >= 0
        student = self._log_probabilities(outputs.logits, answers)
        with _as_at_the_start(model), _precision_of(outputs.logits, model):
            logits = cast(Any, model)(**batch.model_inputs(), use_cache=False).logits
        teacher = self._log_probabilities(logits, answers)
        divergence = F.kl_div(student, teacher, reduction="sum", log_target=True) / len(student)
        return self.strength * self.temperature**2 * divergence

    def facts(self) -> dict[str, Any]:
        """Return the tokens that the teacher read."""
        return {"tokens_extra_forward": self.tokens_}

    def _log_probabilities(self, logits: Tensor, answers: Tensor) -> Tensor:
        """Return those of the answer tokens, (tokens, vocabulary), softened."""
        chosen = logits[:, :-1][answers].float()
        return torch.log_softmax(chosen / self.temperature, dim=1)


@contextmanager
def _as_at_the_start(model: nn.Module) -> Iterator[None]:
    """Compute inside the context what the model computed when the task started."""
    with ExitStack() as stack:
        for layer in adapted(model).values():
            stack.enter_context(layer.without_delta())
        stack.enter_context(eval_mode(model))
        stack.enter_context(torch.no_grad())
        yield


def _precision_of(logits: Tensor, model: nn.Module) -> torch.autocast:
    """Return the autocast that the training step had, as its logits show: the driver's is over."""
    head = cast(Any, model).get_output_embeddings().weight
    device = logits.device.type
    return torch.autocast(device, dtype=logits.dtype, enabled=logits.dtype != head.dtype)
