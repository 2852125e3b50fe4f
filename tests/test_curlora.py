"""cur-lora: which columns and rows are chosen, what they span, what is kept of them."""

from __future__ import annotations

import copy
import io
from collections import Counter
from pathlib import Path

import pytest
import torch
from clbench_strategies.cur import choose
from clbench_strategies.curlora import CurLinear, CurLora
from torch import Tensor, nn
from toys import LAYOUTS, logits, toy_context, toy_model, toy_windows, train_a_little

from clbench.adapters import adapted, find_targets, read_weight, rebuild, structure
from clbench.checkpoint import Checkpoints
from clbench.composition import label
from clbench.errors import UserError
from clbench.linalg import seeded_generator
from clbench.strategy import Strategy

IDS = toy_windows(6, 16)
# Squared norms of the columns 25, 0, 1, 4, 2; of the rows 3, 0, 29.
WEIGHT = torch.tensor(
    [[0.0, 0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 3.0**0.5, 1.0]]
)


def begun(model: nn.Module, strategy: CurLora | None = None, **options) -> dict[str, CurLinear]:
    """Begin a task and return its layers."""
    strategy = strategy or CurLora(rank=4)
    strategy.begin_task(model, toy_context(model, **options))
    return {n: layer for n, layer in adapted(model).items() if isinstance(layer, CurLinear)}


