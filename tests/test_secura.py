"""secura: S-MagNorm by hand, the CABR change, merges, and what is kept of them."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from clbench_strategies.curlora import CurLora
from clbench_strategies.secura import CabrLinear, Secura, divisor
from torch import Tensor, nn
from toys import LAYOUTS, logits, toy_context, toy_model, toy_windows, train_a_little

from clbench.adapters import adapted, fold, read_weight, replace, structure
from clbench.checkpoint import Checkpoints
from clbench.composition import label
from clbench.errors import UserError
from clbench.strategy import Step

IDS = toy_windows(4, 12)
SMALL = {"rank": 4, "inner": 6}
NORMS = ("off", "meant", "executed")
Q = "model.layers.0.self_attn.q_proj"


def small(**fields: object) -> Secura:
    return Secura(**{**SMALL, **fields})  # type: ignore[arg-type]


def begun(model: nn.Module, strategy: Secura, **options) -> dict[str, CabrLinear]:
    """Begin a task and return its layers."""
    strategy.begin_task(model, toy_context(model, **options))
    return {n: layer for n, layer in adapted(model).items() if isinstance(layer, CabrLinear)}


def randomize(layers: dict[str, CabrLinear], size: float = 50.0) -> None:
    """Give every B a value of its own, large enough to be seen in the logits."""
    generator = torch.Generator().manual_seed(0)
    for layer in layers.values():
        noise = torch.randn(layer.down.shape, generator=generator, dtype=torch.float64)
        layer.down.data.copy_(size * noise)


@contextmanager
def without_delta(model: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        for layer in adapted(model).values():
            stack.enter_context(layer.without_delta())
        yield


def trained(strategy: Secura, model: nn.Module, steps: int, lr: float = 0.1) -> list[bool]:
    """Train as the driver does; return, per step, whether any A had a gradient that is not 0."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    moved = []
    for index in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        moved.append(any(bool(p.grad.any()) for n, p in named(model, "up")))
        optimizer.step()
        strategy.after_step(model, Step(index, steps, lr))
    return moved


def named(model: nn.Module, name: str) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if n.endswith(f".{name}")]


# S-MagNorm, with numbers from a calculator

PLAIN = torch.tensor([[1.0, 2.0, -4.0, 0.5], [2.0, -1.0, 4.0, 1.0]])
CHANGE = torch.tensor([[0.0, 1.0, -4.0, 0.05], [0.5, 0.0, -0.4, 0.2]])
# ratios: 0, 1/2, 1, 1/10 with maximum 1; 1/4, 0, 1/10, 1/5 with maximum 1/4


@pytest.mark.parametrize(
    ("norm", "scope", "first", "second"),
    [
        (
            "meant",
            "token",
            [1.952574, 1.5, 1.047426, 1.916827],
            [1.047426, 1.952574, 1.645656, 1.141851],
        ),
        (
            "meant",
            "tensor",
            [1.952574, 1.5, 1.047426, 1.916827],
            [1.817574, 1.952574, 1.916827, 1.858149],
        ),
        (
            "executed",
            "token",
            [1.5, 1.047426, 1.002473, 1.354344],
            [1.182426, 1.5, 1.354344, 1.231475],
        ),
        (
            "executed",
            "tensor",
            [1.5, 1.047426, 1.002473, 1.354344],
            [1.182426, 1.5, 1.354344, 1.231475],
        ),
    ],
)
def test_the_divisor_by_hand(norm, scope, first: list[float], second: list[float]) -> None:
    found = divisor(PLAIN, CHANGE, norm, scope)
    torch.testing.assert_close(found, torch.tensor([first, second]), rtol=0, atol=2e-6)


