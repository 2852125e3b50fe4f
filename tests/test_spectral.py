"""Every start of the spectral family: what it keeps, what trains, which directions it takes."""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack
from dataclasses import replace as changed
from itertools import cycle, pairwise

import pytest
import torch
from clbench_strategies import corda
from clbench_strategies.corda import Corda, ScLora, damp_covariance
from clbench_strategies.factors import FactorStrategy
from clbench_strategies.spectral import (
    LoraNullZero,
    Mica,
    Middle,
    Milora,
    Pissa,
    RandomDown,
    RandomNull,
    RandomSlice,
)
from family import FACTORS, FAMILY, HELD_OUT, NEW, WINDOWS, measured_context
from guard_toys import fit, make_examples
from torch import Tensor, nn
from toys import LAYOUTS, logits, toy_context, toy_model, train_a_little
from transformers.pytorch_utils import Conv1D

from clbench.adapters import (
    FactorLinear,
    adapted,
    fold,
    is_transposed,
    read_weight,
    rebuild,
    structure,
)
from clbench.calibration import held_out_energy
from clbench.errors import UserError
from clbench.strategy import Step

TRAIN = WINDOWS["task"][:6]
every = pytest.mark.parametrize("strategy", FAMILY.values(), ids=FAMILY)
every_new = pytest.mark.parametrize("strategy", NEW.values(), ids=NEW)
every_factor = pytest.mark.parametrize("strategy", FACTORS.values(), ids=FACTORS)


def begun(strategy: FactorStrategy, model: nn.Module, **options) -> dict[str, FactorLinear]:
    """Begin a task and return the factor layers."""
    model = strategy.begin_task(model, measured_context(model, strategy, **options))
    return dict(adapted(model))  # type: ignore[arg-type]


def products(strategy: FactorStrategy, model: nn.Module, **options) -> dict[str, Tensor]:
    layers = begun(strategy, model, **options)
    return {name: (v.scale * v.up @ v.down).detach() for name, v in layers.items()}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: read_weight(layer).clone() for name, layer in adapted(model).items()}


# What every start has in common


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pair
        for name, layout in zip(NEW, cycle(LAYOUTS[1:]), strict=False)
        for pair in ((name, "llama"), (name, layout))
    ],
)
def test_a_task_from_end_to_end(name: str, layout: str) -> None:
    strategy, model = copy.deepcopy(NEW[name]), toy_model(layout, decaying=True)
    untouched = copy.deepcopy(model)
    before = logits(model, HELD_OUT)
    task = measured_context(model, strategy)
    model = strategy.begin_task(model, task)
    assert set(task.trained) == set(task.targets)
    assert torch.equal(logits(model, HELD_OUT), before)
    assert torch.equal(logits(model.train(), HELD_OUT), before)  # no dropout on the input side
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    losses = [train_a_little(model, TRAIN, steps=1), train_a_little(model, TRAIN, steps=3)]
    assert losses[1] < losses[0]
    assert all(torch.equal(model.get_parameter(n), value) for n, value in frozen.items())
    trained = logits(model.eval(), HELD_OUT)
    assert float((trained - before).abs().max()) > 1e-4
    with ExitStack() as off:
        for layer in task.trained.values():
            off.enter_context(layer.without_delta())
        assert torch.equal(logits(model, HELD_OUT), before)
    model = strategy.end_task(model, task)
    torch.testing.assert_close(logits(model, HELD_OUT), trained, rtol=0, atol=1e-5)
    kept = {f"{target}.weight" for target in task.targets}
    for path, parameter in untouched.named_parameters():
        assert torch.equal(model.get_parameter(path), parameter) == (path not in kept), path


@every_new
def test_ten_tasks_without_a_gradient_leave_every_bit(strategy: FactorStrategy) -> None:
    """Nothing but a gradient may move a weight: no rounding in the fold, no hidden decay."""
    strategy, model = copy.deepcopy(strategy), toy_model(decaying=True).bfloat16()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    task = measured_context(model, strategy, targets="k_proj|o_proj|up_proj")
    for index in range(10):
        task.index = index
        model = strategy.begin_task(model, task)
        strategy.after_step(model, Step(0, 1, lr=1.0))
        model = strategy.end_task(model, task)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.view(torch.int16), before[name].view(torch.int16)), name


