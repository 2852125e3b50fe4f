"""Targets, attaching, folding and what guards are told, on four model layouts."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toys import LAYOUTS, logits, toy_model, toy_windows, train_a_little
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from clbench.adapters import (
    AdaptedLinear,
    FactorLinear,
    Form,
    Side,
    adapted,
    attach,
    find_targets,
    fold,
    freeze,
    fused_parameters,
    read_weight,
    rebuild,
    structure,
    weight_shape,
)
from clbench.errors import UserError

IDS = toy_windows(4, 12)
DTYPES = (torch.float32, torch.bfloat16)


def random_factors(num_out: int, num_in: int, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(num_out, rank, generator=generator) / num_out**0.5
    return up, torch.randn(rank, num_in, generator=generator) / num_in**0.5


def random_layer(base: nn.Module, *, rank: int = 3, scale: float = 2.0, **options) -> FactorLinear:
    num_out, num_in = weight_shape(base)
    return FactorLinear(base, *random_factors(num_out, num_in, rank), scale=scale, **options)


def linear(num_in: int, num_out: int, *, dtype: torch.dtype = torch.float32) -> nn.Linear:
    generator = torch.Generator().manual_seed(9)
    layer = nn.Linear(num_in, num_out, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(num_out, num_in, generator=generator))
        layer.bias.copy_(torch.randn(num_out, generator=generator))
    return layer


def attach_everywhere(model: nn.Module, *, rank: int = 3, seed: int = 0, **options) -> None:
    freeze(model)
    for number, name in enumerate(find_targets(model)):
        num_out, num_in = weight_shape(model.get_submodule(name))
        rank_here = min(rank, num_out, num_in)
        factors = random_factors(num_out, num_in, rank_here, seed=100 * seed + number)
        attach(model, name, *factors, scale=2.0, **options)


def perturb(layer: FactorLinear, size: float, *, seed: int = 5) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in layer.trainables().values():
            value.add_(size * torch.randn(value.shape, generator=generator, dtype=value.dtype))


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32)


# Targets


@pytest.mark.parametrize(
    ("layout", "kinds"),
    [
        ("llama", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("qwen2", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("gemma", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("gpt2", "c_attn c_proj c_fc c_proj"),
    ],
)
def test_targets_are_the_linears_of_the_blocks_in_model_order(layout: str, kinds: str) -> None:
    names = find_targets(toy_model(layout))
    assert [name.rpartition(".")[2] for name in names] == kinds.split() * 2


def test_a_pattern_picks_targets() -> None:
    names = find_targets(toy_model("llama"), "q_proj|v_proj")
    assert [name.rpartition(".")[2] for name in names] == ["q_proj", "v_proj"] * 2


@pytest.mark.parametrize(
    ("pattern", "says"), [("queries", "down_proj, gate_proj"), ("(", "regular expression")]
)
def test_a_useless_pattern_is_refused(pattern: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        find_targets(toy_model("llama"), pattern)


def test_targets_of_an_adapted_model_are_the_adapted_layers() -> None:
    model = toy_model("llama")
    names = find_targets(model)
    attach_everywhere(model)
    assert find_targets(model) == names


def test_a_shared_weight_is_refused() -> None:
    model = toy_model("llama")
    blocks = model.model.layers
    blocks[1].self_attn.q_proj.weight = blocks[0].self_attn.q_proj.weight
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj shares its weight"):
        find_targets(model)
    assert len(find_targets(model, "o_proj")) == 2


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantized_weight_is_refused(dtype: torch.dtype) -> None:
    model = toy_model("llama")
    layer = model.model.layers[1].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj holds quantized weights"):
        find_targets(model)


def test_a_model_that_transformers_quantized_is_refused() -> None:
    model = toy_model("llama")
    model.quantization_method = "gptq"
    with pytest.raises(UserError, match=r"quantized \(gptq\)"):
        find_targets(model)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="no decoder blocks"):
        find_targets(nn.Sequential(nn.Linear(4, 4)))


def test_fused_experts_are_no_targets_but_are_reported() -> None:
    config = MixtralConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    model = MixtralForCausalLM(config)
    assert {name.split(".")[3] for name in find_targets(model)} == {"self_attn"}
    fused = fused_parameters(model)
    assert fused
    assert all(".experts." in name for name in fused)
    assert fused_parameters(toy_model("llama")) == ()


# The same function at the start


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trains", ["both", "up", "down"])
def test_attaching_keeps_every_bit_of_the_logits(
    layout: str, dtype: torch.dtype, trains: Side
) -> None:
    model = toy_model(layout, decaying=True).to(dtype)
    before = logits(model, IDS)
    with torch.autocast("cpu", torch.bfloat16):
        before_autocast = logits(model, IDS)
    attach_everywhere(model, trains=trains)
    assert torch.equal(logits(model, IDS), before)
    assert torch.equal(logits(model.train(), IDS), before)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(model, IDS), before_autocast)
    for layer in adapted(model).values():
        assert {p.dtype for p in layer.trainables().values()} == {torch.float32}


def test_the_zero_form_adds_the_plain_product() -> None:
    base = linear(6, 5)
    up, down = random_factors(5, 6, 2)
    layer = FactorLinear(base, torch.zeros(5, 2), down, scale=3.0, form="zero")
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), base(x))
    with torch.no_grad():
        layer.up.copy_(up)
    torch.testing.assert_close(layer(x), base(x) + 3.0 * x @ down.T @ up.T)
    torch.testing.assert_close(layer.delta(), 3.0 * up @ down)


@pytest.mark.parametrize("trains", ["both", "up", "down"])
def test_it_computes_and_differentiates_what_the_residual_form_does(trains: Side) -> None:
    base = linear(6, 5, dtype=torch.float64)
    layer = random_layer(base, trains=trains)
    up, down = (f.detach().clone().requires_grad_() for f in (layer.up, layer.down))
    residual = base.weight - 2.0 * (up @ down).detach()
    ours = torch.optim.AdamW(list(layer.trainables().values()), lr=0.05, weight_decay=0.0)
    sides = {"up": up, "down": down}
    theirs = torch.optim.AdamW([sides[n] for n in layer.trainables()], lr=0.05, weight_decay=0.0)
    x = torch.randn(20, 7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for batch in x:
        for optimizer, y in (
            (ours, layer(batch)),
            (theirs, functional.linear(batch, residual + 2.0 * up @ down, base.bias)),
        ):
            optimizer.zero_grad()
            (y - 1.0).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(layer.up, up, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.down, down, rtol=0, atol=1e-12)
    assert float(layer.delta().detach().abs().max()) > 0.1


def test_small_changes_survive_bfloat16_autocast() -> None:
    """Subtracting two passes would round both to the same number and learn nothing."""
    base = linear(64, 64)
    layer = random_layer(base, rank=8, scale=1.0)
    perturb(layer, 1e-4)
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(2))
    expected = x.double() @ layer.delta().detach().double().T
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        left, right = layer.low_rank_delta()
        ours = functional.linear(functional.linear(x, right), left).double()
        passes = [
            functional.linear(functional.linear(x, down), up).double()
            for up, down in ((layer.up, layer.down), (layer.up0, layer.down0))
        ]
    assert float((ours - expected).norm() / expected.norm()) < 0.01
    assert float((passes[0] - passes[1] - expected).norm() / expected.norm()) > 1.0


# Training


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_factors_move_and_folding_keeps_the_function(layout: str) -> None:
    model = toy_model(layout, decaying=True)
    start = {id(p): p.detach().clone() for p in model.parameters()}
    untouched = list(model.parameters())
    before = logits(model, IDS)
    attach_everywhere(model)
    losses = [train_a_little(model, IDS, steps=1), train_a_little(model, IDS, steps=8)]
    assert losses[1] < losses[0]
    assert all(torch.equal(p, start[id(p)]) for p in untouched)
    trained = logits(model, IDS)
    assert float((trained - before).abs().max()) > 0.01
    names = list(dict(model.named_modules()))
    fold(model)
    assert not adapted(model)
    assert len(list(model.named_modules())) < len(names)
    assert not any(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(logits(model, IDS), trained, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("trains", "frozen"), [("up", "down"), ("down", "up")])
def test_a_frozen_factor_is_in_no_optimizer_and_stays(trains: Side, frozen: str) -> None:
    model = toy_model("llama", decaying=True)
    attach_everywhere(model, trains=trains)
    layers = adapted(model)
    before = {name: getattr(layer, frozen).detach().clone() for name, layer in layers.items()}
    train_a_little(model, IDS)
    for name, layer in layers.items():
        factor = getattr(layer, frozen)
        assert not factor.requires_grad
        assert factor.grad is None
        assert torch.equal(factor, before[name])
        assert list(layer.trainables()) == [trains]
        assert list(layer.start()) == [trains]


def test_every_column_of_a_narrow_layer_trains() -> None:
    model = toy_model("llama", decaying=True)  # k and v are 8 wide
    attach_everywhere(model, rank=24)
    layer = model.get_submodule("model.layers.0.self_attn.v_proj")
    assert layer.rank == 8
    train_a_little(model, IDS, steps=1)
    assert (layer.up.grad.norm(dim=0) > 0).all()
    assert (layer.down.grad.norm(dim=1) > 0).all()


# Folding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ten_tasks_without_training_leave_every_bit(layout: str, dtype: torch.dtype) -> None:
    model = toy_model(layout).to(dtype)
    for name in find_targets(model):  # a sum would turn -0.0 into 0.0
        model.get_submodule(name).weight.data[0, :3] = -0.0
    before = {name: bits(tensor).clone() for name, tensor in model.state_dict().items()}
    for seed in range(10):
        attach_everywhere(model, seed=seed)
        fold(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(bits(after[name]), before[name]) for name in before)


def test_the_fold_rounds_once_from_float32() -> None:
    model = toy_model("llama").to(torch.bfloat16)
    attach_everywhere(model)
    name = find_targets(model)[0]
    layer = model.get_submodule(name)
    weight = layer.weight.float()
    perturb(layer, 1e-3)
    up, down = layer.up.detach().double(), layer.down.detach().double()
    change = 2.0 * (up @ down - layer.up0.double() @ layer.down0.double())
    expected = (weight + change.float()).to(torch.bfloat16)
    fold(model)
    found = read_weight(model.get_submodule(name))
    assert not torch.equal(found, weight.bfloat16())
    assert float((found != expected).float().mean()) < 0.01  # but for ties of the last bit


def test_a_transposed_layer_equals_its_linear_twin() -> None:
    twin = linear(6, 5)
    conv = Conv1D(5, 6)
    conv.weight.data.copy_(twin.weight.T)
    conv.bias.data.copy_(twin.bias)
    assert weight_shape(conv) == weight_shape(twin) == (5, 6)
    assert torch.equal(read_weight(conv), read_weight(twin))
    layers = [random_layer(base) for base in (conv, twin)]
    for layer in layers:
        perturb(layer, 0.1)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layers[0](x), layers[1](x))
    assert torch.equal(layers[0].folded().T, layers[1].folded())
    torch.testing.assert_close(read_weight(layers[0]), twin.weight + layers[1].delta())
    assert weight_shape(layers[0]) == (5, 6)


# What guards are told


@pytest.mark.parametrize("trains", ["both", "up", "down"])
@pytest.mark.parametrize("size", [1e-6, 1e-1])
def test_the_change_and_its_norm_are_exact_near_the_start(trains: Side, size: float) -> None:
    layer = random_layer(linear(40, 30), rank=6, trains=trains)
    perturb(layer, size)
    up, down = layer.up.detach().double(), layer.down.detach().double()
    up0 = layer.up0.double() if layer.up0 is not None else up
    down0 = layer.down0.double() if layer.down0 is not None else down
    exact = 2.0 * (up @ down - up0 @ down0)
    assert float((layer.delta().detach() - exact).norm() / exact.norm()) < 1e-5
    norm = float(layer.squared_norm().detach())
    assert abs(norm / float(exact.square().sum()) - 1.0) < 1e-5
    assert float((layer.change() - exact).norm() / exact.norm()) < 1e-5


def test_the_norm_has_the_gradient_of_the_dense_one() -> None:
    layer = random_layer(linear(8, 7, dtype=torch.float64))
    perturb(layer, 0.1)
    factors = list(layer.trainables().values())
    ours = torch.autograd.grad(layer.squared_norm(), factors)
    dense = torch.autograd.grad(layer.delta().square().sum(), factors)
    for one, other in zip(ours, dense, strict=True):
        torch.testing.assert_close(one, other)
        assert float(one.abs().max()) > 0


def test_the_change_is_float32_under_autocast() -> None:
    layer = random_layer(linear(8, 7))
    perturb(layer, 0.1)
    plain, norm = layer.delta(), layer.squared_norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.delta(), plain)
        assert torch.equal(layer.squared_norm(), norm)


def test_starting_values_and_the_context_without_the_change() -> None:
    base = linear(8, 7)
    layer = random_layer(base)
    attached = {name: value.detach().clone() for name, value in layer.trainables().items()}
    perturb(layer, 0.1)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    with layer.without_delta():
        assert torch.equal(layer(x), base(x))
        with layer.without_delta():
            pass
        assert torch.equal(layer(x), base(x))
    assert not torch.equal(layer(x), base(x))
    assert {name: value.tolist() for name, value in layer.start().items()} == {
        name: value.tolist() for name, value in attached.items()
    }


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_scaling_the_change(alpha: float) -> None:
    base = linear(8, 7)
    layer = random_layer(base)
    perturb(layer, 0.1)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        change, moved = layer.delta(), layer(x) - base(x)
        layer.scale_delta(alpha)
        torch.testing.assert_close(layer.delta(), alpha * change)
        torch.testing.assert_close(layer.squared_norm(), (alpha * change).square().sum())
        torch.testing.assert_close(layer(x) - base(x), alpha * moved, rtol=0, atol=1e-5)
        torch.testing.assert_close(layer.folded(), base.weight + alpha * change)


@pytest.mark.parametrize("form", ["difference", "zero"])
def test_carried_factors_measure_from_the_start_of_the_task(form: Form) -> None:
    base = linear(8, 7)
    layer = random_layer(base, form=form, carry=True)
    if form == "zero":
        layer.up.data.zero_()
    perturb(layer, 0.1)
    layer.start_task()
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, y = layer.folded(), layer(x)
        assert float(layer.delta().abs().max()) == 0.0
        perturb(layer, 0.1, seed=6)
        torch.testing.assert_close(layer.delta(), layer.folded() - first, rtol=0, atol=1e-6)
        torch.testing.assert_close(layer.squared_norm(), layer.delta().square().sum())
        with layer.without_delta():
            torch.testing.assert_close(layer(x), y)
    assert set(layer.start()) == {"up", "down"}
    with pytest.raises(UserError, match="carry"):
        layer.scale_delta(0.5)


def test_the_change_is_a_plain_adapter_on_the_untouched_base() -> None:
    untouched = toy_model("llama", decaying=True)
    model = copy.deepcopy(untouched)
    attach_everywhere(model)
    train_a_little(model, IDS)
    trained = logits(model, IDS)
    for name, layer in adapted(model).items():
        up, down = (factor.detach() for factor in layer.low_rank_delta())
        assert up.shape[1] == 2 * layer.rank
        attach(untouched, name, up, down, scale=layer.scale, form="zero")
    torch.testing.assert_close(logits(untouched, IDS), trained, rtol=0, atol=1e-4)


# Checkpoints


def rebuilt(model: nn.Module, plain: PreTrainedModel) -> nn.Module:
    """Return a plain model with the structure and tensors of another one, through JSON."""
    recorded = json.loads(json.dumps(structure(model)))
    rebuild(plain, recorded).load_state_dict(model.state_dict(), strict=True)
    return plain


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("trains", ["both", "up", "down"])
def test_an_attached_model_is_rebuilt_from_json_and_tensors(layout: str, trains: Side) -> None:
    model = toy_model(layout, decaying=True)
    attach_everywhere(model, trains=trains)
    train_a_little(model, IDS)
    twin = rebuilt(model, toy_model(layout, seed=1))
    assert torch.equal(logits(twin, IDS), logits(model, IDS))
    for (name, layer), other in zip(adapted(model).items(), adapted(twin).values(), strict=True):
        assert list(layer.trainables()) == list(other.trainables()), name
        assert torch.equal(layer.delta(), other.delta())
    assert torch.equal(logits(fold(twin), IDS), logits(fold(model), IDS))


def test_carried_factors_are_rebuilt_with_their_start() -> None:
    model = toy_model("llama", decaying=True)
    attach_everywhere(model, carry=True)
    train_a_little(model, IDS)
    for layer in adapted(model).values():
        layer.start_task()
    train_a_little(model, IDS)
    twin = rebuilt(model, toy_model("llama", seed=1))
    for layer, other in zip(adapted(model).values(), adapted(twin).values(), strict=True):
        assert torch.equal(layer.delta(), other.delta())
        assert float(other.delta().detach().abs().max()) > 0


class Doubled(AdaptedLinear):
    """What a plugin may bring: the output times one trained number."""

    def __init__(self, base: nn.Module, factor: float) -> None:
        super().__init__(base)
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * self.factor

    def settings(self) -> dict[str, float]:
        return {"factor": 1.0}

    @classmethod
    def rebuild(cls, base: nn.Module, settings) -> Doubled:
        return cls(base, **settings)

    def change(self) -> Tensor:
        return (self.factor - 1.0) * self.base.weight


def test_a_layer_class_of_a_plugin_is_found_by_its_path() -> None:
    model = toy_model("llama")
    model.model.layers[0].mlp.up_proj = Doubled(model.model.layers[0].mlp.up_proj, 2.0)
    twin = rebuilt(model, toy_model("llama", seed=1))
    assert isinstance(twin.model.layers[0].mlp.up_proj, Doubled)
    assert torch.equal(logits(twin, IDS), logits(model, IDS))
    torch.testing.assert_close(logits(fold(twin), IDS), logits(model, IDS))


def test_a_layer_without_what_guards_need_says_so() -> None:
    layer = Doubled(nn.Linear(3, 3), 2.0)
    torch.testing.assert_close(layer.delta(), layer.base.weight)
    with pytest.raises(UserError, match="of type Doubled cannot scale its change"):
        layer.scale_delta(0.5)
    with pytest.raises(UserError, match="of type Doubled cannot be carried on"):
        layer.start_task()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("os:system", "not an adapter class"),
        ("torch.nn:Linear", "not an adapter class"),
        ("no_such_plugin:Layer", "not installed"),
        ("clbench.layers:Nothing", "not installed"),
    ],
)
def test_a_foreign_class_is_refused(path: str, says: str) -> None:
    entry = {"path": "model.layers.0.mlp.up_proj", "class": path, "settings": {}}
    with pytest.raises(UserError, match=says):
        rebuild(toy_model("llama"), [entry])


def test_a_structure_of_another_model_is_refused() -> None:
    model = toy_model("gpt2")
    attach_everywhere(model)
    with pytest.raises(UserError, match="no layer 'transformer"):
        rebuild(toy_model("llama"), structure(model))


def test_a_plain_model_has_no_structure() -> None:
    assert structure(toy_model("llama")) == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_cuda_attach_train_fold(dtype: torch.dtype) -> None:
    model = toy_model("llama", decaying=True).to("cuda", dtype)
    ids = IDS.cuda()
    before = logits(model, ids)
    attach_everywhere(model)
    assert torch.equal(logits(model, ids), before)
    with torch.autocast("cuda", torch.bfloat16):
        train_a_little(model, ids)
    trained = logits(model, ids)
    assert float((trained - before).abs().max()) > 0
    fold(model)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(logits(model, ids), trained, rtol=0, atol=tolerance)