def randomize(layers: dict[str, CurLinear], seed: int = 0) -> None:
    """Give every U a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        layer.core.data.copy_(torch.randn(layer.core.shape, generator=generator))


def drawn(weight: Tensor, rank: int, selection: str, offset: float = 0.0, seed: int = 0):
    return choose(weight, rank, selection, offset, seeded_generator(seed))  # type: ignore[arg-type]


# Which columns and rows


def test_the_smallest_are_taken_in_order_and_zero_ones_never() -> None:
    chosen = drawn(WEIGHT, 2, "smallest")
    assert chosen.column_index.tolist() == [2, 4]
    assert chosen.row_index.tolist() == [0, 2]
    assert torch.equal(chosen.columns, WEIGHT[:, [2, 4]])
    assert torch.equal(chosen.rows, WEIGHT[[0, 2]])
    assert len(drawn(WEIGHT, 3, "smallest").column_index) == 2  # there are two rows but zero


@pytest.mark.parametrize("selection", ["inverse", "smallest", "uniform"])
def test_no_index_is_chosen_twice(selection: str) -> None:
    weight = torch.randn(40, 30, generator=seeded_generator(1)) * torch.logspace(0, -4, 30)
    weight[:, 7] = 0.0
    weight[11] = 0.0
    for seed in range(20):
        chosen = drawn(weight, 29, selection, seed=seed)
        assert sorted(chosen.column_index.tolist()) == [i for i in range(30) if i != 7]
        assert len(set(chosen.row_index.tolist())) == 29
        assert 11 not in chosen.row_index


def test_a_weight_of_zeros_has_nothing_to_choose() -> None:
    assert drawn(torch.zeros(3, 3), 2, "inverse") is None
    model = toy_model()
    model.get_submodule(find_targets(model)[3]).weight.data.zero_()
    with pytest.raises(UserError, match=r"o_proj has no column other than zero"):
        begun(model)


@pytest.mark.parametrize(
    ("selection", "offset", "odds"),
    [
        ("inverse", 0.0, [1 / 25, 1.0, 1 / 4, 1 / 2]),
        ("inverse", 1.0, [1 / 57, 1 / 33, 1 / 36, 1 / 34]),  # 1 / (n / 32 + 1), times 1 / 32
        ("uniform", 0.0, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_odds_of_a_draw(selection: str, offset: float, odds: list[float]) -> None:
    num = 1500
    found = Counter(
        int(drawn(WEIGHT, 1, selection, offset, seed=seed).column_index) for seed in range(num)
    )
    assert set(found) == {0, 2, 3, 4}
    expected = [num * odd / sum(odds) for odd in odds]
    seen = [found[column] for column in (0, 2, 3, 4)]
    assert sum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True)) < 16.3  # p = .001


def test_the_released_offset_flattens_the_odds() -> None:
    """1024 columns whose squared norms spread 3 : 1: odds of 1.66 instead of 3."""
    weight = torch.ones(1, 1024)
    weight[:, :512] = 3.0**0.5
    for offset, odds in ((0.0, 3.0), (0.001, 1.66)):
        firsts = [
            int(drawn(weight, 1, "inverse", offset, seed=seed).column_index) for seed in range(700)
        ]
        share = sum(index >= 512 for index in firsts) / len(firsts)
        assert share == pytest.approx(odds / (1 + odds), abs=0.04)


def test_draws_are_of_the_seed_and_the_layer() -> None:
    def indices(seed: int, global_seed: int = 0) -> dict[str, list[int]]:
        torch.manual_seed(global_seed)
        found = begun(toy_model(), seed=seed)
        return {name: layer.column_index.tolist() for name, layer in found.items()}

    first = indices(0)
    assert first == indices(0, global_seed=1)
    assert all(first[name] != found for name, found in indices(1).items())
    same = [n for n in first if n.endswith(("q_proj", "o_proj", "gate_proj", "up_proj"))]
    assert len({tuple(first[name]) for name in same}) == len(same) == 8


# What the layer computes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_model_computes_with_w_plus_c_u_r(layout: str) -> None:
    model = toy_model(layout).double()
    plain = copy.deepcopy(model)
    layers = begun(model)
    assert torch.equal(logits(model, IDS), logits(plain, IDS))
    randomize(layers)
    for name, layer in layers.items():
        module = plain.get_submodule(name)
        weight = read_weight(module)
        columns, rows = layer.column_index.tolist(), layer.row_index.tolist()
        change = weight[:, columns] @ layer.core.detach() @ weight[rows]
        module.weight.data += change.T if layout == "gpt2" else change
        torch.testing.assert_close(layer.change(), change, rtol=1e-12, atol=1e-14)
    assert float((logits(model, IDS) - logits(plain, IDS)).abs().max()) < 1e-10
    assert float((logits(toy_model(layout).double(), IDS) - logits(plain, IDS)).abs().max()) > 1e-4
    task = toy_context(model)
    folded = CurLora(rank=4, between_tasks="fold").end_task(model, task)
    assert not adapted(folded)
    assert float((logits(folded, IDS) - logits(plain, IDS)).abs().max()) < 1e-10


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_u_trains(layout: str) -> None:
    model = toy_model(layout)
    layers = begun(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains == {f"{name}.core" for name in layers}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 16 * len(layers)
    first = train_a_little(model, IDS, steps=1)
    assert train_a_little(model, IDS, steps=5, lr=0.1) < first
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in trains), name


def test_narrow_layers_get_a_smaller_rank_and_say_so() -> None:
    strategy, model = CurLora(rank=16), toy_model()
    layers = begun(model, strategy)
    ranks = {name: layer.rank for name, layer in layers.items()}
    narrow = {name for name in layers if name.endswith(("k_proj", "v_proj"))}
    assert {name for name, rank in ranks.items() if rank == 8} == narrow
    assert {rank for name, rank in ranks.items() if name not in narrow} == {16}
    assert strategy.facts() == {"narrow": {name: {"rank": 8} for name in narrow}}
    wide = CurLora(rank=4)
    begun(toy_model(), wide)
    assert wide.facts() == {}


def test_a_bfloat16_model_keeps_its_bits_until_it_trains() -> None:
    for strategy in (CurLora(rank=4), CurLora(rank=4, between_tasks="fold")):
        model = toy_model().bfloat16()
        expected = logits(model, IDS)
        targets = find_targets(model)
        bits = {name: read_weight(model.get_submodule(name)).clone() for name in targets}
        for index in range(3):
            task = toy_context(model, index=index)
            model = strategy.begin_task(model, task)
            assert torch.equal(logits(model, IDS), expected)
            assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
            model = strategy.end_task(model, task)
        for name, value in bits.items():
            held = read_weight(model.get_submodule(name))
            assert torch.equal(held.view(torch.int16), value.view(torch.int16)), name


# Between tasks


def sgd(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=2000.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()


def test_folding_and_carrying_are_the_same_function() -> None:
    """Fresh U between the columns and rows of the *base* model reach what a carried U does."""
    ends = []
    for between in ("carry", "fold"):
        strategy = CurLora(rank=4, between_tasks=between)  # type: ignore[arg-type]
        model = toy_model().double()
        for index in range(2):
            task = toy_context(model, index=index)
            model = strategy.begin_task(model, task)
            sgd(model, steps=2)
            model = strategy.end_task(model, task)
        ends.append(logits(model, IDS))
    assert float((ends[0] - logits(toy_model().double(), IDS)).abs().max()) > 1e-2
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-10)


def test_another_object_goes_on_with_the_columns_of_the_base_model() -> None:
    strategy, model = CurLora(rank=4, between_tasks="fold"), toy_model()
    assert strategy.state() == {}
    first = begun(model, strategy)
    values = {name: (layer.columns.clone(), layer.rows.clone()) for name, layer in first.items()}
    sgd(model, steps=2)
    model = strategy.end_task(model, toy_context(model))
    buffer = io.BytesIO()
    torch.save(strategy.state(), buffer)
    buffer.seek(0)
    twin = CurLora(rank=4, between_tasks="fold")
    twin.load_state(torch.load(buffer, weights_only=True))
    second = begun(model, twin, index=1)
    for name, (columns, rows) in values.items():
        assert torch.equal(second[name].columns, columns)
        assert torch.equal(second[name].rows, rows)
        assert not second[name].core.any()
        moved = read_weight(second[name])[:, second[name].column_index]
        assert not torch.equal(moved, columns)  # the weight itself has moved meanwhile


def test_columns_and_rows_reload_without_the_weight_they_came_from() -> None:
    model = toy_model()
    layers = begun(model)
    randomize(layers)
    x = torch.randn(5, 32, generator=seeded_generator(0))
    other = rebuild(toy_model(seed=1), structure(model))
    held = {n: t for n, t in model.state_dict().items() if ".base." not in n}
    other.load_state_dict(held, strict=False)
    for name, layer in adapted(other).items():
        assert isinstance(layer, CurLinear)
        assert torch.equal(layer.column_index, layers[name].column_index)
        torch.testing.assert_close(layer.change(), layers[name].change())
    name = "model.layers.0.self_attn.q_proj"
    change = layers[name](x) - layers[name].base(x)
    again = other.get_submodule(name)
    torch.testing.assert_close(again(x) - again.base(x), change, rtol=1e-4, atol=1e-6)


def test_an_interrupted_run_goes_on_with_the_same_model(tmp_path: Path) -> None:
    strategy, model = CurLora(rank=4), toy_model()
    checkpoints = Checkpoints(tmp_path, model)
    begun(model, strategy)
    train_a_little(model, IDS)
    checkpoints.save("1-train", model, strategy)
    twin, base = CurLora(rank=4), toy_model()
    again = Checkpoints(tmp_path, base).load("1-train", base, twin)
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    begun(again, twin, index=1)
    begun(model, strategy, index=1)
    assert train_a_little(again, IDS) == train_a_little(model, IDS)
    assert twin.state() == strategy.state()


# What guards see


def test_guards_see_the_change_of_this_task_alone() -> None:
    model = toy_model()
    layers = begun(model)
    randomize(layers)
    started = logits(model, IDS)
    begun(model, index=1)
    name, layer = next(iter(layers.items()))
    assert not layer.delta().any()
    assert torch.equal(layer.start()["core"], layer.core)
    train_a_little(model, IDS, lr=0.3)
    moved = layer.core.detach() - layer.start()["core"]
    expected = layer.columns @ moved @ layer.rows
    torch.testing.assert_close(layer.delta(), expected)
    torch.testing.assert_close(layer.squared_norm(), expected.square().sum())
    layer.squared_norm().backward()
    assert layer.core.grad is not None
    assert layer.core.grad.any(), name
    with torch.no_grad():
        for each in layers.values():
            each._without = True
        assert torch.equal(logits(model, IDS), started)
        for each in layers.values():
            each._without = False
    layer.scale_delta(0.25)
    torch.testing.assert_close(layer.delta(), 0.25 * expected)
    weight = layer.weight.clone()
    layer.shift(torch.ones_like(expected))
    torch.testing.assert_close(layer.weight, weight + 1)
    torch.testing.assert_close(layer.delta(), 0.25 * expected)


def test_the_label_says_how_columns_are_chosen() -> None:
    strategies: list[Strategy] = [
        CurLora(),
        CurLora(selection="smallest", between_tasks="fold"),
    ]
    assert [label(strategy) for strategy in strategies] == [
        "cur-lora(selection=inverse)",
        "cur-lora(selection=smallest, between_tasks=fold)",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0),
        ("rank", True),
        ("selection", "largest"),
        ("inversion_offset", -1.0),
        ("inversion_offset", float("nan")),
        ("between_tasks", "keep"),
    ],
)
def test_bad_fields_are_refused_in_a_sentence(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"cur-lora: {field} {value!r} is"):
        CurLora(**{field: value})  # type: ignore[arg-type]