@every_new
def test_zero_gradients_move_no_weight_under_the_optimizer_of_the_driver(
    strategy: FactorStrategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decay in AdamW would shrink the pretrained part that these factors hold."""
    strategy, model = copy.deepcopy(strategy), toy_model(decaying=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    task = measured_context(model, strategy, targets="k_proj|o_proj|up_proj")
    task.examples = lambda: make_examples(8)
    model = strategy.begin_task(model, task)

    def silence(model: nn.Module, step: Step) -> None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(strategy, "before_step", silence)
    assert fit(model, strategy, task, steps=5, lr=1.0).steps == 5
    model = strategy.end_task(model, task)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@every_new
def test_the_seed_alone_decides(strategy: FactorStrategy) -> None:
    results = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)  # none of the strategy's draws may come from here
        model = toy_model(decaying=True)
        model = strategy.begin_task(model, measured_context(model, strategy, targets="q_proj"))
        train_a_little(model, TRAIN, steps=1)
        results.append({n: p.detach() for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@every_factor
def test_alpha_changes_the_scale_and_not_the_start(strategy: FactorStrategy) -> None:
    plain = products(strategy, toy_model(decaying=True))
    model = toy_model(decaying=True)
    before = logits(model, HELD_OUT)
    found = products(changed(strategy, alpha=32.0), model)
    assert torch.equal(logits(model, HELD_OUT), before)
    assert {layer.scale for layer in adapted(model).values()} == {8.0}  # type: ignore[attr-defined]
    for name, product in found.items():
        torch.testing.assert_close(product, plain[name], rtol=0, atol=1e-6)


@every
def test_a_narrow_output_has_its_rank_no_dead_column_and_reloads(strategy: FactorStrategy) -> None:
    model = toy_model(decaying=True)
    base = copy.deepcopy(model)
    task = measured_context(model, strategy, targets="k_proj|q_proj|down_proj")
    model = changed(strategy, rank=48).begin_task(model, task)
    recorded = json.loads(json.dumps(structure(model)))
    ranks = {entry["path"].rpartition(".")[2]: entry["settings"]["rank"] for entry in recorded}
    assert ranks == {"q_proj": 32, "k_proj": 8, "down_proj": 32}
    starts = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    train_a_little(model, TRAIN)
    for name, start in starts.items():
        moved = (model.get_parameter(name).detach() - start) != 0
        along_rank = 1 if name.endswith(".down") else 0
        assert moved.any(along_rank).all(), name
    rebuild(base, recorded).load_state_dict(model.state_dict())
    assert torch.equal(logits(base, HELD_OUT), logits(model, HELD_OUT))


class Block(nn.Module):
    """One linear layer inside a block list, stored either way."""

    def __init__(self, weight: Tensor, *, transposed: bool = False) -> None:
        super().__init__()
        num_out, num_in = weight.shape
        if transposed:
            layer: nn.Module = Conv1D(num_out, num_in)
            layer.weight = nn.Parameter(weight.T.contiguous())
        else:
            layer = nn.Linear(num_in, num_out, bias=False, dtype=weight.dtype)
            layer.weight = nn.Parameter(weight.clone())
        self.blocks = nn.ModuleList([layer])


def block_factors(
    strategy: FactorStrategy, weight: Tensor, *covariances: Tensor, transposed: bool = False
) -> FactorLinear:
    """Return the layer that a strategy makes of one weight."""
    model = Block(weight, transposed=transposed)
    sources = sorted(strategy.calibration_sources(), key=["task", "world"].index)
    given = {s: {"blocks.0": c} for s, c in zip(sources, covariances, strict=False)}
    strategy.begin_task(model, toy_context(model, given))
    (layer,) = adapted(model).values()
    assert is_transposed(layer) == transposed
    return layer  # type: ignore[return-value]


def random_problem(num_out: int, num_in: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight and two covariances, float64."""
    generator = torch.Generator().manual_seed(num_out * num_in)
    x = torch.randn(2, 300, num_in, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(0, -1, num_in, dtype=torch.float64)
    weight = torch.randn(num_out, num_in, generator=generator, dtype=torch.float64)
    return weight, *(x.mT @ x / 300)


@every
@pytest.mark.parametrize(("num_out", "num_in"), [(12, 20), (20, 12)])
def test_a_transposed_layer_gets_the_same_start(
    strategy: FactorStrategy, num_out: int, num_in: int
) -> None:
    weight, *covariances = random_problem(num_out, num_in)
    plain = block_factors(strategy, weight.float(), *covariances)
    twin = block_factors(strategy, weight.float(), *covariances, transposed=True)
    assert torch.equal(plain.up, twin.up)
    assert torch.equal(plain.down, twin.down)


@pytest.mark.parametrize("name", ["lora-null-zero", "corda", "corda ipm", "sc-lora"])
def test_each_task_uses_the_covariances_of_its_own_model(name: str) -> None:
    """On one instance, in the first task and in the second."""
    strategy = copy.deepcopy(FAMILY[name])
    here, elsewhere = toy_model(decaying=True), toy_model(seed=1, decaying=True)
    foreign = measured_context(elsewhere, strategy).covariances
    for index in range(2):
        own = begun(strategy, copy.deepcopy(here), index=index)
        model = copy.deepcopy(here)
        strategy.begin_task(model, toy_context(model, foreign, index=index))
        for layer_name, layer in adapted(model).items():
            down = layer.down.detach()
            assert (down - own[layer_name].down).norm() > 0.05 * down.norm(), layer_name


@pytest.mark.parametrize("name", ["lora-null-zero", "corda", "corda ipm", "sc-lora"])
def test_missing_covariances_raise(name: str) -> None:
    strategy, model = FAMILY[name], toy_model()
    given = measured_context(model, strategy).covariances
    for source in strategy.calibration_sources():
        partial = {s: c for s, c in given.items() if s != source}
        with pytest.raises(UserError, match=f"needs the '{source}' covariance of model.layers.0"):
            strategy.begin_task(model, toy_context(model, partial))
    assert not adapted(model)


def test_only_lora_has_a_decay_toward_zero() -> None:
    """It would shrink the pretrained weight that the other starts hold."""
    decaying = [name for name, strategy in FAMILY.items() if hasattr(strategy, "weight_decay")]
    assert decaying == ["lora"]


@pytest.mark.parametrize(
    ("kind", "field", "value", "says"),
    [
        (Middle, "start_fraction", 1.5, "middle: start_fraction 1.5 is not a number from 0 to 1"),
        (Middle, "start_fraction", float("nan"), "start_fraction nan is not"),
        (ScLora, "beta", True, "sc-lora: beta True is not a number from 0 to 1"),
        (Corda, "mode", "KPM", "corda: mode 'KPM' is unknown; choices: kpm, ipm"),
        (Corda, "split", "even", "corda: split 'even' is unknown; choices: balanced, published"),
        (LoraNullZero, "trains", "down", "trains 'down' is unknown; choices: both, up"),
        (RandomDown, "rank", 0, "random-down: rank 0 is not"),
        (Pissa, "alpha", float("inf"), "pissa: alpha inf is not a positive number"),
    ],
)
def test_bad_fields_are_refused_in_a_sentence(
    kind: type[FactorStrategy], field: str, value: object, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        kind(**{field: value})  # type: ignore[arg-type]


# Slices of the weight


def kept_indices(strategy: FactorStrategy) -> list[int]:
    """Return which diagonal entries of diag(5 .. 1) the starting product holds."""
    layer = block_factors(strategy, torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])))
    product = (layer.scale * layer.up @ layer.down).detach()
    kept = (product.diagonal() > 1e-6).nonzero().flatten().tolist()
    expected = torch.diag(torch.tensor([5.0 - i if i in kept else 0.0 for i in range(5)]))
    torch.testing.assert_close(product, expected, rtol=0, atol=1e-5)
    return kept


