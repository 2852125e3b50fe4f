"""Agreement with PEFT's own PiSSA, MiCA, CorDA and DoRA, and with the papers' formulas."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from clbench_strategies.corda import Corda
from clbench_strategies.dora import Dora
from clbench_strategies.factors import FactorStrategy
from clbench_strategies.spectral import LoraNullZero, Mica, Milora, Pissa
from family import HELD_OUT, WINDOWS, measured_context
from torch import Tensor, nn
from toys import LAYOUTS, logits, toy_context, toy_model

from clbench.adapters import FactorLinear, adapted, find_targets, fold, read_weight
from clbench.calibration import calibrate

pytestmark = pytest.mark.filterwarnings(  # PEFT asks transformers by an old name
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
layouts = pytest.mark.parametrize("layout", LAYOUTS)
peft_layouts = pytest.mark.parametrize("layout", ["llama", "gemma", "gpt2"])


def attached(strategy: FactorStrategy, model: nn.Module, **options) -> dict[str, FactorLinear]:
    strategy.begin_task(model, measured_context(model, strategy, **options))
    return dict(adapted(model))  # type: ignore[arg-type]


def peft_config(layout: str, **options: Any) -> Any:
    from peft import LoraConfig

    modules = ["c_attn", "c_proj", "c_fc"] if layout == "gpt2" else LINEARS
    transposed = {"fan_in_fan_out": True} if layout == "gpt2" else {}
    return LoraConfig(r=4, lora_alpha=12, target_modules=modules, **transposed, **options)


def peft_model(model: nn.Module, config: Any) -> nn.Module:
    from peft import get_peft_model

    return get_peft_model(model, config).eval()


def peft_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return PEFT's adapter layers by the names that the layers had in the plain model."""
    found = {
        n: m for n, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "scaling")
    }
    return {name.removeprefix("base_model.model."): layer for name, layer in found.items()}


def both_factors(layer: Any) -> tuple[Tensor, Tensor]:
    """Return PEFT's (lora_B, lora_A)."""
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    return up.detach(), down.detach()


def check_factors(
    ours: FactorLinear, theirs: tuple[Tensor, Tensor], rtol: float, name: str
) -> None:
    """Assert equal products and, up to the sign of each pair, equal factors."""
    up, down = ours.up.detach(), ours.down.detach()
    order = [int((theirs[0].T @ column).abs().argmax()) for column in up.T]
    assert sorted(order) == list(range(len(order))), name
    signs = (theirs[0][:, order] * up).sum(0).sign()
    pairs = [
        (up @ down, theirs[0] @ theirs[1]),
        (up * signs, theirs[0][:, order]),
        (signs[:, None] * down, theirs[1][order]),
    ]
    for found, expected in pairs:
        assert float((found - expected).norm() / expected.norm()) < rtol, name


# PEFT


@peft_layouts
def test_pissa_is_that_of_peft(layout: str) -> None:
    theirs = peft_layers(
        peft_model(toy_model(layout), peft_config(layout, init_lora_weights="pissa"))
    )
    ours = attached(Pissa(rank=4, alpha=12.0), toy_model(layout))
    assert ours.keys() == theirs.keys()
    for name, layer in ours.items():
        check_factors(layer, both_factors(theirs[name]), 1e-4, name)


@peft_layouts
def test_mica_is_that_of_peft(layout: str) -> None:
    model = peft_model(toy_model(layout), peft_config(layout, init_lora_weights="mica"))
    theirs = peft_layers(model)
    ours = attached(Mica(rank=4, alpha=12.0), toy_model(layout))
    for name, layer in ours.items():
        up, down = both_factors(theirs[name])
        assert not down.any()
        assert not layer.down.any()
        difference = layer.up.detach() @ layer.up.detach().T - up @ up.T
        assert float(difference.norm()) < 1e-3, name
        assert layer.scale == theirs[name].scaling["default"] == 3.0  # type: ignore[index]
        trains = [n for n, p in theirs[name].named_parameters() if p.requires_grad]
        assert trains == ["lora_A.default.weight"]


@peft_layouts
@pytest.mark.parametrize("mode", ["kpm", "ipm"])
def test_corda_is_that_of_peft_on_the_same_covariances(
    mode: str, layout: str, tmp_path: Path
) -> None:
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    model = toy_model(layout, decaying=True)
    covariances = calibrate(
        model, WINDOWS["world"], find_targets(model), budget_bytes=2**20
    ).covariances
    given = {name: covariance.clone() for name, covariance in covariances.items()}
    torch.save(given, tmp_path / "covariances")
    settings = CordaConfig(covariance_file=str(tmp_path / "covariances"), corda_method=mode)
    config = peft_config(layout, init_lora_weights="corda", corda_config=settings)
    preprocess_corda(model, config)
    theirs = peft_layers(peft_model(model, config))
    for split in ("published", "balanced"):
        twin = toy_model(layout, decaying=True)
        strategy = Corda(rank=4, alpha=12.0, mode=mode, split=split)  # type: ignore[arg-type]
        strategy.begin_task(twin, toy_context(twin, {s: given for s in strategy.sources()}))
        for name, layer in adapted(twin).items():
            assert isinstance(layer, FactorLinear)
            up, down = both_factors(theirs[name])
            if split == "published":
                check_factors(layer, (up, down), 1e-3, name)
            else:
                difference = (layer.up @ layer.down - up @ down).detach()
                assert float(difference.norm() / (up @ down).norm()) < 1e-3, name


