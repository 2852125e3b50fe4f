"""A-GEM and GPM: what they take out of a gradient or a change, against the formulas."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from clbench_strategies.a_gem import AGem
from clbench_strategies.full import FullLinear
from clbench_strategies.gpm import Gpm, grown
from guard_toys import (
    build,
    context,
    displace,
    fit,
    learn,
    make_examples,
    part,
    started,
)
from torch import Tensor, nn
from toys import LAYOUTS, toy_model

from clbench.adapters import FactorLinear, adapted, replace
from clbench.composition import label
from clbench.data import num_tokens
from clbench.errors import UserError
from clbench.linalg import orthonormal
from clbench.strategy import Example, Step

STEP = Step(index=0, total=None, lr=0.0)


# A-GEM


def loss_gradient(model: nn.Module, examples: list[Example]) -> Tensor:
    """Return the gradient of the loss per answer token, example by example, as one vector."""
    model.zero_grad()
    for example in examples:
        labels = [t if m else -100 for t, m in zip(example.ids, example.loss_mask, strict=True)]
        out = model(input_ids=torch.tensor([example.ids]), labels=torch.tensor([labels]))
        (out.loss * sum(example.loss_mask)).backward()
    found = flat_gradient(model) / sum(sum(e.loss_mask) for e in examples)
    model.zero_grad()
    return found


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def give_gradient(model: nn.Module, vector: Tensor) -> None:
    start = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            end = start + parameter.numel()
            parameter.grad = vector[start:end].view_as(parameter).clone()
            start = end


def second_task(adapter: str = "lora", **fields: Any) -> tuple[nn.Module, Any]:
    """Return a model in the middle of its second task, and A-GEM."""
    values = {"memory_size": 6, "batch_size": 6} | fields
    strategy = build(f"{adapter}+a-gem", a_gem=values)
    model = learn(toy_model(), strategy, 0)
    started(model, strategy, 1)
    displace(model)
    return model, strategy


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_conflicting_gradient_loses_its_part_along_the_reference(adapter: str) -> None:
    model, strategy = second_task(adapter)
    reference = loss_gradient(model, part(strategy, AGem).memory_["items"])
    noise = torch.randn(len(reference), generator=torch.Generator().manual_seed(0))
    given = 0.3 * noise * reference.std() - reference
    assert float(given @ reference) < 0
    give_gradient(model, given)
    strategy.before_step(model, STEP)
    expected = given - (given @ reference) / (reference @ reference) * reference
    found = flat_gradient(model)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(given.abs().max()))
    assert abs(float(found @ reference)) < 1e-3 * float(found.norm() * reference.norm())
    assert strategy.facts()["a-gem"]["conflicts"] == 1


def test_without_conflict_every_bit_stays() -> None:
    model, strategy = second_task()
    given = loss_gradient(model, part(strategy, AGem).memory_["items"])
    give_gradient(model, given)
    strategy.before_step(model, STEP)
    assert torch.equal(flat_gradient(model), given)
    facts = strategy.facts()["a-gem"]
    assert (facts["conflicts"], facts["steps_compared"]) == (0, 1)


def test_the_first_task_is_the_unguarded_one_and_later_ones_are_not() -> None:
    weights: list[list[Tensor]] = []
    for strategy in (build("lora"), build("lora+a-gem", a_gem={"batch_size": 4})):
        model, rows = toy_model(), []
        for index in range(2):
            model = learn(model, strategy, index, steps=10)
            rows.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        weights.append(rows)
    assert torch.equal(weights[0][0], weights[1][0])
    assert not torch.equal(weights[0][1], weights[1][1])
    assert strategy.facts()["a-gem"]["conflicts"] > 0


def test_the_memory_samples_past_tasks_and_the_facts_count_its_passes() -> None:
    strategy = build("lora+a-gem", a_gem={"memory_size": 6, "batch_size": 3})
    model = toy_model()
    for index in range(3):
        model = learn(model, strategy, index, [make_examples(1, index)[0]] * 20, steps=4)
        items = part(strategy, AGem).memory_["items"]
        assert len(items) == 6
        if index == 0:
            assert strategy.facts()["a-gem"]["tokens_extra_forward"] == 0
    assert len(Counter(item.task for item in items)) > 1
    facts = strategy.facts()["a-gem"]
    assert facts["tokens_extra_forward"] == facts["tokens_extra_backward"] == 4 * 3 * 5
    assert facts["memory_bytes"] == 9 * num_tokens(items)


def test_batches_are_drawn_anew_at_every_step() -> None:
    _, strategy = second_task(batch_size=2)
    guard = part(strategy, AGem)
    drawn = {tuple(e.index for e in guard._drawn(STEP._replace(index=i))) for i in range(12)}
    assert len(drawn) > 3


def test_two_that_rewrite_gradients_are_refused() -> None:
    with pytest.raises(UserError, match="a-gem and gpm both rewrite gradients"):
        build("lora+a-gem+gpm", gpm={"threshold": 0.5})


# GPM


ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"rank": 3}},
    "lora-null": {"lora_null": {"rank": 3}},
    "lora-null-v2": {"lora_null_v2": {"rank": 3}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_no_change_gets_inside_the_protected_space(adapter: str, layout: str) -> None:
    """After 50 AdamW steps less than a millionth of the squared change is inside."""
    model = toy_model(layout, decaying=True)
    strategy = build(f"{adapter}+gpm", **ADAPTERS[adapter], gpm={"threshold": 0.8})
    model = learn(model, strategy, 0, steps=1)
    task = started(model, strategy, 1)
    fit(model, strategy, task, steps=50, clip=None)
    for name, layer in adapted(model).items():
        basis = part(strategy, Gpm).basis_[name].double()
        assert 0 < basis.shape[1] < basis.shape[0]
        change = layer.delta().detach().double()
        assert float(change.square().sum()) > 0
        inside = (change @ basis).square().sum() / change.square().sum()
        assert float(inside) < 1e-6, name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_protecting_fresh_factors_keeps_the_function(adapter: str, layout: str) -> None:
    model = toy_model(layout, decaying=True)
    strategy = build(f"{adapter}+gpm", **ADAPTERS[adapter], gpm={"threshold": 0.8})
    model = learn(model, strategy, 0)
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        started(model, strategy, 1)
        assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_does_not_move_keeps_every_bit(adapter: str) -> None:
    model = toy_model(decaying=True)
    strategy = build(f"{adapter}+gpm", **ADAPTERS[adapter], gpm={"threshold": 0.8})
    model = learn(model, strategy, 0)
    started(model, strategy, 1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for index in range(3):
        strategy.after_step(model, STEP._replace(index=index))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(layer.change().any() for layer in adapted(model).values())


def test_the_first_task_is_free() -> None:
    weights = []
    for strategy in (build("full"), build("full+gpm", gpm={"threshold": 0.9})):
        weights.append(learn(toy_model(), strategy, 0).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert strategy.facts()["gpm"] == {"protected_share": 0.0}


@pytest.mark.parametrize("layout", ["llama", "gpt2"])
def test_gradients_are_projected_before_the_optimizer_sees_them(layout: str) -> None:
    model, strategy = toy_model(layout), build("full+gpm", gpm={"threshold": 0.8})
    model = learn(model, strategy, 0)
    started(model, strategy, 1)
    bases, given = part(strategy, Gpm).basis_, {}
    generator = torch.Generator().manual_seed(1)
    for name, layer in adapted(model).items():
        assert isinstance(layer, FullLinear)
        layer.master.grad = torch.randn(layer.master.shape, generator=generator)
        given[name] = layer.master.grad.clone()
    strategy.before_step(model, STEP)
    for name, layer in adapted(model).items():
        outside = torch.eye(len(bases[name])) - bases[name] @ bases[name].T
        expected = outside @ given[name] if layout == "gpt2" else given[name] @ outside
        torch.testing.assert_close(layer.master.grad, expected, rtol=0, atol=1e-5)


def covariance(*energies: float, seed: int = 0) -> Tensor:
    """Return a second moment with these eigenvalues in a random rotation."""
    rotation = orthonormal(len(energies), len(energies), torch.Generator().manual_seed(seed))
    return (rotation * torch.tensor(energies, dtype=torch.float64)) @ rotation.T


@pytest.mark.parametrize(("threshold", "num"), [(0.55, 1), (0.65, 2), (0.85, 2), (0.95, 3)])
def test_the_basis_takes_the_fewest_directions_that_hold_enough_energy(
    threshold: float, num: int
) -> None:
    moment = covariance(6.0, 3.0, 0.9, 0.1, 0.0)
    basis = grown(None, moment, threshold)
    top = torch.linalg.eigh(moment).eigenvectors.flip(1)[:, :num].float()
    assert basis.shape == (5, num)
    torch.testing.assert_close(basis @ basis.T, top @ top.T, rtol=0, atol=1e-5)


def test_a_basis_grows_by_what_is_not_in_it_and_only_where_it_must() -> None:
    first, second = covariance(6.0, 3.0, 0.9, 0.1, 0.0), covariance(5.0, 4.0, 1.0, 0.2, 0.1, seed=3)
    basis = grown(None, first, 0.8)
    assert grown(basis, first, 0.7).shape == basis.shape
    larger = grown(basis, second, 0.8)
    assert basis.shape[1] < larger.shape[1] <= 5
    eye = torch.eye(larger.shape[1])
    torch.testing.assert_close(larger.T @ larger, eye, rtol=0, atol=1e-6)
    held = (larger.T.double() @ second @ larger.double()).trace() / second.trace()
    assert float(held) >= 0.8 - 1e-6
    inside = (larger @ larger.T) @ basis  # the old directions are all kept
    torch.testing.assert_close(inside, basis, rtol=0, atol=1e-5)


def test_layers_that_share_an_input_share_a_basis_and_the_facts_say_how_much_is_held() -> None:
    model, strategy = toy_model(), build("full+gpm", gpm={"threshold": 0.5})
    model = learn(model, strategy, 0)
    started(model, strategy, 1)
    bases = part(strategy, Gpm).basis_
    block = "model.layers.0.self_attn"
    assert bases[f"{block}.q_proj"] is bases[f"{block}.v_proj"]
    shares = [basis.shape[1] / basis.shape[0] for basis in bases.values()]
    assert strategy.facts()["gpm"]["protected_share"] == pytest.approx(sum(shares) / len(shares))


def test_what_it_cannot_protect_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"have met them already; let lora fold"):
        build("lora+gpm", lora={"between_tasks": "carry"}, gpm={"threshold": 0.5})

    class Odd(FactorLinear):
        pass

    strategy = build("lora+gpm", gpm={"threshold": 0.5})
    model = toy_model()
    adapter, guard = strategy.parts  # type: ignore[attr-defined]
    task = started(model, adapter, 0)
    name, layer = next(iter(adapted(model).items()))
    replace(model, name, Odd.rebuild(layer.base, layer.settings()))
    with pytest.raises(UserError, match=f"gpm cannot protect {name}, a layer of type Odd"):
        guard.begin_task(model, task)


def test_a_missing_covariance_is_named_but_not_before_the_first_task() -> None:
    model, strategy = toy_model(), build("full+gpm", gpm={"threshold": 0.5})
    task = started(model, strategy, 0)
    model = strategy.end_task(model, task)
    task = context(model, make_examples(4, 1), 1)
    with pytest.raises(UserError, match=r"gpm needs the 'seen' covariance of model\.layers\.0"):
        strategy.begin_task(model, task)


@pytest.mark.parametrize("threshold", [0.0, 1.0, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(UserError, match=r"gpm: threshold \S+ is not a number between"):
        Gpm(threshold=threshold)


@pytest.mark.parametrize("field", ["memory_size", "batch_size"])
def test_a_memory_without_room_is_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"a-gem: {field} 0 is not a positive integer"):
        AGem(**{field: 0})


def test_a_guard_alone_brings_lora() -> None:
    assert label(build("a-gem")) == "lora+a-gem"
    assert label(build("gpm", gpm={"threshold": 0.5})) == "lora+gpm"