def test_slices_of_a_diagonal_are_exact() -> None:
    found = [kept_indices(kind(rank=2)) for kind in (Pissa, Milora, Middle)]
    assert found == [[0, 1], [3, 4], [2, 3]]  # floor(3 / 2 + 1/2) = 2
    fractions = [kept_indices(Middle(rank=2, start_fraction=f)) for f in (0.0, 0.25, 0.75, 1.0)]
    assert fractions == [[0, 1], [1, 2], [2, 3], [3, 4]]


@pytest.mark.parametrize(("fraction", "kind"), [(0.0, Pissa), (1.0, Milora)])
def test_the_ends_of_middle_are_pissa_and_milora(
    fraction: float, kind: type[FactorStrategy]
) -> None:
    middle = begun(Middle(rank=4, start_fraction=fraction), toy_model("gpt2"))
    end = begun(kind(rank=4), toy_model("gpt2"))
    assert middle.keys() == end.keys()
    for name, layer in middle.items():
        assert torch.equal(layer.up, end[name].up)
        assert torch.equal(layer.down, end[name].down)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_start_shrinks_from_pissa_to_milora(layout: str) -> None:
    starts = [products(kind(rank=4), toy_model(layout)) for kind in (Pissa, Middle, Milora)]
    for larger, smaller in pairwise(starts):
        assert all(larger[name].norm() > smaller[name].norm() for name in larger)


