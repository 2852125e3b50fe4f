"""One engine for adapters that start in chosen directions: each strategy is a row.

A row says which covariances it reads, what it derives from one layer input (`directions`, once
for all layers that share that input), how a weight and those directions give the starting
factors (`factors`), and which side trains.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clbench.adapters import Form, Side, read_weight
from clbench.errors import UserError
from clbench.linalg import (
    Factors,
    balanced,
    bottom_eigenvectors,
    input_factors,
    oriented,
    orthonormal,
    seeded_generator,
    singular_triples,
)
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

    def rank_of(self, weight: Tensor) -> int:
        """Return the rank that a weight can carry: a narrow one gets less than was asked for."""
        num_out, num_in = weight.shape
        return min(self.rank, num_out, num_in)

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


@dataclass
class LoraNullZero(LoraNull):
    """The null space as the input side of a plain adapter: up = 0, down = N^T.

    The weight is not split. This is the variant `singular_aware_2` of the code released with
    LoRA-Null (arXiv 2503.02659). `trains="up"` keeps down in the null space.
    """

    form: ClassVar[Form] = "zero"

    trains: Literal["both", "up"] = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("trains", "both", "up")

    def trained_side(self) -> Side:
        """Return both sides, or up alone."""
        return self.trains

    def factors(self, weight: Tensor, directions: Tensor, generator: torch.Generator) -> Factors:
        """Return up = 0 and the directions of least energy as the rows of down."""
        rank = self.rank_of(weight)
        return Factors(torch.zeros(len(weight), rank), oriented(directions[:, -rank:].T))


@dataclass
class RandomNull(Spectral):
    """Control for lora-null: the same start from a random subspace of the inputs."""

    def factors(self, weight: Tensor, directions: None, generator: torch.Generator) -> Factors:
        """Return the balanced factors of `W N N^T` for an orthonormalized Gaussian N."""
        num_in = weight.shape[1]
        basis = orthonormal(num_in, min(self.rank, num_in), generator)  # (in, rank)
        return input_factors(weight, basis.to(weight.device), self.scale)


@dataclass
class RandomDown(Spectral):
    """Control for lora-null-zero: up = 0 and a frozen down with random orthonormal rows."""

    form: ClassVar[Form] = "zero"

    def trained_side(self) -> Side:
        """Return up alone."""
        return "up"

    def factors(self, weight: Tensor, directions: None, generator: torch.Generator) -> Factors:
        """Return up = 0 and an orthonormalized Gaussian down."""
        rank = self.rank_of(weight)
        rows = orthonormal(weight.shape[1], rank, generator).T
        return Factors(torch.zeros(len(weight), rank), rows.float().contiguous())


@dataclass
class Slice(Spectral):
    """Start at some of the k = min(out, in) singular triples of each weight."""

    @abstractmethod
    def chosen(self, rank: int, num: int, generator: torch.Generator) -> Sequence[int]:
        """Return which `rank` of `num` triples to start at, counted from the largest."""

    def factors(self, weight: Tensor, directions: None, generator: torch.Generator) -> Factors:
        """Return the balanced factors of the chosen triples."""
        chosen = self.chosen(self.rank_of(weight), min(weight.shape), generator)
        return balanced(singular_triples(weight, chosen), self.scale)


@dataclass
class Pissa(Slice):
    """PiSSA (Meng et al., arXiv 2404.02948): start at the largest singular triples."""

    def chosen(self, rank: int, num: int, generator: torch.Generator) -> Sequence[int]:
        """Return the first ones."""
        return range(rank)


@dataclass
class Milora(Slice):
    """MiLoRA (Wang et al., arXiv 2406.09044): start at the smallest singular triples."""

    def chosen(self, rank: int, num: int, generator: torch.Generator) -> Sequence[int]:
        """Return the last ones."""
        return range(num - rank, num)


@dataclass
class Middle(Slice):
    """Start between the largest (`start_fraction` 0) and the smallest (1) singular triples.

    The exact rule of the paper that proposes intermediate components (arXiv 2602.03493) is not
    public; here the slice starts at `floor(start_fraction * (k - rank) + 1/2)`.
    """

    start_fraction: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_share("start_fraction")

    def chosen(self, rank: int, num: int, generator: torch.Generator) -> Sequence[int]:
        """Return consecutive ones from the fraction on."""
        start = math.floor(self.start_fraction * (num - rank) + 0.5)
        return range(start, start + rank)


@dataclass
class RandomSlice(Slice):
    """Control for pissa, milora and middle: triples drawn without replacement per weight."""

    def chosen(self, rank: int, num: int, generator: torch.Generator) -> Sequence[int]:
        """Return a uniform draw."""
        drawn: list[int] = torch.randperm(num, generator=generator)[:rank].tolist()
        return drawn


@dataclass
class Mica(Spectral):
    """MiCA (arXiv 2604.01694): train down from 0 behind a frozen up = the last left directions.

    `up` holds the left singular vectors of each weight with the smallest singular values.
    """

    form: ClassVar[Form] = "zero"

    def trained_side(self) -> Side:
        """Return down alone."""
        return "down"

    def factors(self, weight: Tensor, directions: None, generator: torch.Generator) -> Factors:
        """Return those vectors and a down of zeros."""
        num, rank = min(weight.shape), self.rank_of(weight)
        left = singular_triples(weight, range(num - rank, num)).left
        return Factors(oriented(left.T).T, torch.zeros(rank, weight.shape[1]))
