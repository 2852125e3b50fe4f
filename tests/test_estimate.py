"""What a run will need: sizes that follow from shapes, and refusals before anything is loaded."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from clbench import estimate, memory
from clbench.config import CalibrationConfig, RunConfig, TrainConfig
from clbench.data import collate
from clbench.errors import UserError
from clbench.estimate import Estimate, Workload, activation_bytes, check, duration
from clbench.strategy import Example, Strategy
from clbench.training import answer_loss

CPU = torch.device("cpu")
WIDTH, INNER, LAYERS, VOCABULARY = 64, 176, 2, 256
BLOCK_LINEARS = 4 * WIDTH * WIDTH + 3 * WIDTH * INNER


def llama_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
    )


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Write a description only: no weight exists."""
    llama_config().save_pretrained(tmp_path)
    return tmp_path


@dataclass
class Factors(Strategy):
    """Trains factors."""

    rank: int = 4


@dataclass
class CalibratedFactors(Factors):
    """Trains factors chosen from covariances."""

    def calibration_sources(self) -> frozenset[str]:
        return frozenset({"world"})


def run_config(model: Path, **train: Any) -> RunConfig:
    cfg = TrainConfig(**{"batch_size": 4, "max_length": 64, "steps": 10, **train})
    calibration = CalibrationConfig(num_windows=10, window=100, held_out=0.0)
    return RunConfig(stream="s", strategy="t", model=str(model), train=cfg, calibration=calibration)


def of(config: RunConfig, strategy: Strategy, **work: int) -> Estimate:
    defaults = {"num_tasks": 3, "train_tokens": 10_000}
    return estimate.estimate(config, strategy, CPU, Workload(**{**defaults, **work}))


def test_sizes_follow_from_shapes(directory: Path) -> None:
    norms = (2 * LAYERS + 1) * WIDTH
    parameters = VOCABULARY * WIDTH + LAYERS * BLOCK_LINEARS + norms
    factors = of(run_config(directory), Factors())
    assert factors.parameters == parameters
    assert factors.trainable == LAYERS * 4 * (4 * 2 * WIDTH + 3 * (WIDTH + INNER))
    assert factors.weights_bytes == 4 * (parameters + LAYERS * BLOCK_LINEARS)
    assert factors.optimizer_bytes == 20 * factors.trainable
    assert factors.calibration_bytes == 0
    full = of(run_config(directory), Strategy())
    assert full.trainable == parameters
    assert full.memory_bytes > factors.memory_bytes


def test_calibration_is_bounded_by_its_budget(directory: Path) -> None:
    config = run_config(directory)
    covariances = 4 * LAYERS * (6 * WIDTH**2 + INNER**2)
    assert of(config, CalibratedFactors()).calibration_bytes == covariances
    small = config.calibration.model_copy(update={"budget_bytes": 1000})
    config = config.model_copy(update={"calibration": small})
    assert of(config, CalibratedFactors()).calibration_bytes == 1000


def test_time_grows_with_the_work(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "device_rate", lambda device, dtype: 1e9)
    config = run_config(directory)
    once, twice = of(config, Factors()), of(config, Factors(), train_tokens=20_000)
    assert twice.seconds == pytest.approx(2 * once.seconds)
    assert once.seconds == pytest.approx(
        10_000 * (4 * once.parameters + 2 * once.trainable) / (0.4 * 1e9)
    )
    calibrated = of(config, CalibratedFactors())
    assert calibrated.seconds > once.seconds
    assert of(config, Factors(), eval_tokens=1000).seconds > once.seconds
    recomputed = of(run_config(directory, gradient_checkpointing=True), Factors())
    assert recomputed.seconds > once.seconds
    assert recomputed.activation_bytes < once.activation_bytes


def test_activations_are_near_what_a_forward_pass_keeps(directory: Path) -> None:
    config = run_config(directory)
    model = LlamaForCausalLM(llama_config()).train()
    mask = (False,) + (True,) * 63
    example = Example(tuple(range(1, 65)), mask, "toy", 0)
    batch = collate([example] * 4, 0, CPU)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        answer_loss(model(**batch.model_inputs(), use_cache=False).logits, batch.labels)
    found = activation_bytes(model, config, size=4)
    assert sum(kept.values()) < found < 2.5 * sum(kept.values())


def test_what_does_not_fit_is_refused(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = of(run_config(directory), Factors())
    check(needed, CPU, tmp_path / "runs" / "new")
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(needed.disk_bytes - 1))
    with pytest.raises(UserError, match=r"of disk under '.*new', and .* are free"):
        check(needed, CPU, tmp_path / "runs" / "new")
    monkeypatch.setattr(memory, "available_memory", lambda device: needed.memory_bytes - 1)
    with pytest.raises(UserError, match=r"this run needs about .* of memory on cpu"):
        check(needed, CPU, tmp_path)


def test_other_layouts_are_estimated(tmp_path: Path) -> None:
    GPT2Config(
        vocab_size=50,
        n_positions=32,
        n_embd=8,
        n_layer=2,
        n_head=2,
        architectures=["GPT2LMHeadModel"],
    ).save_pretrained(tmp_path)
    found = of(run_config(tmp_path), Factors(rank=2))
    per_block = 2 * ((8 + 24) + (8 + 8) + (8 + 32) + (32 + 8))
    assert found.trainable == 2 * per_block
    assert found.memory_bytes > found.weights_bytes > 4 * found.parameters


def test_the_device_is_measured() -> None:
    assert 1e7 < estimate.device_rate(CPU, torch.float32, width=128) < 1e14


def test_readable_words(directory: Path) -> None:
    assert [duration(s) for s in (12.3, 200, 7200)] == ["12 s", "3 min", "2.0 h"]
    sentence = of(run_config(directory), Factors()).sentence()
    assert "of memory and" in sentence
