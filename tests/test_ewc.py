"""EWC: the Fisher against plain autograd, the penalty against sums written out, and its limits."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from clbench_strategies import ewc as ewc_module
from clbench_strategies.ewc import Ewc
from clbench_strategies.fisher import Fisher, displacement, estimate
from guard_toys import CPU, build, context, displace, fit, learn, make_examples, part, started
from torch import Tensor, nn
from toys import LAYOUTS, toy_model
from transformers import GPT2Config, GPT2LMHeadModel

from clbench.adapters import adapted, fold, is_transposed
from clbench.composition import label
from clbench.data import collate
from clbench.errors import UserError
from clbench.linalg import seeded_generator
from clbench.strategy import Example

EXAMPLES = make_examples(6)
CARRY = {"rank": 3, "between_tasks": "carry"}
SETTINGS = {
    "ewc": {"lora": {"rank": 3}},
    "lora+ewc": {"lora": {"rank": 3}},
    "lora-null+ewc": {"lora_null": {"rank": 3}},
    "full+ewc": {},
}


def guarded(expression: str, **fields: Any) -> Any:
    return build(expression, **SETTINGS[expression], ewc={"strength": 10.0} | fields)


def ready(expression: str, layout: str = "llama", **fields: Any) -> tuple[nn.Module, Any]:
    """Return a model whose first task has begun and whose weights have moved, and the guard."""
    model = toy_model(layout)
    strategy = guarded(expression, **fields)
    started(model, strategy, 0)
    displace(model)
    return model, strategy


def brute_force(
    model: nn.Module, groups: Sequence[Sequence[Example]], space: str, *, summed: bool = False
) -> dict[str, Tensor]:
    """Return mean squared gradients by transformers' own loss, one plain backward per example."""
    model = copy.deepcopy(model)
    names = list(adapted(model))
    if space == "delta":
        model = fold(model)
        values = {name: model.get_submodule(name).weight.requires_grad_() for name in names}
    else:
        values = {
            f"{name}/{local}": parameter
            for name, layer in adapted(model).items()
            for local, parameter in layer.trainables().items()
        }
    total = {name: torch.zeros_like(value) for name, value in values.items()}
    for group in groups:
        model.zero_grad()
        for example in group:
            labels = [t if m else -100 for t, m in zip(example.ids, example.loss_mask, strict=True)]
            ids, labels = torch.tensor([example.ids]), torch.tensor([labels])
            loss = model(input_ids=ids, labels=labels).loss  # a mean over the answer tokens
            (loss * (sum(example.loss_mask) if summed else 1) / len(group)).backward()
        for name, value in values.items():
            total[name] += value.grad.square()
    found = {name: value / len(groups) for name, value in total.items()}
    if space == "delta":
        found = {n: v.T if is_transposed(model.get_submodule(n)) else v for n, v in found.items()}
    return found


def measured(model: nn.Module, groups: Any, space: Any, **options: Any) -> dict[str, Tensor]:
    settings: dict[str, Any] = {"labels": "empirical", "token_reduction": "mean"}
    generator = options.pop("generator", seeded_generator("test"))
    return estimate(model, groups, space=space, generator=generator, **(settings | options)).values


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], rtol: float = 1e-3) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = float(other[name].max())
        torch.testing.assert_close(value, other[name], rtol=rtol, atol=1e-5 * scale, msg=name)


# The estimate


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("expression", "space"),
    [("ewc", "factors"), ("ewc", "delta"), ("lora+ewc", "delta"), ("full+ewc", "delta")],
)
def test_the_fisher_is_that_of_a_loop_over_examples(
    expression: str, space: str, layout: str
) -> None:
    model, _ = ready(expression, layout)
    groups = [[example] for example in EXAMPLES[:3]]
    assert_same(measured(model, groups, space), brute_force(model, groups, space))


def test_token_reduction_sum_is_the_likelihood_of_the_whole_answer() -> None:
    model, _ = ready("lora+ewc")
    groups = [[example] for example in EXAMPLES]
    found = measured(model, groups, "delta", token_reduction="sum")
    assert_same(found, brute_force(model, groups, "delta", summed=True))


def test_batch_means_differ_from_the_per_sample_rule_and_padding_counts_for_nothing() -> None:
    model, _ = ready("lora+ewc")
    batched = measured(model, [EXAMPLES], "delta")  # rows of unequal length, so padded
    assert_same(batched, brute_force(model, [EXAMPLES], "delta"))
    single = measured(model, [[example] for example in EXAMPLES], "delta")
    assert all(float(single[name].mean()) > 2 * float(batched[name].mean()) for name in single)


