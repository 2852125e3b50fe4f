"""One engine for adapters that start in chosen directions: each strategy is a row.

A row says which covariances it reads, what it derives from one layer input (`directions`, once
for all layers that share that input), how a weight and those directions give the starting
factors (`factors`), and which side trains.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clbench.adapters import Side, read_weight
from clbench.errors import UserError
from clbench.linalg import Factors, bottom_eigenvectors, input_factors, seeded_generator
from clbench.strategy import Covariances, TaskContext

from .factors import FactorStrategy, Start


@dataclass
class Spectral(FactorStrategy):
    """Starting factors from directions of the weight, of its inputs, or at random."""

    def sources(self) -> tuple[str, ...]:
        """Return whose covariances `directions` reads, in the order it is given them."""
        return ()

    def calibration_sources(self) -> frozenset[str]:
        """Return the covariances that the driver has to measure."""
        return frozenset(self.sources())

    def directions(self, moments: tuple[Tensor, ...], generator: torch.Generator) -> Any:
        """Return what one shared layer input contributes; `moments` holds one per source."""
        return None

    @abstractmethod
    def factors(self, weight: Tensor, directions: Any, generator: torch.Generator) -> Factors:
        """Return the starting factors of one weight, (out, in)."""

    def starts(self, model: nn.Module, task: TaskContext) -> Iterator[Start]:
        """Yield factors per target, one decomposition per shared input.

        Raises UserError where a covariance is missing.
        """
        generator = seeded_generator(task.seed, self.name(), task.index)
        moments: tuple[Tensor, ...] = ()
        directions = None
        for number, (name, found) in enumerate(self._moments(task)):
            shared = number > 0 and all(a is b for a, b in zip(found, moments, strict=True))
            if not (shared and found):
                directions = self.directions(found, generator)
            moments = found
            weight = read_weight(model.get_submodule(name))
            yield Start(name, self.factors(weight, directions, generator))

    def _moments(self, task: TaskContext) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
        """Yield every target with its covariances, in the order that a lazy mapping streams."""
        maps: list[Covariances] = []
        for source in self.sources():
            covariances = task.covariances.get(source, {})
            measured = set(covariances)  # not `in`, which a mapping may answer by measuring
            missing = [name for name in task.targets if name not in measured]
            if missing:
                raise UserError(
                    f"{self.name()} needs the {source!r} covariance of {missing[0]}; got none"
                )
            maps.append(covariances)
        wanted = set(task.targets)
        order = [name for name in maps[0] if name in wanted] if maps else task.targets
        for name in order:
            yield name, tuple(covariances[name] for covariances in maps)


@dataclass
class LoraNull(Spectral):
    """LoRA-Null (Tang et al., arXiv 2503.02659): start where pre-trained inputs have no energy.

    With N the `rank` eigenvectors of the input covariance C with the smallest eigenvalues, the
    starting product is `W N N^T`, split evenly over both factors; both train. Scaling C changes
    nothing, and no threshold is involved: the dimension of the null space is the rank.
    """

    def sources(self) -> tuple[str, ...]:
        """Return the source of the inputs that must be protected."""
        return ("world",)

    def directions(self, moments: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        """Return N, (in, rank), on the input side."""
        (covariance,) = moments
        return bottom_eigenvectors(covariance, min(self.rank, len(covariance)))

    def factors(self, weight: Tensor, directions: Tensor, generator: torch.Generator) -> Factors:
        """Return the balanced factors of `W N N^T`."""
        return input_factors(weight, directions.to(weight.device), self.scale)


@dataclass
class LoraNullV2(LoraNull):
    """LoRA-Null with `down` frozen (arXiv 2503.02659v1), so that it stays in the null space."""

    def trained_side(self) -> Side:
        """Return up alone."""
        return "up"
