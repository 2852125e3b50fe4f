"""Directions and factors: right end of the spectrum, right side, right precision."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import Tensor

from clbench import linalg
from clbench.linalg import (
    balanced,
    bottom_eigenvectors,
    eigenvectors,
    exact_float32,
    input_factors,
    orthonormal,
    output_factors,
    scaled_factors,
    seeded_generator,
    singular_triples,
    spectrum,
    top_eigenvectors,
)


def random_matrix(rows: int, columns: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def product(factors: linalg.Factors, scale: float = 1.0) -> Tensor:
    return scale * factors.up.double() @ factors.down.double()


def slice_factors(weight: Tensor, start: int, count: int) -> linalg.Factors:
    return balanced(singular_triples(weight, range(start, start + count)), 1.0)


def kept_indices(factors: linalg.Factors) -> list[int]:
    """Return which diagonal entries of a diagonal weight the product holds."""
    return (product(factors).diagonal() > 1e-6).nonzero().flatten().tolist()


def test_eigenvectors_count_from_the_largest() -> None:
    moment = torch.diag(torch.tensor([3.0, 5.0, 1.0, 4.0, 2.0]))
    picked = {
        "top": top_eigenvectors(moment, 2),
        "bottom": bottom_eigenvectors(moment, 2),
        "middle": eigenvectors(moment, range(1, 3)),
    }
    rows = {name: vectors.abs().argmax(0).tolist() for name, vectors in picked.items()}
    assert rows == {"top": [1, 3], "bottom": [4, 2], "middle": [3, 0]}
    assert all(vectors.dtype == torch.float64 for vectors in picked.values())


def test_a_few_directions_below_a_gap_are_found_without_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    basis = orthonormal(512, 512, seeded_generator("basis"))
    values = torch.logspace(0, -3, 512, dtype=torch.float64)
    values[-32:] *= 0.1
    gapped = (basis * values) @ basis.T
    monkeypatch.setattr(linalg, "eigenvectors", None)
    found = bottom_eigenvectors(gapped, 32)
    expected = basis[:, -32:]
    sine = torch.linalg.matrix_norm(found - expected @ (expected.T @ found), 2)
    assert float(sine) < 1e-5
    energies = (found * (gapped @ found)).sum(0)
    torch.testing.assert_close(energies, values[-32:], rtol=1e-6, atol=0)  # the smallest is last


@pytest.mark.parametrize("kind", ["no gap", "singular"])
def test_other_matrices_are_decomposed_as_a_whole(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    basis = orthonormal(512, 512, seeded_generator("basis"))
    values = torch.logspace(0, -3, 512, dtype=torch.float64)
    if kind == "singular":
        values[-40:] = -1e-9
    moment = (basis * values) @ basis.T
    calls = []
    whole = linalg.eigenvectors

    def counted(matrix: Tensor, chosen: range) -> Tensor:
        calls.append(chosen)
        return whole(matrix, chosen)

    monkeypatch.setattr(linalg, "eigenvectors", counted)
    found = bottom_eigenvectors(moment, 32)
    assert calls == [range(480, 512)]
    if kind == "no gap":
        assert torch.equal(found, whole(moment, range(480, 512)))


def test_spectrum_descends_and_is_never_negative() -> None:
    x = random_matrix(3, 6)
    values = spectrum((x.T @ x).float())  # rank 3: rounding leaves small negatives
    assert values.shape == (6,)
    assert torch.equal(values, values.sort(descending=True).values)
    assert values.min() == 0.0
    torch.testing.assert_close(values.sum(), x.square().sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("start", "indices"), [(0, [0, 1]), (3, [3, 4]), (1, [1, 2])])
def test_slice_picks_exact_indices_of_a_diagonal(start: int, indices: list[int]) -> None:
    weight = torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]))
    assert kept_indices(slice_factors(weight, start, 2)) == indices


@pytest.mark.parametrize(("rows", "columns"), [(12, 20), (20, 12)])
@pytest.mark.parametrize("start", [0, 4, 8])
def test_slice_equals_the_full_svd(rows: int, columns: int, start: int) -> None:
    weight = random_matrix(rows, columns)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    part = slice(start, start + 4)
    expected = left[:, part] * values[part] @ right[part]
    factors = slice_factors(weight, start, 4)
    torch.testing.assert_close(product(factors), expected, rtol=0, atol=1e-5)
    norm = values[part].sum().sqrt()
    torch.testing.assert_close(factors.up.double().norm(), norm, rtol=1e-5, atol=0)
    torch.testing.assert_close(factors.down.double().norm(), norm, rtol=1e-5, atol=0)


def test_triples_of_any_choice() -> None:
    for weight in (random_matrix(9, 6), random_matrix(6, 9)):
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        chosen = [4, 0, 3]
        found = singular_triples(weight, chosen)
        expected = left[:, chosen] * values[chosen] @ right[chosen]
        torch.testing.assert_close(found.left * found.values @ found.right, expected)
        torch.testing.assert_close(found.left.T @ found.left, torch.eye(3, dtype=torch.float64))


def test_signs_are_fixed_and_a_row_of_zeros_keeps_its_column() -> None:
    up, down = random_matrix(5, 3), random_matrix(3, 4, seed=1)
    down[1] = 0.0
    one = scaled_factors(up, down, 4.0)
    other = scaled_factors(-up, -down, 4.0)
    torch.testing.assert_close(product(one, 4.0), up @ down, rtol=0, atol=1e-6)
    assert torch.equal(one.down, other.down)
    assert torch.equal(one.up[:, [0, 2]], other.up[:, [0, 2]])
    torch.testing.assert_close(one.up[:, 1].double().abs(), up[:, 1].abs() / 2, rtol=1e-6, atol=0)
    assert torch.equal(linalg.oriented(-down), linalg.oriented(down))
    assert (
        linalg.oriented(down).max(1).values[[0, 2]] == down.abs().max(1).values[[0, 2]].float()
    ).all()


def bottom_slice_error(num: int = 64, count: int = 8) -> float:
    left, right = orthonormal_pair(num)
    values = torch.logspace(1, -3, num, dtype=torch.float64)
    weight = left * values @ right.T
    expected = left[:, -count:] * values[-count:] @ right[:, -count:].T
    found = product(slice_factors(weight, num - count, count))
    return float((found - expected).norm() / expected.norm())


def orthonormal_pair(num: int) -> tuple[Tensor, Tensor]:
    return orthonormal(num, num, seeded_generator(0)), orthonormal(num, num, seeded_generator(1))


def test_the_small_end_of_a_gram_matrix_needs_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bottom_slice_error() < 1e-6
    monkeypatch.setattr(linalg, "_float64", lambda matrix: matrix.float())
    assert bottom_slice_error() > 0.1


@pytest.mark.parametrize("rows", [6, 16, 40])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_input_factors_equal_two_full_svds(rows: int, scale: float) -> None:
    """The published route: SVD of the covariance, then SVD of the projected weight."""
    weight, x = random_matrix(rows, 16), random_matrix(200, 16, seed=1)
    covariance = x.T @ x / 200
    null = torch.linalg.svd(covariance).U[:, -5:]
    left, values, right = torch.linalg.svd(weight @ null @ null.T, full_matrices=False)
    expected = left[:, :5] * values[:5] @ right[:5]

    factors = input_factors(weight, bottom_eigenvectors(covariance, 5), scale)
    assert factors.up.dtype == factors.down.dtype == torch.float32
    torch.testing.assert_close(product(factors, scale), expected, rtol=0, atol=2e-6)
    halves = (values[:5].sum() / scale).sqrt()
    torch.testing.assert_close(factors.up.double().norm(), halves, rtol=1e-6, atol=0)
    torch.testing.assert_close(factors.down.double().norm(), halves, rtol=1e-6, atol=0)


def test_input_factors_of_a_narrow_output_have_its_rank_and_the_whole_product() -> None:
    weight = random_matrix(8, 32)
    directions = orthonormal(32, 12, seeded_generator("narrow"))
    factors = input_factors(weight, directions, 1.0)
    assert factors.up.shape == (8, 8)
    assert factors.down.shape == (8, 32)
    assert (factors.up.norm(dim=0) > 0).all()
    assert (factors.down.norm(dim=1) > 0).all()
    expected = weight @ directions @ directions.T
    torch.testing.assert_close(product(factors), expected, rtol=0, atol=1e-5)


def test_output_factors_project_on_the_output_side() -> None:
    weight = random_matrix(10, 14)
    chosen = orthonormal(10, 3, seeded_generator("out"))
    expected = chosen @ chosen.T @ weight
    found = output_factors(weight, chosen, 2.0)
    torch.testing.assert_close(product(found, 2.0), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.up.norm(), found.down.norm(), rtol=1e-5, atol=0)


def test_orthonormal_columns() -> None:
    basis = orthonormal(9, 4, seeded_generator(3))
    torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=torch.float64))


def test_generators_depend_on_every_part() -> None:
    parts = [(0, "lora", 0), (1, "lora", 0), (0, "lora-null", 0), (0, "lora", 1)]
    draws = [torch.rand(4, generator=seeded_generator(*p)).tolist() for p in parts]
    assert len({tuple(draw) for draw in draws}) == 4
    assert torch.rand(4, generator=seeded_generator(0, "lora", 0)).tolist() == draws[0]


def test_exact_float32_is_put_back_after_an_error() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with suppress(KeyError), exact_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