@pytest.mark.parametrize("per_sample", [True, False])
def test_only_the_batch_mean_rule_depends_on_the_batch_size(per_sample: bool) -> None:
    found = []
    for batch_size in (1, 8):
        model, strategy = toy_model(), guarded("lora+ewc", per_sample=per_sample)
        task = started(model, strategy, 0, make_examples(8), batch_size=batch_size)
        displace(model)
        strategy.end_task(model, task)
        found.append(part(strategy, Ewc).fisher_)
    same = [torch.allclose(a, b) for a, b in zip(*(f.values() for f in found), strict=True)]
    assert all(same) if per_sample else not any(same)


def test_sampled_labels_come_from_the_model() -> None:
    model, _ = ready("lora+ewc")
    example = EXAMPLES[3]
    other = example._replace(ids=(*example.ids[:-1], (example.ids[-1] + 1) % 60))
    # the last token is a label only, and nothing reads it
    assert_same(
        measured(model, [[example]], "delta", labels="sampled"),
        measured(model, [[other]], "delta", labels="sampled"),
    )
    empirical = [measured(model, [[one]], "delta") for one in (example, other)]
    assert not torch.allclose(*(next(iter(found.values())) for found in empirical))
    draws = [
        measured(model, [[example]], "delta", labels="sampled", generator=seeded_generator(seed))
        for seed in (0, 1)
    ]
    assert not torch.allclose(*(next(iter(found.values())) for found in draws))


def test_sampled_labels_average_to_the_exact_fisher() -> None:
    name, num_draws = "model.layers.1.mlp.down_proj", 200
    model, strategy = toy_model(), guarded("lora+ewc")
    model.lm_head.weight.data *= 30.0  # far from uniform, so that it matters who draws
    started(model, strategy, 0)
    displace(model)
    example = Example((5, 9, 11, 7), (False, False, False, True), "t", 0)
    plain = fold(copy.deepcopy(model))
    weight = plain.get_submodule(name).weight.requires_grad_()
    chances = plain(input_ids=torch.tensor([example.ids])).logits[0, -2].log_softmax(0)
    exact = torch.zeros(())
    for chance in chances:
        (gradient,) = torch.autograd.grad(chance, weight, retain_graph=True)
        exact += chance.exp().detach() * gradient.square().mean()
    sampled = measured(model, [[example]] * num_draws, "delta", labels="sampled")[name].mean()
    assert sampled.item() == pytest.approx(exact.item(), rel=0.2)
    random = measured(model, [[example]], "delta")[name].mean()
    assert random.item() > 1.5 * exact.item()


def test_dropout_modes_hooks_and_gradients_are_left_as_they_are() -> None:
    def model_with(dropout: float) -> nn.Module:
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=dropout,
            embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
        started(model, guarded("lora+ewc"), 0)
        displace(model)
        return model.train()

    groups = [[example] for example in EXAMPLES[:2]]
    noisy = model_with(0.5)
    noisy.transformer.h[0].eval()
    modes = [module.training for module in noisy.modules()]
    mark = noisy.get_submodule("transformer.h.0.attn.c_attn").register_forward_hook(lambda *_: None)
    parameter = next(p for p in noisy.parameters() if p.requires_grad)
    parameter.grad = torch.ones_like(parameter)
    assert_same(measured(noisy, groups, "delta"), measured(model_with(0.0), groups, "delta"))
    assert [module.training for module in noisy.modules()] == modes
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    hooks = [hook for module in noisy.modules() for hook in module._forward_hooks]
    assert hooks == [mark.id]


def test_the_penalty_does_not_reach_the_fisher() -> None:
    found = []
    for strength in (0.0, 1e4):
        model, strategy = ready("ewc", strength=strength)
        strategy.end_task(model, context(model, EXAMPLES, 0))
        task = started(model, strategy, 1)
        displace(model, seed=6)
        strategy.end_task(model, task)
        found.append(part(strategy, Ewc).fisher_)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("expression", ["ewc", "lora+ewc", "full+ewc"])