def one_layer(norm: str, scope: str, plain: Tensor, change: Tensor) -> Tensor:
    """Return the output of a layer whose base computes `plain` and whose bias adds `change`."""
    base = nn.Linear(3, len(plain))
    base.weight.data.zero_()
    base.weight.data[0, 0] = 1.0
    model = nn.Sequential(base)
    chosen = {"rank": 1, "inner": 1, "norm": norm, "norm_scope": scope, "bias": True}
    layer = CabrLinear.rebuild(base, {**chosen, "merges": False, "gate_seed": None})
    base.bias.data.copy_(plain)
    layer.offset.data.copy_(change)
    replace(model, "0", layer)
    return model(torch.zeros(1, 3)).detach()[0]


@pytest.mark.parametrize("scope", ["token", "tensor"])
@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("off", [1.0, 3.0, -8.0, 0.55]),
        ("meant", [1.024289, 3.333333, -11.456658, 0.547780]),
        ("executed", [1.333333, 4.773607, -11.970402, 0.775283]),
    ],
)
def test_the_output_by_hand(norm: str, scope: str, expected: list[float]) -> None:
    found = one_layer(norm, scope, PLAIN[0], CHANGE[0])
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["meant", "executed"])
def test_an_unchanged_token_is_its_own_branch_in_both_forms(norm) -> None:
    change = CHANGE.clone()
    change[1] = 0.0
    per_token = divisor(PLAIN, change, norm, "token")
    assert torch.equal(per_token[1], torch.full((4,), 2.0))
    assert per_token[0, 0] < 1.96  # no change in a token that has one
    per_tensor = divisor(PLAIN, change, norm, "tensor")
    assert torch.all(per_tensor[1] < 1.96)
    assert torch.equal(divisor(PLAIN, 0 * change, norm, "tensor"), torch.full((2, 4), 2.0))


def test_the_divisor_has_no_gradient() -> None:
    change = CHANGE.clone().requires_grad_(True)
    assert not divisor(PLAIN, change, "meant", "token").requires_grad


# The layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_are_the_base_model_s_while_b_is_zero(layout: str, norm: str, dtype) -> None:
    model = toy_model(layout).to(dtype)
    expected = logits(model, IDS)
    gate = norm != "off"
    for scope in ("token", "tensor") if gate else ("token",):
        twin = copy.deepcopy(model)
        layers = begun(twin, small(norm=norm, norm_scope=scope, bias=True, decay_gate=gate))
        assert torch.equal(logits(twin, IDS), expected)
        assert torch.equal(logits(twin.train(), IDS), expected)
        trainables = {p.dtype for layer in layers.values() for p in layer.trainables().values()}
        assert trainables == {torch.float32}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layer_computes_the_published_formula(layout: str, norm: str) -> None:
    model = toy_model(layout).double()
    layers = begun(model, small(norm=norm))
    randomize(layers)
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for layer in layers.values():
        weight = read_weight(layer.base)
        if weight.shape[1] != 32:
            continue
        smallest_columns = weight.norm(dim=0).argsort()[: layer.rank]
        smallest_rows = weight.norm(dim=1).argsort()[: layer.rank]
        assert torch.equal(layer.column_index, smallest_columns)
        assert torch.equal(layer.row_index, smallest_rows)
        assert torch.equal(layer.up, weight[: layer.rank, : layer.up.shape[1]])
        change = weight[:, smallest_columns] @ layer.up @ layer.down @ weight[smallest_rows]
        plain = layer.base(x)
        moved = plain + x @ change.T
        ratio = ((moved - plain) / (plain + 1e-10)).abs()
        if norm == "off":
            expected = moved
        elif norm == "executed":
            expected = (plain + moved) / (2 - torch.sigmoid(6 * ratio))
        else:
            share = ratio / (ratio.max(-1, keepdim=True).values + 1e-10)
            expected = (plain + moved) / (2 - torch.sigmoid(6 * (share - 0.5)))
        torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-12)
        assert (layer(x) - plain).abs().max() > 1e-3


