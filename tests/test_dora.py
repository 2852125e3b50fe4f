"""DoRA: an exact start, an accurate change, and everything that guards ask of an adapter."""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack

import pytest
import torch
from clbench_strategies.dora import Dora, DoraLinear
from family import HELD_OUT, WINDOWS
from torch import Tensor, nn
from toys import logits, toy_context, toy_model, train_a_little
from transformers.pytorch_utils import Conv1D

from clbench.adapters import adapted, fold, read_weight, rebuild, structure
from clbench.errors import UserError

TRAIN = WINDOWS["task"][:6]


def random_layer(
    *, dtype: torch.dtype = torch.float32, transposed: bool = False, size: float = 0.3, **options
) -> DoraLinear:
    """Return a layer (12, 20) with a bias whose parameters have moved by about `size`."""
    generator = torch.Generator().manual_seed(4)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    weight, bias = drawn(12, 20), drawn(12)
    base: nn.Module = Conv1D(12, 20) if transposed else nn.Linear(20, 12, dtype=dtype)
    base.weight = nn.Parameter(weight.T.contiguous() if transposed else weight)
    base.bias = nn.Parameter(bias)
    layer = DoraLinear(base, torch.zeros(12, 3), drawn(3, 20) / 20**0.5, scale=2.0, **options)
    with torch.no_grad():
        for parameter in layer.trainables().values():
            parameter.add_(size * drawn(*parameter.shape).to(parameter))
    return layer


def effective_weight(layer: DoraLinear) -> Tensor:
    """Return `(m / ||V||) V` by the formula of the paper, float64.

    m starts at the norms of W; that the layer holds them rounded to float32 is no change.
    """
    up, down, magnitude = (p.detach().double() for p in layer.trainables().values())
    weight = read_weight(layer.base).double()
    magnitude = weight.norm(dim=1, keepdim=True) + (magnitude - layer.norm.double())
    direction = weight + layer.scale * up @ down
    return magnitude / direction.norm(dim=1, keepdim=True) * direction


@pytest.mark.parametrize("transposed", [False, True])
def test_it_computes_with_the_weight_of_the_paper(transposed: bool) -> None:
    layer = random_layer(transposed=transposed)
    weight = effective_weight(layer)
    x = torch.randn(7, 20, generator=torch.Generator().manual_seed(1))
    expected = x.double() @ weight.T + layer.base.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(read_weight(layer).double(), weight, rtol=0, atol=1e-6)
    change = weight - read_weight(layer.base).double()
    torch.testing.assert_close(layer.delta().double(), change, rtol=0, atol=1e-6)
    assert layer.delta().shape == (12, 20)


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2])
def test_the_change_is_accurate_near_the_start(size: float) -> None:
    layer = random_layer(size=size)
    expected = effective_weight(layer) - layer.base.weight.double()
    error = (layer.delta().double() - expected).norm() / expected.norm()
    assert float(error.detach()) < 1e-5
    norm = layer.squared_norm().detach().double()
    torch.testing.assert_close(norm, expected.square().sum().detach(), rtol=1e-5, atol=0)


def test_the_norm_passes_no_gradient_on() -> None:
    """With the norm held fixed, autograd of the plain formula gives the same gradients."""
    layer = random_layer()
    x = torch.randn(7, 20, generator=torch.Generator().manual_seed(1))
    layer(x).square().sum().backward()
    found = {name: p.grad.clone() for name, p in layer.trainables().items()}
    layer.zero_grad()
    direction = layer.base.weight + layer.scale * layer.up @ layer.down
    norm = direction.norm(dim=1, keepdim=True).detach()
    y = x @ (layer.magnitude / norm * direction).T + layer.base.bias
    y.square().sum().backward()
    for name, parameter in layer.trainables().items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-4)
    layer.zero_grad()
    layer.squared_norm().backward()
    assert all(p.grad.any() for p in layer.trainables().values())


def test_a_row_of_zeros_stays_finite_and_learns() -> None:
    base = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        base.weight[1] = 0.0
    layer = DoraLinear(base, torch.zeros(3, 2), torch.ones(2, 6), scale=1.0)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(layer(x), base(x))
    layer(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.trainables().values())
    assert torch.equal(layer.folded(), base.weight)


def test_the_state_is_float32_on_a_bfloat16_model_and_its_output_is_bfloat16() -> None:
    layer = random_layer(dtype=torch.bfloat16)
    tensors = [*layer.trainables().values(), *layer.start().values(), layer.norm, layer.delta()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    x = torch.randn(7, 20, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert layer(x).dtype == torch.bfloat16
    expected = x.double() @ effective_weight(layer).T + layer.base.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=0.02, atol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x).double(), expected, rtol=0.02, atol=0.1)
        assert layer.delta().dtype == torch.float32


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_scaling_the_change_moves_toward_the_start(alpha: float) -> None:
    layer = random_layer()
    weight, change = layer.base.weight.detach().clone(), layer.change()
    layer.scale_delta(alpha)
    x = torch.randn(7, 20, generator=torch.Generator().manual_seed(1))
    expected = x @ (weight + alpha * change).T + layer.base.bias
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(layer.delta(), alpha * change)
    torch.testing.assert_close(layer.folded(), weight + alpha * change, rtol=0, atol=1e-6)


def test_guards_see_where_it_started() -> None:
    model = toy_model(decaying=True)
    task = toy_context(model, targets="q_proj|o_proj")
    model = Dora(rank=4, alpha=8.0).begin_task(model, task)
    started = {n: {k: v.clone() for k, v in t.start().items()} for n, t in task.trained.items()}
    assert all(list(values) == ["up", "down", "magnitude"] for values in started.values())
    train_a_little(model, TRAIN)
    for name, layer in task.trained.items():
        assert layer.delta().requires_grad
        for key, value in layer.trainables().items():
            assert torch.equal(layer.start()[key], started[name][key])
            assert not torch.equal(value, started[name][key]), key


def test_carried_parameters_go_on() -> None:
    strategy, model = Dora(rank=4, between_tasks="carry"), toy_model(decaying=True)
    base = copy.deepcopy(model)
    first = toy_context(model, targets="q_proj|down_proj")
    model = strategy.begin_task(model, first)
    train_a_little(model, TRAIN)
    after_first = logits(model, HELD_OUT)
    weights = {name: read_weight(layer) for name, layer in adapted(model).items()}
    model = strategy.begin_task(strategy.end_task(model, first), toy_context(model, index=1))
    layers = adapted(model)
    assert torch.equal(logits(model, HELD_OUT), after_first)
    assert all(not layer.delta().any() for layer in layers.values())
    train_a_little(model, TRAIN)
    for name, layer in layers.items():
        moved = read_weight(layer) - weights[name]
        torch.testing.assert_close(layer.delta().detach(), moved, rtol=1e-3, atol=1e-6)
        with pytest.raises(UserError, match="DoraLinear cannot scale the change of one task"):
            layer.scale_delta(0.5)
    with ExitStack() as off:
        for layer in layers.values():
            off.enter_context(layer.without_delta())
        assert torch.equal(logits(model, HELD_OUT), after_first)
    recorded = json.loads(json.dumps(structure(model)))
    rebuild(base, recorded).load_state_dict(model.state_dict())
    for name, layer in adapted(base).items():
        assert all(torch.equal(v, layers[name].start()[k]) for k, v in layer.start().items())
    trained = logits(model, HELD_OUT)
    assert torch.equal(logits(base, HELD_OUT), trained)
    torch.testing.assert_close(logits(fold(model), HELD_OUT), trained, rtol=0, atol=1e-5)
