"""Pure functions that choose directions of a weight and turn them into starting factors.

Decompositions run in float64: squaring a spectrum squares its condition number, and a float32
`eigh` of a Gram matrix loses the small end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

PARTIAL_FROM = 512  # width from which a few eigenvectors are looked for alone
PARTIAL_ANGLE = 1e-5  # largest angle, in radians, to the subspace that `eigh` gives
MOST_STEPS = 12


class Factors(NamedTuple):
    """The two starting factors of one weight; `scale * up @ down` is their product."""

    up: Tensor  # (out, rank) float32
    down: Tensor  # (rank, in) float32


class Triples(NamedTuple):
    """Singular triples; `left * values @ right` is the part of the weight that they make up."""

    left: Tensor  # (out, r) float64, orthonormal columns
    values: Tensor  # (r,)
    right: Tensor  # (r, in), orthonormal rows


def eigenvectors(moment: Tensor, chosen: Sequence[int]) -> Tensor:
    """Return the chosen eigenvectors of a symmetric matrix as columns, (n, r) float64.

    They are counted from the *largest* eigenvalue: 0 is the top, n - 1 the smallest one. `eigh`
    is ascending; this is the one place that has to know.
    """
    ascending: Tensor = torch.linalg.eigh(_float64(moment)).eigenvectors
    return ascending[:, [len(moment) - 1 - index for index in chosen]]


def top_eigenvectors(moment: Tensor, count: int) -> Tensor:
    """Return the eigenvectors of the `count` largest eigenvalues, (n, count) float64."""
    return eigenvectors(moment, range(count))


def bottom_eigenvectors(moment: Tensor, count: int) -> Tensor:
    """Return the eigenvectors of the `count` smallest eigenvalues, (n, count) float64.

    The smallest is last. A few of many that a gap sets apart are found without the others.
    """
    exact = _float64(moment)
    if len(exact) >= PARTIAL_FROM and 8 * count <= len(exact):
        found = _inverse_iteration(exact, count)
        if found is not None:
            return found
    return eigenvectors(exact, range(len(exact) - count, len(exact)))


def spectrum(moment: Tensor) -> Tensor:
    """Return the eigenvalues of a second moment from the largest down, (n,) float64, none < 0."""
    ascending: Tensor = torch.linalg.eigvalsh(_float64(moment))
    return ascending.flip(0).clamp(min=0.0)


def singular_triples(weight: Tensor, chosen: Sequence[int]) -> Triples:
    """Return the chosen singular triples of a matrix (out, in), counted from the largest.

    They come from the smaller of the two Gram matrices instead of a full SVD: in float64 that
    resolves singular values down to 1e-8 of the largest, as a float32 SVD does.
    """
    exact = _float64(weight)
    num_out, num_in = exact.shape
    if num_in <= num_out:
        return _within_inputs(exact, eigenvectors(exact.T @ exact, chosen))
    return _within_outputs(exact, eigenvectors(exact @ exact.T, chosen))


def input_factors(weight: Tensor, directions: Tensor, scale: float) -> Factors:
    """Return balanced factors of `weight @ N @ N.T` for orthonormal columns N, (in, r).

    They have min(out, r) columns, so a narrow output carries no column that never trains.
    """
    return balanced(_within_inputs(_float64(weight), _float64(directions)), scale)


def output_factors(weight: Tensor, directions: Tensor, scale: float) -> Factors:
    """Return balanced factors of `Q @ Q.T @ weight` for orthonormal columns Q, (out, r)."""
    return balanced(_within_outputs(_float64(weight), _float64(directions)), scale)


def balanced(triples: Triples, scale: float) -> Factors:
    """Split the part that triples make up evenly over both factors."""
    root = triples.values.sqrt()
    return scaled_factors(triples.left * root, root[:, None] * triples.right, scale)


def scaled_factors(up: Tensor, down: Tensor, scale: float) -> Factors:
    """Return float32 factors with `scale * up @ down` equal to the given product.

    A decomposition leaves the sign of each pair open; here the largest entry of each row of
    `down` is positive, so that factors can be compared across devices and libraries.
    """
    signs = _signs(down) / scale**0.5
    return Factors((up * signs.T).float().contiguous(), (signs * down).float().contiguous())


def oriented(rows: Tensor) -> Tensor:
    """Return float32 rows, each with the sign that makes its largest entry positive."""
    return (_signs(rows) * rows).float().contiguous()


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


def _inverse_iteration(moment: Tensor, count: int) -> Tensor | None:
    """Return bottom eigenvectors by subspace iteration with the inverse, or None.

    None if the matrix is not positive definite, or if the Ritz values show that no gap will let
    the iteration converge; that is known after two steps, at about a fifth of the cost of
    `eigh`. The residual over the gap bounds the angle to the true subspace (Davis and Kahan).
    """
    root, failed = torch.linalg.cholesky_ex(moment)
    if failed:
        return None
    size = count + count // 4 + 8
    block = orthonormal(len(moment), size, seeded_generator("inverse iteration")).to(moment)
    for step in range(MOST_STEPS):
        block = torch.linalg.qr(torch.cholesky_solve(block, root)).Q
        image = moment @ block
        values, turn = torch.linalg.eigh(block.T @ image)  # ascending
        block = block @ turn
        chosen: Tensor = block[:, :count]
        gap = values[count] - values[count - 1]
        residual = image @ turn[:, :count] - chosen * values[:count]
        if residual.norm() < PARTIAL_ANGLE * gap:
            return chosen.flip(1)
        if step == 1 and (values[count - 1] / values[-1]) ** (MOST_STEPS - 2) > PARTIAL_ANGLE:
            return None
    return None


def _within_inputs(weight: Tensor, chosen: Tensor) -> Triples:
    """Return the triples of `weight @ N @ N.T`: the thin SVD of `weight @ N` (out, r) has them."""
    left, values, right = torch.linalg.svd(weight @ chosen, full_matrices=False)
    return Triples(left, values, right @ chosen.T)


def _within_outputs(weight: Tensor, chosen: Tensor) -> Triples:
    """Return the triples of `Q @ Q.T @ weight`."""
    left, values, right = torch.linalg.svd(chosen.T @ weight, full_matrices=False)
    return Triples(chosen @ left, values, right)


def _signs(rows: Tensor) -> Tensor:
    """Return, (rows, 1), the sign of each row's largest entry; 1 for a row of zeros."""
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(rows)


def _float64(matrix: Tensor) -> Tensor:
    """Return the matrix in float64, on the CPU where its device has no such type."""
    if matrix.device.type == "mps":
        matrix = matrix.cpu()
    return matrix.double()
