"""full, lora, lora-null and lora-null-v2: where they start, what trains, what is folded."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from clbench_strategies import spectral
from clbench_strategies.factors import FactorStrategy
from clbench_strategies.full import Full, FullLinear
from clbench_strategies.lora import Lora
from clbench_strategies.spectral import LoraNull, LoraNullV2, Spectral
from torch import Tensor, nn
from toys import LAYOUTS, logits, toy_context, toy_model, toy_windows, train_a_little

from clbench.adapters import FactorLinear, adapted, find_targets, read_weight, weight_shape
from clbench.calibration import calibrate, held_out_energy
from clbench.errors import UserError
from clbench.linalg import Factors, orthonormal, output_factors
from clbench.strategy import Step, Strategy, TaskContext

WINDOWS, HELD_OUT = toy_windows(32, 24), toy_windows(8, 24, seed=1)
TRAIN = WINDOWS[:6]
ALL = [Full(), Lora(rank=4), LoraNull(rank=4), LoraNullV2(rank=4)]
NULL = [LoraNull(rank=4), LoraNullV2(rank=4)]


def name_of(strategy: Strategy) -> str:
    return strategy.name()


def context(model: nn.Module, *, accumulate: str = "float32", **options) -> TaskContext:
    """Return a task context with covariances of exactly this model."""
    targets = find_targets(model)
    found = calibrate(model, WINDOWS, targets, budget_bytes=2**17, accumulate=accumulate)
    return toy_context(model, {"world": found.covariances}, **options)


def begun(strategy: Strategy, model: nn.Module, **options) -> dict[str, FactorLinear]:
    """Begin a task and return the factor layers."""
    task = context(model, **options)
    strategy.begin_task(model, task)
    assert set(task.trained) == set(task.targets)
    return {name: layer for name, layer in adapted(model).items()}  # type: ignore[misc]


def starting(strategy: Strategy, model: nn.Module, **options) -> dict[str, Tensor]:
    layers = begun(strategy, model, **options)
    return {name: layer.scale * layer.up @ layer.down for name, layer in layers.items()}


# Every strategy


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strategy", ALL, ids=name_of)
def test_two_tasks_end_to_end(strategy: Strategy, layout: str) -> None:
    strategy, model = copy.deepcopy(strategy), toy_model(layout)
    names = [name for name, _ in model.named_parameters()]
    num_trainable = []
    for index in range(2):
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        before = logits(model, HELD_OUT)
        task = context(model, index=index)
        model = strategy.begin_task(model, task)
        assert torch.equal(logits(model, HELD_OUT), before)
        assert torch.equal(logits(model.train(), HELD_OUT), before)
        num_trainable.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
        losses = [train_a_little(model, TRAIN, steps=1), train_a_little(model, TRAIN, steps=5)]
        assert losses[1] < losses[0]
        trained = logits(model.eval(), HELD_OUT)
        model = strategy.end_task(model, task)
        torch.testing.assert_close(logits(model, HELD_OUT), trained, rtol=0, atol=1e-4)
        assert float((trained - before).abs().max()) > 1e-3
        assert [name for name, _ in model.named_parameters()] == names
        kept = {f"{target}.weight" for target in task.targets}
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, weights[name]) == (name not in kept), name
    assert num_trainable[0] == num_trainable[1] > 0
    assert strategy.state() == {}


@pytest.mark.parametrize("strategy", ALL, ids=name_of)
def test_untrained_tasks_leave_bfloat16_weights_alone(strategy: Strategy) -> None:
    model = toy_model(decaying=True).bfloat16()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for index in range(3):
        task = context(model, index=index)
        model = strategy.end_task(strategy.begin_task(model, task), task)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.view(torch.int16), before[name].view(torch.int16)), name


@pytest.mark.parametrize("strategy", ALL, ids=name_of)
def test_the_same_seed_gives_the_same_weights(strategy: Strategy) -> None:
    results = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)  # none of the strategy's draws may come from here
        model = toy_model(decaying=True)
        task = context(model)
        model = strategy.begin_task(model, task)
        train_a_little(model, TRAIN)
        results.append(strategy.end_task(model, task).state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("kind", [Lora, LoraNull, LoraNullV2])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0),
        ("rank", -4),
        ("rank", 2.0),
        ("rank", True),
        ("rank", "8"),
        ("alpha", 0),
        ("alpha", float("nan")),
        ("alpha", "a"),
        ("between_tasks", "keep"),
    ],
)
def test_bad_fields_are_refused_in_a_sentence(
    kind: type[FactorStrategy], field: str, value: object
) -> None:
    with pytest.raises(UserError, match=f"{kind.name()}: {field} {value!r} is"):
        kind(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", [Lora(rank=4), *NULL], ids=name_of)
def test_alpha_changes_the_scale_and_not_the_start(strategy: FactorStrategy) -> None:
    model = toy_model(decaying=True)
    before = logits(model, HELD_OUT)
    layers = begun(type(strategy)(rank=4, alpha=32.0), model)
    assert torch.equal(logits(model, HELD_OUT), before)
    assert {layer.scale for layer in layers.values()} == {8.0}
    plain = starting(strategy, toy_model(decaying=True))
    for name, layer in layers.items():
        torch.testing.assert_close(8.0 * layer.up @ layer.down, plain[name], rtol=0, atol=1e-6)


def test_the_scale_of_a_narrow_layer_is_that_of_the_requested_rank() -> None:
    for strategy in (Lora(rank=16, alpha=32.0), LoraNull(rank=16, alpha=32.0)):
        layers = begun(strategy, toy_model(decaying=True))
        narrow = layers["model.layers.0.self_attn.k_proj"]
        assert (narrow.rank, narrow.scale) == (8, 2.0)
        assert layers["model.layers.0.self_attn.q_proj"].rank == 16


@pytest.mark.parametrize("strategy", [Lora(rank=4), LoraNull(rank=4)], ids=name_of)
def test_carried_factors_go_on(strategy: FactorStrategy) -> None:
    carrying = type(strategy)(rank=4, between_tasks="carry")
    model = toy_model(decaying=True)
    first = context(model)
    model = carrying.begin_task(model, first)
    train_a_little(model, TRAIN)
    trained = logits(model, HELD_OUT)
    model = carrying.end_task(model, first)
    assert torch.equal(logits(model, HELD_OUT), trained)
    layers = adapted(model)
    second = toy_context(model, index=1)
    model = carrying.begin_task(model, second)
    assert all(second.trained[name] is layer for name, layer in layers.items())
    assert all(not layer.delta().any() for layer in layers.values())
    train_a_little(model, TRAIN)
    with layers[second.targets[0]].without_delta():
        assert layers[second.targets[0]].delta().any()


# lora


def test_lora_starts_at_zero_with_a_uniform_down() -> None:
    layers = begun(Lora(rank=8), toy_model("gpt2"))
    for layer in layers.values():
        bound = layer.down.shape[1] ** -0.5
        assert not layer.up.any()
        assert layer.down.requires_grad
        assert float(layer.down.detach().abs().max()) <= bound
    wide = torch.cat([layer.down.detach().flatten() for layer in layers.values()]) * 32**0.5
    assert float(wide.mean()) == pytest.approx(0.0, abs=0.05)
    narrow = [v.down.detach() for v in layers.values() if v.down.shape[1] == 32]
    assert float(torch.cat(narrow).std()) == pytest.approx((1 / 32 / 3) ** 0.5, rel=0.05)


def test_lora_draws_from_seed_and_task() -> None:
    def first_row(seed: int, index: int) -> tuple[float, ...]:
        layers = begun(Lora(rank=2), toy_model(), seed=seed, index=index)
        return tuple(next(iter(layers.values())).down[0].tolist())

    assert first_row(0, 0) == first_row(0, 0)
    assert len({first_row(seed, index) for seed in (0, 1) for index in (0, 1)}) == 4


def test_lora_decays_its_factors_toward_zero() -> None:
    model = toy_model()
    layers = begun(Lora(rank=2, weight_decay=0.3), model)
    before = {name: layer.down.detach().clone() for name, layer in layers.items()}
    base = {name: layer.weight.clone() for name, layer in layers.items()}
    for strategy in (Lora(rank=2), Lora(rank=2, weight_decay=0.3)):
        strategy.after_step(model, Step(0, 10, lr=0.1))
    for name, layer in layers.items():
        torch.testing.assert_close(layer.down, before[name] * 0.97)
        assert torch.equal(layer.weight, base[name])


@pytest.mark.parametrize("decay", [-0.1, float("nan"), "x", True])
def test_lora_refuses_a_decay_that_is_none(decay: object) -> None:
    with pytest.raises(UserError, match="lora: weight_decay"):
        Lora(weight_decay=decay)  # type: ignore[arg-type]


# lora-null


@dataclass
class Swapped(LoraNull):
    """The null space on the wrong side, which runs without error on a square layer."""

    def factors(self, weight: Tensor, directions: Tensor, generator: torch.Generator) -> Factors:
        return output_factors(weight, directions, self.scale)


@dataclass
class RandomNull(Spectral):
    """A random subspace in the place of the null space."""

    def factors(self, weight: Tensor, directions: None, generator: torch.Generator) -> Factors:
        basis = orthonormal(weight.shape[1], self.rank, generator)
        return spectral.input_factors(weight, basis, self.scale)


def energy_ratio(strategy: Strategy, model: nn.Module, pattern: str | None = None) -> list[float]:
    strategy.begin_task(model, context(model, targets=pattern))
    return [e["energy"] / e["random"] for e in held_out_energy(model, HELD_OUT).values()]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strategy", NULL, ids=name_of)
def test_the_null_space_is_on_the_input_side(strategy: Strategy, layout: str) -> None:
    assert max(energy_ratio(strategy, toy_model(layout, decaying=True))) < 0.1


def test_the_wrong_side_and_random_directions_let_energy_through() -> None:
    swapped, random = [], []
    for seed in range(10):
        model = toy_model(seed=seed, decaying=True)
        swapped += energy_ratio(Swapped(rank=4), copy.deepcopy(model), "q_proj|o_proj")
        random += energy_ratio(RandomNull(rank=4), model, "q_proj|o_proj")
    assert min(swapped) > 0.1
    assert sum(random) / len(random) == pytest.approx(1.0, abs=0.35)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("strategy", NULL, ids=name_of)
def test_the_product_is_the_published_one(strategy: FactorStrategy, layout: str) -> None:
    """W U_null U_null^T with U_null the last singular vectors of C, then a second SVD.

    All in float64: attention of one shared head leaves inputs whose small end is rounding.
    """
    model = toy_model(layout, decaying=True).double()
    task = context(model, accumulate="float64")
    covariances = {name: c.clone() for name, c in task.covariances["world"].items()}
    strategy.begin_task(model, task)
    for name, layer in adapted(model).items():
        null = torch.linalg.svd(covariances[name]).U[:, -4:]
        left, values, right = torch.linalg.svd(read_weight(layer) @ null @ null.T)
        expected = left[:, :4] * values[:4] @ right[:4]
        up, down = layer.up.detach(), layer.down.detach()
        assert float((up @ down - expected).norm() / expected.norm()) < 1e-5, name
        torch.testing.assert_close(up.norm(), down.norm(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("strategy", NULL, ids=name_of)
def test_scaling_the_covariance_changes_nothing(strategy: Strategy) -> None:
    model = toy_model(decaying=True)
    measured = {n: c.double() for n, c in context(model).covariances["world"].items()}
    found = []
    for scale in (1.0, 100.0):
        scaled = {name: scale * covariance for name, covariance in measured.items()}
        twin = copy.deepcopy(model)
        strategy.begin_task(twin, toy_context(twin, {"world": scaled}))
        found.append({n: p.detach() for n, p in twin.named_parameters() if "proj." in n})
    for name, parameter in found[0].items():
        torch.testing.assert_close(parameter, found[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strategy", NULL, ids=name_of)
def test_each_task_uses_the_covariances_of_its_own_model(strategy: Strategy) -> None:
    """On one instance, in the first task and in the second."""
    here, elsewhere = toy_model(decaying=True), toy_model(seed=1, decaying=True)
    foreign = {n: c.clone() for n, c in context(elsewhere).covariances["world"].items()}
    for index in range(2):
        own = starting(strategy, copy.deepcopy(here), index=index)
        model = copy.deepcopy(here)
        strategy.begin_task(model, toy_context(model, {"world": foreign}, index=index))
        for name, layer in adapted(model).items():
            assert isinstance(layer, FactorLinear)
            difference = layer.up @ layer.down - own[name]
            assert float((difference.norm() / own[name].norm()).detach()) > 0.1


@pytest.mark.parametrize("strategy", NULL, ids=name_of)
def test_missing_covariances_raise(strategy: Strategy) -> None:
    model = toy_model()
    first = find_targets(model)[0]
    with pytest.raises(UserError, match=f"{strategy.name()} needs the 'world' covariance"):
        strategy.begin_task(model, toy_context(model))
    partial = dict(context(model).covariances["world"])
    del partial[first]
    with pytest.raises(UserError, match=first):
        strategy.begin_task(model, toy_context(model, {"world": partial}))
    assert not adapted(model)
    assert strategy.calibration_sources() == {"world"}


def test_v2_trains_up_alone() -> None:
    model = toy_model(decaying=True)
    layers = begun(LoraNullV2(rank=4), model)
    assert all(list(layer.trainables()) == ["up"] for layer in layers.values())
    optimized = {id(p) for p in model.parameters() if p.requires_grad}
    assert not any(id(layer.down) in optimized for layer in layers.values())
    before = {name: layer.down.clone() for name, layer in layers.items()}
    train_a_little(model, TRAIN)
    assert all(torch.equal(layer.down, before[name]) for name, layer in layers.items())
    assert all(list(layer.trainables()) == ["up", "down"] for layer in begun_null().values())


def begun_null() -> dict[str, FactorLinear]:
    return begun(LoraNull(rank=4), toy_model(decaying=True))


def test_one_decomposition_per_shared_input(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(covariance: Tensor, count: int) -> Tensor:
        calls.append(len(covariance))
        return bottom(covariance, count)

    bottom = spectral.bottom_eigenvectors
    monkeypatch.setattr(spectral, "bottom_eigenvectors", counted)
    model = toy_model(decaying=True)
    begun(LoraNull(rank=4), model)
    assert calls == [32, 32, 32, 48] * 2


def test_lazy_covariances_are_read_in_one_pass_per_group() -> None:
    model = toy_model(decaying=True)
    found = calibrate(model, WINDOWS, find_targets(model), budget_bytes=4 * 48 * 48)
    assert len(found.passes) == 6
    LoraNull(rank=4).begin_task(model, toy_context(model, {"world": found.covariances}))
    assert found.tokens_forwarded == 6 * WINDOWS.numel()


# full


def test_full_trains_a_float32_master_and_rounds_once() -> None:
    model = toy_model(decaying=True).bfloat16()
    task = context(model)
    model = Full().begin_task(model, task)
    name = task.targets[0]
    layer = adapted(model)[name]
    assert isinstance(layer, FullLinear)
    start = layer.weight.clone()
    with torch.no_grad():
        for _ in range(1000):  # each far below what bfloat16 can add
            layer.master.add_(1e-2 / 1000 * start.float())
    moved = layer.master.detach().clone()
    Full().end_task(model, task)
    assert torch.equal(read_weight(model.get_submodule(name)), moved.bfloat16())
    assert not torch.equal(read_weight(model.get_submodule(name)), start)


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_full_tells_guards_its_change(layout: str) -> None:
    model = toy_model(layout, decaying=True)
    task = context(model)
    model = Full().begin_task(model, task)
    before = logits(model, HELD_OUT)
    train_a_little(model, TRAIN)
    after = logits(model, HELD_OUT)
    for name, layer in task.trained.items():
        assert layer.delta().shape == weight_shape(adapted(model)[name])
        assert layer.delta().requires_grad
        (trained,) = layer.trainables().values()
        (start,) = layer.start().values()
        assert start.dtype == torch.float32
        change = float((trained - start).detach().norm())
        assert float(layer.delta().detach().norm()) == pytest.approx(change)
        assert change > 0
        layer.scale_delta(1.0)
    torch.testing.assert_close(logits(model, HELD_OUT), after)
    for layer in task.trained.values():
        layer.scale_delta(0.0)
    torch.testing.assert_close(logits(model, HELD_OUT), before)


def test_full_without_its_change_is_the_starting_model() -> None:
    model = toy_model(decaying=True)
    task = context(model, targets="down_proj")
    model = Full().begin_task(model, task)
    before = logits(model, HELD_OUT)
    train_a_little(model, TRAIN)
    first, second = task.trained.values()
    with first.without_delta(), second.without_delta():
        assert torch.equal(logits(model, HELD_OUT), before)
    assert not torch.equal(logits(model, HELD_OUT), before)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        f"{name}.master" for name in task.targets
    ]