def test_a_random_slice_holds_distinct_triples_of_its_own_weight() -> None:
    drawn = set()
    for seed in range(4):
        model = toy_model()
        found = products(RandomSlice(rank=4), model, seed=seed)
        for name, product in found.items():
            values = torch.linalg.svdvals(read_weight(model.get_submodule(name)))
            kept = torch.linalg.svdvals(product)[:4]
            nearest = (kept[:, None] - values).abs().min(1)
            assert float(nearest.values.max()) < 1e-5
            picked = tuple(nearest.indices.tolist())
            assert len(set(picked)) == 4
            drawn.add(picked)
    assert len(drawn) > 50  # of 56: another draw per weight and per seed


def test_mica_trains_down_behind_the_last_left_directions() -> None:
    layers = begun(Mica(rank=4), toy_model(decaying=True))
    for name, layer in layers.items():
        assert list(layer.trainables()) == ["down"]
        assert not layer.down.any()
        left = torch.linalg.svd(read_weight(layer).double(), full_matrices=False).U[:, -4:]
        overlap = torch.linalg.svdvals(left.T @ layer.up.detach().double())
        torch.testing.assert_close(overlap, torch.ones_like(overlap), rtol=0, atol=1e-5, msg=name)


# Directions of the inputs


def energy(strategy: FactorStrategy, model: nn.Module) -> list[float]:
    begun(strategy, model)
    return [e["energy"] / e["random"] for e in held_out_energy(model, HELD_OUT).values()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_null_space_of_the_zero_form_is_on_the_input_side(layout: str) -> None:
    assert max(energy(LoraNullZero(rank=4), toy_model(layout, decaying=True))) < 0.1


@pytest.mark.parametrize("kind", [RandomNull, RandomDown])
def test_random_directions_let_their_share_through(kind: type[FactorStrategy]) -> None:
    found = [e for s in range(4) for e in energy(kind(rank=4), toy_model(seed=s, decaying=True))]
    assert sum(found) / len(found) == pytest.approx(1.0, abs=0.3)


def test_the_zero_form_has_orthonormal_rows_and_the_best_ones_where_it_is_narrow() -> None:
    layers = begun(LoraNullZero(rank=12), toy_model(decaying=True))
    block = "model.layers.0.self_attn"
    narrow, wide = layers[f"{block}.k_proj"], layers[f"{block}.q_proj"]
    assert (narrow.rank, wide.rank) == (8, 12)
    torch.testing.assert_close(wide.down @ wide.down.T, torch.eye(12), rtol=0, atol=1e-5)
    assert torch.equal(narrow.down, wide.down[-8:])  # the eight smallest of the same input
    assert not wide.up.any()


def test_which_side_trains() -> None:
    sides = {name: FAMILY[name].trained_side() for name in NEW}
    assert {name for name, side in sides.items() if side == "up"} == {
        "lora-null-zero up",
        "random-down",
    }
    assert {name for name, side in sides.items() if side == "down"} == {"mica"}


# Weight and inputs together


@pytest.mark.parametrize(("num_out", "num_in"), [(12, 20), (16, 16), (20, 12)])
@pytest.mark.parametrize("mode", ["kpm", "ipm"])
def test_corda_projects_on_left_vectors_of_weight_times_covariance(
    mode: str, num_out: int, num_in: int
) -> None:
    weight, covariance, _ = random_problem(num_out, num_in)
    fixed = covariance + 0.01 * covariance.diagonal().mean() * torch.eye(num_in).double()
    left, values, right = torch.linalg.svd(weight @ fixed, full_matrices=False)
    part = slice(-4, None) if mode == "kpm" else slice(4)
    left, values, right = left[:, part], values[part], right[part]
    for split in ("balanced", "published"):
        strategy = Corda(rank=4, mode=mode, split=split)  # type: ignore[arg-type]
        layer = block_factors(strategy, weight, covariance)
        up, down = layer.up.detach(), layer.down.detach()
        torch.testing.assert_close(up @ down, left @ left.T @ weight, rtol=0, atol=2e-6)
        if split == "balanced":
            torch.testing.assert_close(up.norm(), down.norm(), rtol=1e-6, atol=0)
        else:
            rows = values.sqrt()[:, None] * right @ fixed.inverse()
            torch.testing.assert_close(up.norm(dim=0).sort().values, values.sqrt().sort().values)
            torch.testing.assert_close(down.norm(), rows.norm(), rtol=1e-5, atol=0)
        assert strategy.damps_ == [0.01]


def test_corda_preserves_knowledge_unless_told_otherwise() -> None:
    assert Corda().mode == "kpm"
    assert Corda().calibration_sources() == {"world"}
    assert Corda(mode="ipm").calibration_sources() == {"task"}
    weight, covariance, _ = random_problem(16, 16)
    kept, previewed = (
        block_factors(Corda(rank=4, mode=m), weight, covariance)  # type: ignore[arg-type]
        for m in ("kpm", "ipm")
    )
    assert (kept.up @ kept.down).norm() < (previewed.up @ previewed.down).norm() / 2


@pytest.mark.parametrize(("split", "ratio"), [("balanced", 1.0), ("published", 10.0)])
def test_the_unit_of_the_covariance_matters_to_the_published_split_alone(
    split: str, ratio: float
) -> None:
    weight, covariance, _ = random_problem(12, 20)
    strategy = Corda(rank=4, split=split)  # type: ignore[arg-type]
    one, other = (block_factors(strategy, weight, a * covariance) for a in (1.0, 100.0))
    torch.testing.assert_close(other.up, ratio * one.up, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other.down, one.down / ratio, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_damping_doubles_until_the_inverse_is_good(
    monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    vector = torch.linspace(1, 2, 64, dtype=torch.float64)
    covariance = scale * vector[:, None] * vector  # rank one
    given = covariance.clone()
    assert damp_covariance(covariance).damp == 0.01
    monkeypatch.setattr(corda, "LARGEST_INVERSION_ERROR", 2e-4)
    damped, damp = damp_covariance(covariance)
    assert damp in (0.02, 0.04, 0.08, 0.16)
    mean = given.diagonal().mean()
    torch.testing.assert_close(damped, given + damp * mean * torch.eye(64).double())
    assert torch.equal(covariance, given)  # others read it too


def test_corda_damps_once_per_shared_input_and_tells() -> None:
    strategy = Corda(rank=4)
    begun(strategy, toy_model(decaying=True))
    assert json.loads(json.dumps(strategy.facts())) == {"damps": [0.01] * 8}
    begun(strategy, toy_model("gpt2", decaying=True), index=1)
    assert len(strategy.facts()["damps"]) == 8
    resumed = Corda(rank=4)
    resumed.load_state(strategy.state())
    assert resumed.facts() == strategy.facts()


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.8, 1.0])
def test_sc_lora_weighs_the_outputs_of_task_and_world(beta: float) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    task, world = torch.randn(2, 400, 20, generator=generator, dtype=torch.float64)
    moments = [y.T @ y / 400 for y in (task @ weight.T, world @ weight.T)]  # of outputs
    values, vectors = torch.linalg.eigh((1 - beta) * moments[0] - beta * moments[1])
    basis = vectors[:, values.argsort(descending=True)[:4]]
    inputs = [x.T @ x / 400 for x in (task, world)]
    layer = block_factors(ScLora(rank=4, alpha=16.0, beta=beta), weight, *inputs)
    up, down = layer.up.detach(), layer.down.detach()
    torch.testing.assert_close(4.0 * up @ down, basis @ basis.T @ weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(up.T @ up, torch.eye(4).double() / 4, rtol=0, atol=1e-6)


def test_the_input_side_of_a_difference_start_folds_exactly() -> None:
    """A change of one side alone is what the fold adds."""
    model = toy_model(decaying=True)
    layers = begun(ScLora(rank=4), model, targets="q_proj")
    before = weights(model)
    (name, layer), *_ = layers.items()
    with torch.no_grad():
        layer.up.add_(0.1)
    start = layer.start()
    expected = before[name] + (layer.up - start["up"]) @ layer.down
    fold(model)
    found = read_weight(model.get_submodule(name))
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-6)
