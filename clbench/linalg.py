"""Pure functions that choose directions of a weight and turn them into starting factors.

Decompositions run in float64: squaring a spectrum squares its condition number, and a float32
`eigh` of a Gram matrix loses the small end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """The two starting factors of one weight; `scale * up @ down` is their product."""

    up: Tensor  # (out, rank) float32
    down: Tensor  # (rank, in) float32


def eigenvectors(moment: Tensor, start: int, count: int) -> Tensor:
    """Return `count` eigenvectors of a symmetric matrix as columns, (n, count) float64.

    They are counted from the *largest* eigenvalue: 0 starts at the top, n - count gives the
    smallest ones. `eigh` is ascending; this is the one place that has to know.
    """
    ascending: Tensor = torch.linalg.eigh(_float64(moment)).eigenvectors
    return ascending.flip(1)[:, start : start + count]


def top_eigenvectors(moment: Tensor, count: int) -> Tensor:
    """Return the eigenvectors of the `count` largest eigenvalues, (n, count) float64."""
    return eigenvectors(moment, 0, count)


def bottom_eigenvectors(moment: Tensor, count: int) -> Tensor:
    """Return the eigenvectors of the `count` smallest eigenvalues, (n, count) float64."""
    return eigenvectors(moment, moment.shape[0] - count, count)


def spectrum(moment: Tensor) -> Tensor:
    """Return the eigenvalues of a second moment from the largest down, (n,) float64, none < 0."""
    ascending: Tensor = torch.linalg.eigvalsh(_float64(moment))
    return ascending.flip(0).clamp(min=0.0)


def input_factors(weight: Tensor, directions: Tensor, scale: float) -> Factors:
    """Return balanced factors of `weight @ N @ N.T` for orthonormal columns N, (in, r).

    The thin SVD of `weight @ N` (out, r) is the SVD of the product up to signs. The factors have
    min(out, r) columns, so a narrow output carries no column that never trains.
    """
    chosen = _float64(directions)
    left, values, right = torch.linalg.svd(_float64(weight) @ chosen, full_matrices=False)
    return _balanced(left, values, right @ chosen.T, scale)


def output_factors(weight: Tensor, directions: Tensor, scale: float) -> Factors:
    """Return balanced factors of `Q @ Q.T @ weight` for orthonormal columns Q, (out, r)."""
    chosen = _float64(directions)
    left, values, right = torch.linalg.svd(chosen.T @ _float64(weight), full_matrices=False)
    return _balanced(chosen @ left, values, right, scale)


def slice_factors(weight: Tensor, start: int, count: int, scale: float) -> Factors:
    """Return balanced factors of the singular triples start .. start + count of a weight.

    Triples count from the largest. They come from the smaller of the two Gram matrices instead
    of a full SVD.
    """
    exact = _float64(weight)
    num_out, num_in = exact.shape
    if num_in <= num_out:
        return input_factors(exact, eigenvectors(exact.T @ exact, start, count), scale)
    return output_factors(exact, eigenvectors(exact @ exact.T, start, count), scale)


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Return a random matrix with orthonormal columns, (rows, columns) float64 on the CPU."""
    gaussian = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(gaussian).Q
    return basis


def seeded_generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator whose draws depend on the parts alone, e.g. seed, name, task."""
    key = "/".join(str(part) for part in parts).encode()
    seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
    return torch.Generator().manual_seed(seed)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 products in full float32 inside the context: no TF32, no bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _balanced(left: Tensor, values: Tensor, right: Tensor, scale: float) -> Factors:
    """Split `left * values @ right` evenly, so that `scale * up @ down` is that product.

    A decomposition leaves the sign of each triple open; here the largest entry of each row of
    `down` is positive, so that factors can be compared across devices and libraries.
    """
    largest = right.gather(1, right.abs().argmax(1, keepdim=True))  # (rank, 1)
    left, right = left * largest.sign().T, right * largest.sign()
    root = (values / scale).sqrt()
    return Factors((left * root).float().contiguous(), (root[:, None] * right).float().contiguous())


def _float64(matrix: Tensor) -> Tensor:
    """Return the matrix in float64, on the CPU where its device has no such type."""
    if matrix.device.type == "mps":
        matrix = matrix.cpu()
    return matrix.double()
