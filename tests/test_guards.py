"""l2, wise-ft and lwf against their formulas; every guard goes on where it was interrupted."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from clbench_strategies.l2 import L2
from clbench_strategies.lwf import Lwf
from clbench_strategies.wise_ft import WiseFt
from guard_toys import CPU, build, displace, fit, learn, make_examples, started, twin
from torch import Tensor, nn
from toys import LAYOUTS, logits, toy_model, toy_windows
from transformers import GPT2Config, GPT2LMHeadModel

from clbench import api
from clbench.adapters import (
    AdaptedLinear,
    FactorLinear,
    adapted,
    find_targets,
    read_weight,
    replace,
)
from clbench.composition import label
from clbench.data import collate, num_tokens
from clbench.errors import UserError
from clbench.registry import build_strategy
from clbench.strategy import Strategy

ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"rank": 3}},
    "lora-null": {"lora_null": {"rank": 3, "alpha": 6.0}},
}
GUARDS: dict[str, dict[str, Any]] = {
    "ewc": {"strength": 5.0},
    "l2": {"strength": 0.5},
    "wise-ft": {"alpha": 0.5, "anchor": "stream"},
    "lwf": {"strength": 1.0},
    "a-gem": {"memory_size": 6, "batch_size": 3},
    "gpm": {"threshold": 0.6},
}
IDS = toy_windows(2, 12)
BATCH = collate(make_examples(5), 0, CPU)


def guarded(adapter: str, guard: str, **fields: Any) -> Any:
    params = {guard.replace("-", "_"): GUARDS[guard] | fields}
    return build(f"{adapter}+{guard}", **ADAPTERS[adapter], **params)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: read_weight(model.get_submodule(name)).clone() for name in find_targets(model)}


def outputs(model: nn.Module) -> Any:
    return model(**BATCH.model_inputs(), use_cache=False)


# l2


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_l2_is_half_the_squared_distance_from_the_start_of_the_task(adapter: str) -> None:
    model, strategy = toy_model(decaying=True), guarded(adapter, "l2", strength=0.3)
    model = learn(model, strategy, 0)
    start = weights(model)
    started(model, strategy, 1)
    assert torch.as_tensor(strategy.penalty(model, BATCH, None)).item() == 0.0
    displace(model, 0.1)
    moved = weights(model)
    squares = [(moved[name] - start[name]).double().square().sum() for name in start]
    found = strategy.penalty(model, BATCH, None)
    assert found.item() == pytest.approx(0.15 * float(sum(squares)), rel=1e-4)
    found.backward()
    for layer in adapted(model).values():
        assert all(p.grad is not None and p.grad.any() for p in layer.trainables().values())


def test_l2_holds_the_weights_back() -> None:
    moved = []
    for strength in (0.0, 1.0):
        model, strategy = toy_model(), guarded("full", "l2", strength=strength)
        task = started(model, strategy, 0)
        fit(model, strategy, task, steps=20, clip=None)
        moved.append(sum(v.squared_norm().item() for v in adapted(model).values()))
    assert 0 < moved[1] < 0.5 * moved[0]


def test_l2_of_strength_zero_adds_nothing() -> None:
    model, strategy = toy_model(), guarded("lora", "l2", strength=0.0)
    started(model, strategy, 0)
    displace(model)
    assert strategy.penalty(model, BATCH, None) == 0.0


# wise-ft


@pytest.mark.parametrize("anchor", ["task", "stream"])
@pytest.mark.parametrize("layout", ["llama", "gpt2"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_wise_ft_interpolates_with_its_anchor(adapter: str, layout: str, anchor: str) -> None:
    alpha = 0.7
    model = toy_model(layout, decaying=True)
    strategy = guarded(adapter, "wise-ft", alpha=alpha, anchor=anchor)
    base = weights(model)
    for index in range(3):
        start = weights(model)
        task = started(model, strategy, index)
        displace(model, 0.1, seed=index)
        end = weights(model)
        model = strategy.end_task(model, task)
        assert not adapted(model)
        toward = start if anchor == "task" else base
        for name, found in weights(model).items():
            expected = toward[name] + alpha * (end[name] - toward[name])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            assert not torch.allclose(found, end[name], atol=1e-4), name


@pytest.mark.parametrize("anchor", ["task", "stream"])
def test_alpha_one_is_a_no_op_and_zero_forgets_the_task(anchor: str) -> None:
    kept = {}
    for alpha in (None, 1.0, 0.0):
        strategy: Any = build("lora", lora={"rank": 3})
        if alpha is not None:
            strategy = guarded("lora", "wise-ft", alpha=alpha, anchor=anchor)
        model = toy_model()
        before = weights(model)
        for index in range(2):
            model = learn(model, strategy, index)
        kept[alpha] = weights(model)
    for name in before:
        assert torch.equal(kept[1.0][name], kept[None][name])
        torch.testing.assert_close(kept[0.0][name], before[name], rtol=0, atol=1e-7)


def test_only_interpolation_is_expected_to_change_the_function() -> None:
    assert "end_task_keeps_function" in WiseFt(alpha=0.5).expected_failures()
    assert WiseFt(alpha=1.0).expected_failures() == {}


def test_wise_ft_leaves_an_untrained_bfloat16_model_alone() -> None:
    model, strategy = toy_model().bfloat16(), guarded("lora", "wise-ft")
    before = weights(model)
    for index in range(3):
        model = strategy.end_task(model, started(model, strategy, index))
    for name, weight in weights(model).items():
        assert torch.equal(weight.view(torch.int16), before[name].view(torch.int16)), name


def test_wise_ft_refuses_factors_that_are_carried() -> None:
    with pytest.raises(UserError, match=r"hold those of all tasks; let lora fold"):
        build("ewc+wise-ft", ewc={"strength": 1.0}, wise_ft={"alpha": 0.5})


def test_a_layer_that_cannot_go_back_is_refused_before_anything_is_trained() -> None:
    class Odd(FactorLinear):
        shift = AdaptedLinear.shift

    adapter, guard = guarded("lora", "wise-ft", anchor="stream").parts
    model = toy_model()
    task = started(model, adapter, 0)
    name, layer = next(iter(adapted(model).items()))
    replace(model, name, Odd.rebuild(layer.base, layer.settings()))
    with pytest.raises(UserError, match=f"which {name}, a layer of type Odd, cannot; use anchor"):
        guard.begin_task(model, task)
    assert WiseFt(alpha=0.5).begin_task(model, task) is model


# lwf


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_lwf_is_zero_at_step_zero_of_every_task(adapter: str, layout: str) -> None:
    model, strategy = toy_model(layout, decaying=True), guarded(adapter, "lwf")
    for index in range(2):
        task = started(model, strategy, index)
        model.train()
        assert strategy.penalty(model, BATCH, outputs(model)).item() == 0.0
        displace(model, 0.1)
        assert strategy.penalty(model, BATCH, outputs(model)).item() > 1e-5
        model = strategy.end_task(model.eval(), task)


def test_lwf_is_the_divergence_of_the_student_from_the_teacher() -> None:
    model, strategy = toy_model(), guarded("lora", "lwf", strength=0.5, temperature=3.0)
    model.lm_head.weight.data *= 50.0  # opinions strong enough for the two orders to differ
    teacher = logits(model, BATCH.input_ids).double()
    started(model, strategy, 0)
    displace(model, 0.2)
    student = outputs(model)
    found = strategy.penalty(model, BATCH, student)

    def divergence(p: Tensor, q: Tensor) -> float:
        """KL(p || q) of softened distributions, over the positions that predict an answer."""
        total, num = 0.0, 0
        for row, example in enumerate(BATCH.examples):
            for position, has_loss in enumerate(example.loss_mask[1:]):
                if has_loss:
                    a, b = (x[row, position].div(3.0).softmax(0) for x in (p, q))
                    total += float((a * (a.log() - b.log())).sum())
                    num += 1
        return total / num

    target = student.logits.detach().double()
    forward, reverse = divergence(teacher, target), divergence(target, teacher)
    assert found.item() == pytest.approx(0.5 * 9 * forward, rel=1e-4)
    assert abs(forward - reverse) > 5e-3 * forward  # so that the order is told
    found.backward()
    assert all(p.grad is not None for v in adapted(model).values() for p in v.trainables().values())


def test_lwf_teaches_from_the_start_of_carried_factors() -> None:
    strategy = build("lora+lwf", lora={"rank": 3, "between_tasks": "carry"}, lwf={"strength": 1.0})
    model = learn(toy_model(), strategy, 0)
    started(model, strategy, 1)
    assert strategy.penalty(model, BATCH, outputs(model)).item() == 0.0


def test_the_teacher_is_deterministic_counts_its_tokens_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model, strategy = GPT2LMHeadModel(config), guarded("lora", "lwf")
    started(model, strategy, 0)
    displace(model)
    model.train()
    student = SimpleNamespace(logits=outputs(model).logits.detach())  # dropout is drawn here
    random_state = torch.get_rng_state()
    found = [strategy.penalty(model, BATCH, student).item() for _ in range(2)]
    assert found[0] == found[1] > 0
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in model.modules())
    assert strategy.facts()["lwf"] == {"tokens_extra_forward": 2 * num_tokens(BATCH.examples)}


def test_lwf_of_strength_zero_makes_no_pass() -> None:
    model, strategy = toy_model(), guarded("lora", "lwf", strength=0.0)
    started(model, strategy, 0)
    assert strategy.penalty(model, BATCH, None) == 0.0
    assert strategy.facts()["lwf"]["tokens_extra_forward"] == 0


def test_under_autocast_the_teacher_computes_as_the_student_does() -> None:
    model, strategy = toy_model(decaying=True), guarded("lora-null", "lwf")
    started(model, strategy, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = outputs(model)
    assert student.logits.dtype == torch.bfloat16
    assert strategy.penalty(model, BATCH, student).item() == 0.0


# Every guard


@pytest.mark.parametrize("killed", ["after begin_task", "after end_task"])
@pytest.mark.parametrize("guard", GUARDS)
def test_interrupted_and_gone_on_equals_uninterrupted(guard: str, killed: str) -> None:
    """The next task is taken up by a new object that has the fields and the state of the old."""
    model, strategy = toy_model(), guarded("lora", guard)
    for index in range(2):
        model = learn(model, strategy, index)
    results = []
    for interrupted in (False, True):
        present, part = copy.deepcopy((model, strategy))
        if interrupted and killed == "after end_task":
            part = twin(part)
        task = started(present, part, 2)
        if interrupted and killed == "after begin_task":
            part = twin(part)
        fit(present, part, task)
        present = part.end_task(present, task)
        present = learn(present, part, 3)
        results.append((present.state_dict(), part.facts(), part.params()))
    (plain, facts, params), (resumed, facts_resumed, params_resumed) = results
    assert all(torch.equal(plain[name], resumed[name]) for name in plain)
    assert (facts, params) == (facts_resumed, params_resumed)


@pytest.mark.parametrize("guard", GUARDS)
def test_a_guard_has_no_state_before_the_first_task_and_starts_a_stream_anew(guard: str) -> None:
    strategy: Strategy = guarded("lora", guard)
    assert not any(part.state() for part in strategy.parts)  # type: ignore[attr-defined]
    results = []
    for _ in range(2):  # the same object, on two streams
        model = toy_model()
        for index in range(2):
            model = learn(model, strategy, index)
        results.append(model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("guard", GUARDS)
def test_preset_tiny_runs_it_by_its_name_alone(guard: str) -> None:
    config = api.resolve("math-code-if", guard)
    strategy = build_strategy(config.strategy, config.params)
    carried = "(between_tasks=carry)" if guard == "ewc" else ""
    assert label(strategy) == f"lora{carried}+{guard}"
    assert config.train.lr == api.resolve("math-code-if", "lora").train.lr


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: L2(strength=-1.0), "l2: strength -1.0 is not a number from 0 up"),
        (lambda: L2(strength=True), "l2: strength True is not a number from 0 up"),
        (lambda: WiseFt(alpha=1.5), "wise-ft: alpha 1.5 is not a number from 0 to 1"),
        (lambda: WiseFt(alpha=0.5, anchor="base"), "anchor 'base' is unknown; choices: task, str"),  # type: ignore[arg-type]
        (lambda: Lwf(strength=1.0, temperature=0.0), "lwf: temperature 0.0 is not a positive num"),
    ],
)
def test_bad_fields_are_refused_in_a_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()
