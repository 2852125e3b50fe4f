"""Passes through the model beside the training step: in eval mode, and leaving no trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from clbench.data import collate
from clbench.strategy import Batch, Example


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the context; afterwards every module is in its mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def forward(model: nn.Module, examples: Sequence[Example]) -> tuple[Batch, Tensor]:
    """Return the examples as one batch, and the model's logits, (rows, tokens, vocabulary)."""
    device = next(model.parameters()).device
    batch = collate(examples, 0, device)  # padding has neither attention nor a label
    outputs = cast(Any, model)(**batch.model_inputs(), use_cache=False)
    return batch, outputs.logits


def trainables(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that train."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
