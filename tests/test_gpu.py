"""The same command on a CUDA device: agreement with the CPU, precision, memory, and size."""

from __future__ import annotations

import gc

import pytest
import torch
import toy_runs
from transformers import LlamaConfig, LlamaForCausalLM

from clbench import experiment, preparation, training
from clbench.adapters import FactorLinear, adapted, find_targets
from clbench.calibration import calibrate
from clbench.config import EvalConfig, TrainConfig
from clbench.data import one_pass
from clbench.registry import build_strategy
from clbench.results import Record, read_items
from clbench.strategy import Example, TaskContext

pytestmark = pytest.mark.gpu

COVARIANCE_TOLERANCE = 1e-3  # relative, float32 sums in another order
SAME_OUTPUTS = 0.98  # share of items of the base row, float32


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy_runs.save_toy_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))


def test_the_base_row_agrees_with_the_cpu(model, tmp_path):
    outputs = {}
    for device in ("cpu", "cuda"):
        some = EvalConfig.of({"samples": 50, "rank_items": 10})
        config = toy_runs.toy_config(model, device=device, dtype="float32", eval=some)
        experiment.run(config, out=tmp_path / device)
        record = Record.load(tmp_path / device)
        outputs[device] = [
            (item["id"], item["output"])
            for e in record.matrix.evals
            for item in read_items(tmp_path / device, 0, e)
        ]
    same = sum(a == b for a, b in zip(outputs["cpu"], outputs["cuda"], strict=True))
    assert same >= SAME_OUTPUTS * len(outputs["cpu"])


def test_covariances_agree_with_the_cpu(model):
    sums = {}
    for device in ("cpu", "cuda"):
        plan = preparation.prepare(toy_runs.toy_config(model, device=device, dtype="float32"))
        base = plan.loaded.model
        windows = torch.randint(2, 200, (8, 64), generator=torch.Generator().manual_seed(0))
        found = calibrate(base, windows, find_targets(base), budget_bytes=2**30)
        sums[device] = {name: c.cpu() for name, c in found.covariances.items()}
    for name, expected in sums["cpu"].items():
        error = (sums["cuda"][name] - expected).norm() / expected.norm()
        assert error < COVARIANCE_TOLERANCE, name


def test_weights_are_bfloat16_and_factors_float32(model, tmp_path):
    plan = preparation.prepare(toy_runs.toy_config(model, device="cuda"))
    base = plan.loaded.model
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    context = toy_context(base, rows=8, length=32)
    lora = build_strategy("lora", {})
    lora.begin_task(base, context)
    layers = adapted(base)
    assert layers
    assert all(isinstance(layer, FactorLinear) for layer in layers.values())
    assert {layer.up.dtype for layer in layers.values()} == {torch.float32}
    assert {layer.up.device.type for layer in layers.values()} == {"cuda"}


def test_memory_is_freed_when_a_run_ends(model, tmp_path):
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    experiment.run(toy_runs.toy_config(model, device="cuda"), out=tmp_path / "run")
    gc.collect()
    assert torch.cuda.memory_allocated() - before < 2**20
    record = Record.load(tmp_path / "run")
    assert record.status == "complete"
    assert record.cost["peak_bytes.device.v1[train]"] > 0


def test_a_model_of_1b_shape_calibrates_trains_and_folds():
    """Random weights: memory and plumbing, not quality. About 12 GB on the device."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        base = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    torch.cuda.reset_peak_memory_stats()
    context = toy_context(base, rows=16, length=256)
    windows = torch.randint(0, 32_000, (64, 512), device="cuda")
    measured = calibrate(base, windows, context.targets, budget_bytes=2 * 2**30)
    context.covariances = {"world": measured.covariances}
    strategy = build_strategy("lora-null", {"lora-null": {"rank": 64}})
    probe = windows[:2, :64]
    with torch.no_grad():
        before = base(probe).logits
        adapted_model = strategy.begin_task(base, context)
        measured.close()
        assert torch.equal(adapted_model(probe).logits, before)
    log = training.train(
        adapted_model,
        strategy,
        context,
        context.examples(),
        TrainConfig.of({"steps": 4, "batch_size": 16, "micro_batch": 4, "lr": 1e-4}),
        pad_id=0,
        device=torch.device("cuda"),
        budget_tokens=4 * 16 * 256,
    )
    assert not log.diverged
    assert log.steps == 4
    folded = strategy.end_task(adapted_model, context)
    assert not adapted(folded)
    assert torch.cuda.max_memory_allocated() < 24 * 2**30


def toy_context(model, rows, length):
    """Return a context of random tokens with a loss on the second half of each row."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    ids = torch.randint(2, vocabulary, (rows, length), generator=generator).tolist()
    mask = (False,) * (length // 2) + (True,) * (length - length // 2)
    examples = [Example(tuple(row), mask, "toy", i) for i, row in enumerate(ids)]
    device = next(model.parameters()).device
    return TaskContext(
        name="toy",
        index=0,
        seed=0,
        examples=lambda: examples,
        batches=lambda: one_pass(examples, 4, 0, device),
        covariances={},
        targets=find_targets(model),
    )
