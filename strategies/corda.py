"""Starts from a weight and its inputs together: the same engine, on the output side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from clbench.linalg import (
    Factors,
    exact_float32,
    output_factors,
    scaled_factors,
    singular_triples,
    top_eigenvectors,
)
from clbench.strategy import TaskContext

from .factors import Start
from .spectral import Spectral

SMALLEST_DAMP = 0.01
LARGEST_INVERSION_ERROR = 0.05


@dataclass
class Corda(Spectral):
    """CorDA (Yang et al., arXiv 2406.05223): start where weight and inputs together do least.

    With C the input covariance plus a multiple of the identity and U the left singular vectors
    of `W C`, the starting product is `U_b U_b^T W`. `mode="kpm"` preserves knowledge: U_b are
    the last `rank` vectors and C is of world inputs; `mode="ipm"` previews the task: the first
    ones, of the task's own inputs. `split="published"` shares the product out as the paper does,
    which depends on the unit of C; the balanced split does not.
    """

    mode: Literal["kpm", "ipm"] = "kpm"
    split: Literal["balanced", "published"] = "balanced"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("mode", "kpm", "ipm")
        self._check_choice("split", "balanced", "published")

    def sources(self) -> tuple[str, ...]:
        """Return the world's inputs, or the task's."""
        return ("world" if self.mode == "kpm" else "task",)

    def starts(self, model: nn.Module, task: TaskContext) -> Iterator[Start]:
        """Yield factors per target, and remember how much each covariance was damped."""
        self.damps_: list[float] = []
        return super().starts(model, task)

    def directions(self, moments: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Return the damped covariance, (in, in) float64."""
        damped, damp = damp_covariance(*moments)
        self.damps_.append(damp)
        return damped

    def factors(self, weight: Tensor, directions: Tensor, generator: torch.Generator) -> Factors:
        """Return the factors of `U_b U_b^T W`, split as asked for."""
        num, rank = min(weight.shape), self.rank_of(weight)
        exact = weight.to(directions)
        first = num - rank if self.mode == "kpm" else 0
        left, values, _ = singular_triples(exact @ directions, range(first, first + rank))
        if self.split == "balanced":
            return output_factors(exact, left, self.scale)
        root = values.sqrt()  # W C C^-1 = W, so sqrt(S) V^T C^-1 = U^T W / sqrt(S)
        return scaled_factors(left * root, left.T @ exact / root[:, None], self.scale)

    def facts(self) -> dict[str, Any]:
        """Return the damping of each distinct layer input; more than 0.01 tells of few tokens."""
        return {"damps": self.damps_}


class Damped(NamedTuple):
    """A covariance that can be inverted."""

    covariance: Tensor  # (in, in) float64
    damp: float  # added to the diagonal, in units of its mean


def damp_covariance(covariance: Tensor) -> Damped:
    """Add a multiple of the mean variance to the diagonal until the inverse is good.

    The test is the published one, in float32: `||C C^-1 - I||_F < 0.05`, from 0.01 on, doubled
    until it holds. Scaling the covariance changes nothing.
    """
    single = covariance.float()
    identity = torch.eye(len(single), device=single.device)
    mean, damp = single.diagonal().mean(), SMALLEST_DAMP
    with exact_float32():
        while True:
            damped = single + damp * mean * identity
            error = torch.dist(damped @ torch.linalg.inv(damped), identity)
            if error < LARGEST_INVERSION_ERROR:
                break
            damp *= 2
    exact = covariance.to(torch.float64, copy=True)
    exact.diagonal().add_(damp * exact.diagonal().mean())
    return Damped(exact, damp)


@dataclass
class ScLora(Spectral):
    """SC-LoRA (arXiv 2505.23724): start where the task's outputs are large and the world's small.

    With Q the top eigenvectors of `W [(1 - beta) C_task - beta C_world] W^T`, up starts at Q and
    down at `Q^T W`. The paper gives beta 0.8 for keeping knowledge and 0.9 for keeping safety.
    """

    beta: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_share("beta")

    def sources(self) -> tuple[str, ...]:
        """Return what is to be learned and what is to be kept."""
        return ("task", "world")

    def directions(self, moments: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Return the weighted difference of the covariances, (in, in) float64."""
        learned, kept = moments
        return (1.0 - self.beta) * learned.double() - self.beta * kept.double()

    def factors(self, weight: Tensor, directions: Tensor, generator: torch.Generator) -> Factors:
        """Return Q and `Q^T W`, both divided by the root of the scale."""
        exact = weight.to(directions)
        chosen = top_eigenvectors(exact @ directions @ exact.T, self.rank_of(weight))
        return scaled_factors(chosen, chosen.T @ exact, self.scale)
