"""Gradient projection memory: no weight may change what it does to the inputs of past tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from clbench.adapters import AdaptedLinear, FactorLinear, adapted, is_transposed
from clbench.errors import UserError
from clbench.linalg import exact_float32
from clbench.strategy import Step, Strategy, TaskContext

from .checks import carries, check_number
from .full import FullLinear


class Held(NamedTuple):
    """What of a layer meets its input and trains."""

    weight: nn.Parameter  # in its own layout
    anchor: Tensor | float  # the value from which it may move, outside of `basis` only
    basis: Tensor  # (in, directions), orthonormal columns
    transposed: bool  # whether the layout is (in, rows), else (rows, in)


@dataclass
class Gpm(Strategy):
    """Keep weight changes out of the span of past inputs (Saha et al., arXiv 2103.09762).

    Per layer a basis M of past inputs grows, before every task, by the fewest directions with
    which it holds `threshold` of the energy of the inputs of the tasks seen. Gradients are
    projected, `g - g M M^T`, and so is the change of the weights, because Adam rescales what it
    is given. Of a pair of factors `down` is kept outside, from the start.
    """

    kind: ClassVar[Literal["adapter", "guard"]] = "guard"
    implies: ClassVar[str | None] = "lora"

    threshold: float

    def __post_init__(self) -> None:
        check_number(self, "threshold", lambda value: 0 < value < 1, "a number between 0 and 1")

    def calibration_sources(self) -> frozenset[str]:
        """Return the inputs of the tasks that were learned."""
        return frozenset({"seen"})

    def refuses(self, others: Sequence[Strategy]) -> str | None:
        """Return why carried factors cannot be kept outside of a growing space."""
        adapter = carries(others)
        if adapter is None:
            return None
        return (
            "gpm keeps past inputs out of fresh factors, and factors that are carried on have met "
            f"them already; let {adapter.name()} fold its change at the end of each task"
        )

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Let the bases grow, and take what they span out of fresh factors.

        Raises UserError for a layer that it cannot protect and where a covariance is missing.
        """
        layers = adapted(model)
        for name, layer in layers.items():
            if type(layer) not in (FactorLinear, FullLinear):
                raise UserError(
                    f"gpm cannot protect {name}, a layer of type {type(layer).__name__}; it can "
                    "protect the weights of full and plain pairs of factors"
                )
        if task.index == 0:
            self.basis_: dict[str, Tensor] = {}
        else:
            self._grow(task, list(layers))
        for name, layer in layers.items():
            if isinstance(layer, FactorLinear) and name in self.basis_:
                _start_outside(layer, self.basis_[name])
        return model

    def before_step(self, model: nn.Module, step: Step) -> None:
        """Take out of the gradients what would change the answer to a past input."""
        for held in self._held(model):
            if held.weight.grad is not None:
                _remove(held.weight.grad, 0.0, held)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: Step) -> None:
        """Take the same out of the change of the weights."""
        for held in self._held(model):
            _remove(held.weight, held.anchor, held)

    def facts(self) -> dict[str, Any]:
        """Return the mean share of the input directions that was protected."""
        shares = [basis.shape[1] / basis.shape[0] for basis in self.basis_.values()]
        return {"protected_share": sum(shares) / len(shares) if shares else 0.0}

    def _grow(self, task: TaskContext, layers: Sequence[str]) -> None:
        seen = task.covariances.get("seen", {})
        missing = [name for name in layers if name not in set(seen)]
        if missing:
            raise UserError(f"gpm needs the 'seen' covariance of {missing[0]}; got none")
        last: Tensor | None = None
        for name in seen:  # in the order in which a lazy mapping streams
            covariance = seen[name]
            if covariance is not last:  # layers that share an input share its basis
                basis = grown(self.basis_.get(name), covariance, self.threshold)
            self.basis_[name] = basis
            last = covariance

    def _held(self, model: nn.Module) -> Iterator[Held]:
        for name, layer in adapted(model).items():
            basis = self.basis_.get(name)
            if basis is None:
                continue
            held = _held(layer, basis.to(layer.weight.device))
            if held.weight.requires_grad:
                yield held


def grown(basis: Tensor | None, covariance: Tensor, threshold: float) -> Tensor:
    """Return the basis with the fewest further directions that make it hold enough energy.

    The energy that M holds of inputs with second moment C is `tr(M^T C M) / tr(C)`. What is
    added are the leading eigenvectors of `(I - M M^T) C (I - M M^T)`, (in, directions) float32.
    """
    moment = covariance.double()
    kept = moment.new_zeros(len(moment), 0) if basis is None else basis.to(moment)
    outside = torch.eye(len(moment)).to(moment) - kept @ kept.T
    values, vectors = torch.linalg.eigh(outside @ moment @ outside)
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    wanted = threshold * moment.trace() - (kept.T @ moment @ kept).trace()
    before = values.cumsum(0) - values  # energy of the directions ahead of each one
    num = min(int((before < wanted).sum()), len(moment) - kept.shape[1])
    orthonormal: Tensor = torch.linalg.qr(torch.cat((kept, vectors[:, :num]), 1)).Q
    return orthonormal.float()


def _held(layer: AdaptedLinear, basis: Tensor) -> Held:
    if isinstance(layer, FullLinear):
        return Held(layer.master, layer.weight, basis, is_transposed(layer))
    assert isinstance(layer, FactorLinear)
    # the attached value is outside already: what has not moved keeps every bit
    anchor = 0.0 if layer.down0 is None else layer.down0
    return Held(layer.down, anchor, basis, transposed=False)


@torch.no_grad()
def _remove(tensor: Tensor, anchor: Tensor | float, held: Held) -> None:
    """Subtract from a tensor, in place, what its distance from `anchor` has inside the basis."""
    with exact_float32():
        moved = tensor - anchor
        basis = held.basis.to(moved.dtype)
        if held.transposed:
            tensor -= basis @ (basis.T @ moved)
        else:
            tensor -= (moved @ basis) @ basis.T


@torch.no_grad()
def _start_outside(layer: FactorLinear, basis: Tensor) -> None:
    """Project `down` of fresh factors; their change, and so the function, is still zero."""
    held = Held(layer.down, 0.0, basis.to(layer.down.device), transposed=False)
    _remove(layer.down, 0.0, held)
    if layer.down0 is not None:
        layer.down0.copy_(layer.down)