def test_published_window_scaling_is_that_of_peft() -> None:
    """The same sums from the same windows, whatever unit that gives them."""
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    model = toy_model(decaying=True)
    settings = CordaConfig(corda_method="kpm", prune_temporary_fields=False)
    config = peft_config("llama", init_lora_weights="corda", corda_config=settings)

    def run_model() -> None:
        for window in WINDOWS["world"]:
            model(input_ids=window[None])

    preprocess_corda(model, config, run_model=run_model)
    ours = calibrate(
        toy_model(decaying=True),
        WINDOWS["world"],
        find_targets(model),
        budget_bytes=2**20,
        window_scaling="published",
    ).covariances
    for name, covariance in ours.items():
        theirs = model.get_submodule(name).covariance_matrix
        torch.testing.assert_close(covariance, theirs, rtol=1e-4, atol=1e-5, msg=name)


@peft_layouts
def test_dora_is_that_of_peft(layout: str) -> None:
    """The same function, gradients and merged weight from the same parameters."""
    ours = toy_model(layout)
    Dora(rank=4, alpha=12.0).begin_task(ours, toy_context(ours))
    theirs = peft_model(toy_model(layout), peft_config(layout, use_dora=True))
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for name, layer in adapted(ours).items():
        other: Any = peft_layers(theirs)[name]
        twins = {
            "up": other.lora_B["default"].weight,
            "down": other.lora_A["default"].weight,
            "magnitude": other.lora_magnitude_vector["default"].weight,
        }
        start = layer.start()["magnitude"].flatten()
        torch.testing.assert_close(twins["magnitude"].detach(), start, rtol=1e-6, atol=0)
        for key, value in layer.trainables().items():
            noise = torch.randn(value.shape, generator=generator)
            value.data.add_(0.1 * noise * value.detach().std().clamp(min=0.1))
            twins[key].data.copy_(value.detach().reshape(twins[key].shape))
            pairs.append((value, twins[key]))
    torch.testing.assert_close(logits(ours, HELD_OUT), logits(theirs, HELD_OUT), rtol=0, atol=2e-6)
    for model in (ours, theirs):
        model(input_ids=HELD_OUT, labels=HELD_OUT).loss.backward()
    assert len(pairs) == 3 * len(adapted(ours))
    for value, twin in pairs:
        assert value.grad.any()
        error = value.grad.reshape(twin.shape) - twin.grad
        assert float(error.norm() / twin.grad.norm()) < 1e-4
    merged = theirs.merge_and_unload()  # type: ignore[operator]
    for name in find_targets(fold(ours)):
        theirs_here = read_weight(merged.get_submodule(name))
        found = read_weight(ours.get_submodule(name))
        torch.testing.assert_close(found, theirs_here, rtol=0, atol=1e-6, msg=name)


# The papers' formulas in float64


@layouts
def test_milora_starts_at_the_last_triples_of_a_full_svd(layout: str) -> None:
    """W_m = U_m S_m V_m^T, split into U_m sqrt(S_m) and sqrt(S_m) V_m^T, min(out, in) per layer."""
    model = toy_model(layout).double()
    for name, layer in attached(Milora(rank=4), copy.deepcopy(model)).items():
        left, values, right = torch.linalg.svd(read_weight(model.get_submodule(name)))
        num = len(values)
        part = slice(num - 4, num)
        root = values[part].sqrt()
        check_factors(layer, (left[:, part] * root, root[:, None] * right[part]), 1e-6, name)


@layouts
def test_the_zero_form_starts_at_the_last_vectors_of_the_svd_of_c(layout: str) -> None:
    model = toy_model(layout, decaying=True).double()
    strategy = LoraNullZero(rank=4)
    task = measured_context(model, strategy, accumulate="float64")
    given = {name: c.clone() for name, c in task.covariances["world"].items()}
    strategy.begin_task(model, task)
    for name, layer in adapted(model).items():
        null = torch.linalg.svd(given[name]).U[:, -4:]
        found = layer.down.detach()  # type: ignore[attr-defined]
        assert float((found.T @ found - null @ null.T).norm()) < 1e-5, name