def test_state_is_float32_on_a_bfloat16_model(expression: str) -> None:
    model = toy_model().bfloat16()
    strategy = guarded(expression, mode="separate")
    for index in range(2):
        model = learn(model, strategy, index, steps=1)
    kept = part(strategy, Ewc)
    tensors = [*kept.fisher_.values(), *kept.pull_.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert float(sum(tensor.abs().sum() for tensor in tensors)) > 0


def test_num_examples_bounds_the_passes_and_the_facts_say_what_they_cost() -> None:
    model, strategy = ready("lora+ewc", num_examples=2)
    strategy.end_task(model, context(model, [EXAMPLES[0]] * 5, 0))
    facts = strategy.facts()["ewc"]
    assert facts["tokens_extra_forward"] == facts["tokens_extra_backward"] == 2 * 5
    values = torch.cat([f.flatten() for f in part(strategy, Ewc).fisher_.values()])
    assert facts["fisher_mean"] == pytest.approx(float(values.mean()), rel=1e-4)


# The penalty


def penalty(model: nn.Module, strategy: Any) -> Tensor:
    return torch.as_tensor(strategy.penalty(model, collate(EXAMPLES, 0, CPU), None)).clone()


@pytest.mark.parametrize("expression", SETTINGS)
def test_off_the_anchor_every_protected_parameter_has_a_gradient(expression: str) -> None:
    strategy = guarded(expression)
    model = learn(toy_model(decaying=True), strategy, 0)
    started(model, strategy, 1)
    displace(model)
    penalty(model, strategy).backward()
    for name, layer in adapted(model).items():
        for local, parameter in layer.trainables().items():
            assert parameter.grad is not None, f"{name}/{local}"
            assert bool(parameter.grad.any()), f"{name}/{local}"


@pytest.mark.parametrize("expression", SETTINGS)
def test_online_the_penalty_is_zero_at_the_start_of_every_task(expression: str) -> None:
    model, strategy = toy_model(decaying=True), guarded(expression)
    for index in range(3):
        task = started(model, strategy, index)
        assert penalty(model, strategy).item() == 0.0
        fit(model, strategy, task)
        assert (penalty(model, strategy).item() > 0.0) == (index > 0)
        model = strategy.end_task(model, task)


@pytest.mark.parametrize("mode", ["online", "separate"])
@pytest.mark.parametrize("expression", SETTINGS)
def test_four_tasks_equal_the_sums_written_out(expression: str, mode: str) -> None:
    """Absolute weights and every task's own Fisher are kept here, nothing of it by the guard."""
    gamma = 0.5 if mode == "online" else 1.0
    model = toy_model(decaying=True)
    strategy = guarded(expression, mode=mode, gamma=gamma, strength=2.0)
    space = "factors" if expression == "ewc" else "delta"
    fishers, anchors = [], []

    def position() -> dict[str, Tensor]:
        if space == "factors":
            layers = adapted(model).items()
            return {f"{n}/{k}": p for n, v in layers for k, p in v.trainables().items()}
        weights = {n: v.base.weight.double() for n, v in adapted(model).items()}
        return {n: weights[n] + v.delta() for n, v in adapted(model).items()}

    for index in range(4):
        examples = make_examples(4, index)
        task = started(model, strategy, index, examples)
        displace(model, seed=index)
        fishers.append(brute_force(model, [[e] for e in examples], space))
        anchors.append({name: value.detach().clone() for name, value in position().items()})
        model = strategy.end_task(model, task)
    started(model, strategy, 4)

    def written_out() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for name, theta in position().items():
            for k, (importance, anchor) in enumerate(zip(fishers, anchors, strict=True)):
                weight = gamma ** (3 - k) * importance[name]
                center = anchors[-1][name] if mode == "online" else anchor[name]
                total = total + (weight * (theta - center).square()).sum()
        return total  # times strength / 2 = 1

    values = []
    for seed in (21, 22):
        displace(model, 0.1, seed=seed)
        theirs = _gradients(model, written_out())
        ours = _gradients(model, penalty(model, strategy))
        for name, gradient in ours.items():
            scale = float(theirs[name].abs().max())
            torch.testing.assert_close(gradient, theirs[name], rtol=1e-2, atol=1e-3 * scale)
        values.append((penalty(model, strategy).item(), written_out().item()))
    (ours_0, theirs_0), (ours_1, theirs_1) = values
    assert ours_1 - ours_0 == pytest.approx(theirs_1 - theirs_0, rel=1e-2)


def _gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", ["online", "separate"])
def test_what_only_the_first_task_found_important_stays_guarded(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, strategy = toy_model(), guarded("lora+ewc", mode=mode)
    index = 0

    def only_row(model: nn.Module, *_: Any, **__: Any) -> Fisher:
        values = {n: torch.zeros_like(d) for n, d in displacement(model, "delta")}
        for value in values.values():
            value[index] = 1.0
        return Fisher(values, 0)

    monkeypatch.setattr(ewc_module, "estimate", only_row)
    for index in range(3):
        model = learn(model, strategy, index, steps=1)
    for importance in part(strategy, Ewc).fisher_.values():
        assert importance[:3].eq(1.0).all()
        assert not importance[3:].any()


# Limits


@pytest.mark.parametrize(("expression", "lr"), [("ewc", 1e-3), ("full+ewc", 2e-4)])
def test_a_huge_strength_holds_the_weights_and_none_lets_them_go(
    expression: str, lr: float
) -> None:
    moved = {}
    for strength in (0.0, 1e8):
        model, strategy = toy_model(), guarded(expression, strength=strength)
        model.model.layers = model.model.layers[:1]
        model = learn(model, strategy, 0, steps=3)  # not to its end, where F would vanish
        task = started(model, strategy, 1, make_examples(2, 1))
        fit(model, strategy, task, steps=300, lr=lr, batch_size=2, clip=None)
        space = "factors" if expression == "ewc" else "delta"
        distances = dict(displacement(model, space))
        held = [
            # where the penalty's gradient at 2 lr outweighs the task's, of which F is the square
            distances[key].detach().abs()[1e8 * importance * 2 * lr > 10 * importance.sqrt()]
            for key, importance in part(strategy, Ewc).fisher_.items()
        ]
        moved[strength] = torch.cat(held).max().item()
    assert moved[1e8] <= 2 * lr
    assert moved[0.0] > 100 * lr


def test_strength_zero_is_the_unguarded_strategy_bit_for_bit() -> None:
    weights = []
    for strategy in (build("lora", lora={"rank": 3}), guarded("lora+ewc", strength=0.0)):
        model = toy_model()
        for index in range(2):
            model = learn(model, strategy, index)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("expression", ["ewc", "lora+ewc"])
def test_accumulation_does_not_change_the_penalty(expression: str) -> None:
    gradients = []
    for micro_batch in (4, 1):
        model, strategy = toy_model(), guarded(expression, strength=1e4)
        model = learn(model, strategy, 0)
        task = started(model, strategy, 1)
        displace(model)
        strategy.before_step = lambda model, step: gradients.append(  # type: ignore[method-assign]
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
        fit(model, strategy, task, steps=1, micro_batch=micro_batch)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5 * float(gradients[0].abs().max()))


def test_factor_space_needs_factors_that_are_carried() -> None:
    for expression in ("lora+ewc", "full+ewc"):
        with pytest.raises(UserError, match="needs factors that are carried on: after a fold"):
            guarded(expression, space="factors")
    carried = build("lora+ewc", lora=CARRY, ewc={"strength": 1.0, "space": "factors"})
    assert label(carried) == "lora(between_tasks=carry)+ewc"


def test_alone_it_brings_factors_that_are_carried_and_guards_them_one_by_one() -> None:
    strategy = guarded("ewc")
    assert label(strategy) == "lora(between_tasks=carry)+ewc"
    model = learn(toy_model(), strategy, 0)
    first = next(iter(adapted(model)))
    assert {f"{first}/up", f"{first}/down"} <= part(strategy, Ewc).fisher_.keys()
    folding = build("ewc", lora={"rank": 3, "between_tasks": "fold"}, ewc={"strength": 1.0})
    assert label(folding) == "lora+ewc"
    learn(toy_model(), folding, 0)
    assert first in part(folding, Ewc).fisher_


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"strength": -1.0}, "ewc: strength -1.0 is not a number from 0 up"),
        ({"strength": float("inf")}, "ewc: strength inf is not a number"),
        ({"mode": "last"}, "ewc: mode 'last' is unknown; choices: online, separate"),
        ({"gamma": 0.0}, "ewc: gamma 0.0 is not a number above 0 and up to 1"),
        ({"mode": "separate", "gamma": 0.9}, "mode 'separate' never decays"),
        ({"space": "weights"}, "ewc: space 'weights' is unknown; choices: factors, delta"),
        ({"labels": "true"}, "ewc: labels 'true' is unknown; choices: empirical, sampled"),
        ({"num_examples": 0}, "ewc: num_examples 0 is not a positive integer"),
        ({"token_reduction": "max"}, "ewc: token_reduction 'max' is unknown"),
    ],
)
def test_bad_fields_are_refused_in_a_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Ewc(**({"strength": 1.0} | fields))
