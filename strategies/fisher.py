"""The diagonal Fisher information of a model's present weights, estimated on examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.adapters import AdaptedLinear, adapted, weight_shape
from clbench.data import num_tokens
from clbench.linalg import exact_float32
from clbench.strategy import Example

from .passes import eval_mode, forward

Space = Literal["factors", "delta"]
Labels = Literal["empirical", "sampled"]
TokenReduction = Literal["mean", "sum"]


class Fisher(NamedTuple):
    """Mean squared gradients, and what they cost."""

    values: dict[str, Tensor]  # by coordinate, see `displacement`; float32
    tokens: int  # forwarded, and as many backwarded

    @property
    def mean(self) -> float:
        """Return the mean over all coordinates."""
        total = sum(float(value.sum(dtype=torch.float64)) for value in self.values.values())
        return total / sum(value.numel() for value in self.values.values())


def displacement(model: nn.Module, space: Space) -> Iterator[tuple[str, Tensor]]:
    """Yield how far each coordinate is from the start of the task, with gradient.

    In "delta" space a coordinate is the weight of a layer, (out, in), under the layer's name; in
    "factors" space it is a trained tensor under "layer/tensor".
    """
    for name, layer in adapted(model).items():
        if space == "delta":
            yield name, layer.delta()
            continue
        present = layer.trainables()
        for local, start in layer.start().items():
            yield f"{name}/{local}", present[local] - start


def estimate(
    model: nn.Module,
    batches: Iterable[Sequence[Example]],
    *,
    space: Space,
    labels: Labels,
    token_reduction: TokenReduction,
    generator: torch.Generator,
) -> Fisher:
    """Return the mean, over the batches, of the squared gradient of a batch's loss.

    With one example per batch that is the Fisher of Kirkpatrick et al. (arXiv 1612.00796),
    empirical, or with answers sampled from the model while the true ones are what it reads. The
    loss is the task's alone, in eval mode; `.grad` and hooks are left as they are.
    """
    layers = adapted(model)
    parameters = {
        f"{name}/{local}": parameter
        for name, layer in layers.items()
        for local, parameter in layer.trainables().items()
    }
    sums: dict[str, Tensor] = {}
    watched = _squares_of_weight_gradients(layers, sums) if space == "delta" else nullcontext()
    num = tokens = 0
    with eval_mode(model), exact_float32(), watched:
        for examples in batches:
            loss = _loss(model, examples, labels, token_reduction, generator)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            if space == "factors":
                for key, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:  # None: a layer that no token reached
                        _add(sums, key, gradient.square())
            num += 1
            tokens += num_tokens(examples)
    return Fisher({key: total / num for key, total in sums.items()}, tokens)


def _loss(
    model: nn.Module,
    examples: Sequence[Example],
    labels: Labels,
    token_reduction: TokenReduction,
    generator: torch.Generator,
) -> Tensor:
    """Return the mean over examples of an example's loss, a mean or sum over its answer tokens."""
    batch, logits = forward(model, examples)
    targets = batch.labels[:, 1:]
    labelled = targets >= 0  # (rows, tokens - 1)
    chosen = logits[:, :-1][labelled].float()  # (answer tokens, vocabulary)
    if labels == "empirical":
        answers = targets[labelled]
    else:
        probabilities = chosen.detach().softmax(1).cpu()
        answers = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(chosen.device)
    losses = F.cross_entropy(chosen, answers, reduction="none")
    if token_reduction == "mean":
        lengths = labelled.sum(1, keepdim=True).expand_as(labelled)[labelled]
        losses = losses / lengths
    return losses.sum() / len(examples)


@contextmanager
def _squares_of_weight_gradients(
    layers: Mapping[str, AdaptedLinear], sums: dict[str, Tensor]
) -> Iterator[None]:
    """Add to `sums`, in every backward pass, the square of each layer's weight gradient.

    The gradient is the sum over tokens of g x^T, with g that of the layer's output: it exists
    for one layer at a time, whatever of the weight trains.
    """
    handles = []
    for name, layer in layers.items():

        def watch(
            module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name
        ) -> None:
            x = inputs[0].detach()

            def square(g: Tensor) -> None:
                _add(sums, name, _weight_gradient(module, g, x).square())

            cast(Any, output).register_hook(square)

        handles.append(layer.register_forward_hook(watch))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _weight_gradient(layer: nn.Module, g: Tensor, x: Tensor) -> Tensor:
    """Return the sum over tokens of g x^T, (out, in), in float32 or more."""
    num_out, num_in = weight_shape(layer)
    dtype = torch.promote_types(x.dtype, torch.float32)
    return g.reshape(-1, num_out).to(dtype).T @ x.reshape(-1, num_in).to(dtype)


def _add(sums: dict[str, Tensor], key: str, value: Tensor) -> None:
    if key in sums:
        sums[key] += value
    else:
        sums[key] = value