def test_an_off_core_is_cur_lora_with_u_of_a_b() -> None:
    model, twin = toy_model().double(), toy_model().double()
    layers = begun(model, small(norm="off"))
    randomize(layers)
    task = toy_context(twin)
    CurLora(rank=4, selection="smallest").begin_task(twin, task)
    for name, layer in adapted(twin).items():
        assert torch.equal(layer.columns, layers[name].columns)
        layer.core.data.copy_(layers[name].up @ layers[name].down)
    torch.testing.assert_close(logits(twin, IDS), logits(model, IDS), rtol=0, atol=1e-12)
    assert (logits(model, IDS) - logits(toy_model().double(), IDS)).abs().max() > 1e-2


def test_an_example_is_independent_of_its_batch_and_of_what_follows_per_token_only() -> None:
    for scope, norm in (("token", "meant"), ("tensor", "meant")):
        model = toy_model().double()
        randomize(begun(model, small(norm=norm, norm_scope=scope)))
        together = logits(model, IDS)
        alone = logits(model, IDS[:1])
        prefix = logits(model, IDS[:1, :5])
        apart = (together[:1] - alone).abs().max(), (alone[:, :5] - prefix).abs().max()
        if scope == "token":
            assert max(apart) < 1e-12
        else:
            assert min(apart) > 1e-4


def test_sizes_are_capped_per_matrix_and_recorded() -> None:
    strategy, model = Secura(), toy_model()
    layers = begun(model, strategy)
    sizes = {n.rpartition(".")[2]: (v.rank, v.up.shape[1]) for n, v in layers.items()}
    assert sizes["q_proj"] == (32, 32)
    assert sizes["k_proj"] == sizes["v_proj"] == (8, 32)
    assert sizes["gate_proj"] == (32, 32)
    assert sizes["down_proj"] == (32, 48)
    assert strategy.facts()["narrow"][Q.replace("q_", "v_")] == {"rank": 8, "inner": 32}
    assert all(
        sum(p.numel() for p in v.trainables().values()) == 2 * v.rank * v.up.shape[1]
        for v in layers.values()
    )


def test_the_gate_shrinks_random_outputs_while_training() -> None:
    model = toy_model().train()
    layer = begun(model, small(norm="executed", norm_scope="tensor", decay_gate=True))[Q]
    layer.offset = nn.Parameter(torch.full((32,), 1e3))  # every ratio is far above 0.231
    layer.has_offset = True
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    kept = layer.eval()(x)
    assert torch.equal(layer(x), kept)
    factors = [(layer.train()(x) / kept).detach() for _ in range(2)]
    for factor in factors:
        shrunk = (factor - 0.99).abs() < 1e-5
        assert torch.equal(shrunk.any(0).any(0), shrunk.all(0).all(0))
        assert int(shrunk[0, 0].sum()) == max((32 - 4) // 2, 32 // 4)
        torch.testing.assert_close(factor[~shrunk], torch.ones_like(factor[~shrunk]))
    assert not torch.equal(factors[0], factors[1])
    layer.offset.data.zero_()
    layer.down.data.zero_()
    assert torch.equal(layer(x), layer.base(x))  # all divisors are 2


# Merges


@pytest.mark.parametrize("norm", NORMS)
def test_merging_after_every_step_leaves_a_without_a_gradient(norm: str) -> None:
    strategy, model = small(merge_every=1, norm=norm), toy_model()
    layers = begun(model, strategy)
    start = {name: layer.up.detach().clone() for name, layer in layers.items()}
    before = layers[Q].weight.clone()
    assert trained(strategy, model, steps=4) == [False] * 4
    # Decay aside, nothing moves A either.
    for name, layer in layers.items():
        torch.testing.assert_close(layer.up, start[name] * (1 - 0.1 * 0.01) ** 4)
        assert not layer.down.any()
    assert not torch.equal(layers[Q].weight, before)


def test_merging_after_every_other_step_trains_a() -> None:
    strategy, model = small(merge_every=2), toy_model()
    layers = begun(model, strategy)
    weights = [layers[Q].weight.clone()]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    moved = []
    for index in range(4):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        moved.append(bool(layers[Q].up.grad.any()))
        optimizer.step()
        learned = layers[Q].change()
        strategy.after_step(model, Step(index, 4, 0.1))
        weights.append(layers[Q].weight.clone())
        if index % 2:
            torch.testing.assert_close(weights[-1] - weights[-2], learned, rtol=1e-4, atol=1e-6)
            assert not layers[Q].down.any()
        else:
            assert torch.equal(weights[-1], weights[-2])
            assert layers[Q].down.any()
    assert moved == [False, True, False, True]


def test_small_merges_vanish_in_bfloat16() -> None:
    """Statement of fact about the published procedure: the sum of the steps is not kept."""
    lost = []
    for dtype in (torch.float32, torch.bfloat16):
        strategy, model = small(merge_every=1, norm="off"), toy_model().to(dtype)
        layer = begun(model, strategy)[Q]
        meant = torch.zeros(32, 32)
        for _ in range(50):
            layer.down.data.fill_(2e-3)
            meant += layer.change()
            layer.merge()
        assert float(meant.norm() / layer.weight.float().norm()) > 1e-5
        lost.append(float((layer.delta().detach() - meant).norm() / meant.norm()))
    assert lost[0] < 0.01
    assert lost[1] > 0.9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_guards_see_merges_as_part_of_the_change(layout: str) -> None:
    strategy, model = small(merge_every=2, norm="off"), toy_model(layout).double()
    layers = begun(model, strategy)
    started = logits(model, IDS)
    weights = {name: read_weight(layer).clone() for name, layer in layers.items()}
    trained(strategy, model, steps=3)
    with without_delta(model), torch.no_grad():
        assert torch.equal(logits(model, IDS), started)
    changes = {name: read_weight(layer) - weights[name] for name, layer in layers.items()}
    for name, layer in layers.items():
        assert layer.delta().requires_grad
        torch.testing.assert_close(layer.delta(), changes[name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(layer.squared_norm(), changes[name].square().sum())
        layer.scale_delta(0.3)
        torch.testing.assert_close(layer.delta(), 0.3 * changes[name], rtol=1e-6, atol=1e-9)
        layer.shift(torch.ones_like(changes[name]))
        torch.testing.assert_close(layer.delta(), 0.3 * changes[name], rtol=1e-6, atol=1e-9)
        moved = weights[name] + 1 + 0.3 * changes[name]
        torch.testing.assert_close(read_weight(layer), moved, rtol=1e-6, atol=1e-9)


# What guards see of a carried layer


@pytest.mark.parametrize("norm", NORMS)
def test_a_carried_change_is_measured_from_the_start_of_its_task(norm: str) -> None:
    strategy, model = small(norm=norm, bias=True), toy_model()
    layers = begun(model, strategy)
    train_a_little(model, IDS, lr=0.1)
    model = strategy.end_task(model, toy_context(model))
    started = logits(model, IDS)
    begun(model, strategy, index=1)
    layer = layers[Q]
    before, ups, downs = layer.change(), layer.up.detach().clone(), layer.down.detach().clone()
    assert not layer.delta().any()
    train_a_little(model, IDS, lr=0.1)
    with without_delta(model), torch.no_grad():
        assert torch.equal(logits(model, IDS), started)
    start = layer.start()
    assert set(start) == {"up", "down", "offset"}
    assert torch.equal(start["up"], ups)
    assert torch.equal(start["down"], downs)
    expected = layer.change() - before
    torch.testing.assert_close(layer.delta(), expected, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(layer.squared_norm(), expected.square().sum(), rtol=1e-3, atol=0)
    offset = (layer.offset - layer.offset_start).detach()
    ups_now = layer.up.detach().clone()
    layer.scale_delta(0.5)
    torch.testing.assert_close(layer.delta(), 0.5 * expected, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(layer.offset - layer.offset_start, 0.5 * offset)
    assert torch.equal(layer.up, ups_now)


# What is kept


@pytest.mark.parametrize("norm", ["meant", "executed"])
def test_the_wrapper_is_kept_and_reloads_as_what_was_scored(norm: str, tmp_path: Path) -> None:
    strategy, model = small(norm=norm, bias=True, decay_gate=True), toy_model().bfloat16()
    checkpoints = Checkpoints(tmp_path, model)
    task = toy_context(model)
    model = strategy.begin_task(model, task)
    train_a_little(model, IDS, lr=0.1)
    before = logits(model.eval(), IDS)
    model = strategy.end_task(model, task)
    scored = logits(model, IDS)
    assert torch.equal(scored, before)
    checkpoints.save("1-fold", model, strategy)
    twin, base = small(norm=norm, bias=True, decay_gate=True), toy_model().bfloat16()
    again = Checkpoints(tmp_path, base).load("1-fold", base, twin)
    assert torch.equal(logits(again, IDS), scored)
    assert structure(again) == structure(model)
    assert twin.state() == strategy.state()
    follow = [train_a_little(m, IDS, lr=0.1) for m in (model, again)]
    assert follow[0] == follow[1]


def test_a_run_killed_between_training_and_fold_knows_what_was_merged(tmp_path: Path) -> None:
    strategy, model = small(merge_every=2, norm="off"), toy_model()
    checkpoints = Checkpoints(tmp_path, model)
    layers = begun(model, strategy)
    checkpoints.save("1-calibrate", model, strategy)
    trained(strategy, model, steps=3)
    checkpoints.save("1-train", model, strategy)
    for tag, moved in (("1-calibrate", False), ("1-train", True)):
        twin, base = small(merge_every=2, norm="off"), toy_model()
        again = Checkpoints(tmp_path, base).load(tag, base, twin)
        layer = adapted(again)[Q]
        assert bool(layer.delta().any()) == moved
        if moved:
            assert torch.equal(layer.delta(), layers[Q].delta())
        else:
            trained(twin, again, steps=3)
        task = toy_context(model)
        ends = [
            s.end_task(m, task)
            for s, m in ((twin, again), (copy.deepcopy(strategy), copy.deepcopy(model)))
        ]
        assert torch.equal(logits(ends[0], IDS), logits(ends[1], IDS))


@pytest.mark.parametrize("norm", NORMS)
def test_autocast_changes_nothing_before_training(norm: str) -> None:
    model = toy_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = logits(model, IDS)
    layers = begun(model, small(norm=norm))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(logits(model, IDS), expected)
        randomize(layers)
        model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(bool(p.grad.isfinite().all()) for _, p in named(model, "down"))


@pytest.mark.parametrize(
    ("fields", "keeps"),
    [
        ({"norm": "off", "merge_every": "task"}, True),
        ({"norm": "off", "merge_every": 3}, True),
        ({"norm": "meant", "merge_every": 1}, True),
        ({"norm": "meant", "merge_every": "task"}, False),
        ({"norm": "executed", "merge_every": 3}, False),
        ({"norm": "off", "merge_every": "task", "bias": True}, False),
        ({"norm": "executed", "merge_every": 1, "bias": True}, False),
    ],
)
def test_a_fold_keeps_the_function_where_nothing_but_a_weight_trained(fields, keeps: bool) -> None:
    strategy, model = small(**fields), toy_model()
    for index in range(2):
        task = toy_context(model, index=index)
        model = strategy.begin_task(model, task)
        trained(strategy, model, steps=4)
        before = logits(model.eval(), IDS)
        model = strategy.end_task(model, task)
        assert not adapted(model)
        apart = float((logits(model, IDS) - before).abs().max())
        assert apart < 1e-4 if keeps else apart > 1e-3, (index, apart)
    assert ("end_task_keeps_function" not in strategy.expected_failures()) == keeps
    merges = isinstance(fields["merge_every"], int)
    assert ("only_trainables_move" in strategy.expected_failures()) == merges


def test_a_folding_run_starts_every_task_from_the_same_c_a_and_r() -> None:
    fields = {"norm": "off", "merge_every": "task"}
    strategy, model = small(**fields), toy_model()
    first = {n: copy.deepcopy(layer) for n, layer in begun(model, strategy).items()}
    trained(strategy, model, steps=2)
    model = strategy.end_task(model, toy_context(model))
    buffer = io.BytesIO()
    torch.save(strategy.state(), buffer)
    buffer.seek(0)
    twin = small(**fields)
    twin.load_state(torch.load(buffer, weights_only=True))
    for name, layer in begun(model, twin, index=1).items():
        assert not torch.equal(layer.weight, first[name].weight)
        assert torch.equal(layer.columns, first[name].columns)
        assert torch.equal(layer.rows, first[name].rows)
        assert torch.equal(layer.up, first[name].up)
        assert not layer.down.any()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"norm": "meant"}, "divided by S-MagNorm"), ({"norm": "off", "bias": True}, "a bias of its")],
)
def test_what_is_no_weight_is_not_folded(fields, reason: str) -> None:
    model = toy_model()
    begun(model, small(**fields))
    with pytest.raises(UserError, match=f"q_proj cannot be folded into a weight: .*{reason}"):
        fold(model)
    assert len(adapted(model)) == 14
    plain = toy_model()
    begun(plain, small(norm="off"))
    assert not adapted(fold(plain))


@pytest.mark.parametrize("merge", [None, "task", 2])
def test_untrained_tasks_leave_bfloat16_weights_alone(merge) -> None:
    strategy, model = small(merge_every=merge), toy_model().bfloat16()
    names = toy_context(model).targets
    bits = {name: read_weight(model.get_submodule(name)).clone() for name in names}
    for index in range(3):
        task = toy_context(model, index=index)
        model = strategy.end_task(strategy.begin_task(model, task), task)
    for name, value in bits.items():
        held = read_weight(model.get_submodule(name))
        assert torch.equal(held.view(torch.int16), value.view(torch.int16)), name


# Labels and fields


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "secura(norm=meant, merge=none)"),
        ({"norm": "off", "merge_every": "task"}, "secura(norm=off, merge=task)"),
        (
            {
                "norm": "executed",
                "norm_scope": "tensor",
                "merge_every": 1,
                "bias": True,
                "decay_gate": True,
            },
            "secura(norm=executed, merge=1, norm_scope=tensor, bias=True, decay_gate=True)",
        ),
    ],
)
def test_the_label_carries_the_switches(fields, expected: str) -> None:
    assert label(Secura(**fields)) == expected


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rank": 0}, "rank 0 is not a positive integer"),
        ({"inner": 100}, "inner 100 is less than rank 150"),
        ({"inner": 200.0}, "inner 200.0 is not a positive integer"),
        ({"norm": "on"}, "norm 'on' is unknown; choices: off, meant, executed"),
        ({"norm_scope": "batch"}, "norm_scope 'batch' is unknown; choices: token, tensor"),
        ({"merge_every": 0}, "merge_every 0 is neither"),
        ({"merge_every": True}, "merge_every True is neither"),
        ({"merge_every": "step"}, "merge_every 'step' is neither"),
        ({"norm": "off", "decay_gate": True}, "decay_gate True is without meaning for norm='off'"),
        ({"norm": "off", "norm_scope": "tensor"}, "norm_scope 'tensor' is without meaning"),
        ({"inversion_offset": 0.001}, "inversion_offset 0.001 is without meaning"),
        ({"selection": "top"}, "selection 'top' is unknown"),
    ],
)
def test_bad_fields_are_refused_in_a_sentence(fields, sentence: str) -> None:
    with pytest.raises(UserError, match=f"secura: {sentence}"):
        Secura(**fields)
