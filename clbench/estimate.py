"""What a run will need, before it starts: memory, disk and time, and a refusal where they lack."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from clbench import adapters
from clbench.composition import params_by_part
from clbench.config import RunConfig
from clbench.errors import UserError
from clbench.layers import weight_shape
from clbench.memory import check_memory, gigabytes
from clbench.model_files import locate
from clbench.models import causal_config, choose_dtype, num_parameters
from clbench.repositories import Repositories
from clbench.strategy import Strategy

# Shares of the measured rate of one large matrix product that the phases reach. Generation is
# bound by memory, one token per row at a time. Both are rough; the estimate says "about".
TRAINING_EFFICIENCY = 0.4
GENERATION_EFFICIENCY = 0.05


class Workload(NamedTuple):
    """How much a run does, over all its tasks."""

    num_tasks: int
    train_tokens: int
    eval_tokens: int = 0  # prompts and new tokens, over all rows and columns


class Estimate(NamedTuple):
    """What a run needs, roughly; sizes in bytes."""

    parameters: int
    trainable: int
    weights_bytes: int  # the model, and the base weights that resume compares with
    optimizer_bytes: int  # trained weights, their start, gradients and Adam's two moments
    activation_bytes: int  # of one micro-batch of the longest rows
    calibration_bytes: int  # covariances held at one time
    disk_bytes: int  # two rows of the weights that move; one is pruned
    seconds: float

    @property
    def memory_bytes(self) -> int:
        """Return the peak: the model, and the larger of training and calibration."""
        training = self.optimizer_bytes + self.activation_bytes
        return self.weights_bytes + max(training, self.calibration_bytes)

    def sentence(self) -> str:
        """Say it in one line."""
        return (
            f"about {duration(self.seconds)}, {gigabytes(self.memory_bytes)} of memory and "
            f"{gigabytes(self.disk_bytes)} of disk"
        )


def estimate(
    config: RunConfig,
    strategy: Strategy,
    device: torch.device,
    workload: Workload,
    repositories: Repositories | None = None,
) -> Estimate:
    """Estimate a run from its configuration; no weight is loaded. Raises UserError.

    `strategy` says by a hyperparameter called `rank` that it trains factors of the target
    layers; without one, all weights are taken to train, in float32.
    """
    model = empty_model(config.model, config.revision, repositories)
    targets = [model.get_submodule(name) for name in adapters.find_targets(model, config.targets)]
    widths = [weight_shape(layer) for layer in targets]  # (out, in)
    parameters = num_parameters(model)
    trainable = parameters
    rank = _rank(strategy)
    if rank is not None:
        trainable = sum(min(rank, *width) * sum(width) for width in widths)
    size = choose_dtype(config.dtype, device).itemsize
    moving = sum(math.prod(width) for width in widths) if rank is not None else parameters
    covariances = 4 * sum(num_inputs**2 for _, num_inputs in widths)
    asked = bool(strategy.calibration_sources())
    return Estimate(
        parameters=parameters,
        trainable=trainable,
        weights_bytes=(parameters + moving) * size,
        optimizer_bytes=trainable * 4 * 5,  # float32: value, start, gradient, two moments
        activation_bytes=activation_bytes(model, config, size),
        calibration_bytes=min(covariances, config.calibration.budget_bytes) if asked else 0,
        disk_bytes=2 * (moving * size + trainable * 4),
        seconds=_operations(config, workload, parameters, trainable, asked)
        / (TRAINING_EFFICIENCY * device_rate(device, choose_dtype(config.dtype, device))),
    )


def check(what: Estimate, device: torch.device, out: Path) -> None:
    """Raise UserError when the estimate exceeds the memory of the device or the disk of `out`."""
    check_memory("this run", what.memory_bytes, device)
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if what.disk_bytes > free:
        raise UserError(
            f"this run needs about {gigabytes(what.disk_bytes)} of disk under {str(out)!r}, and "
            f"{gigabytes(free)} are free"
        )


def empty_model(
    name: str, revision: str | None = None, repositories: Repositories | None = None
) -> nn.Module:
    """Return a model without storage, fetching only its description; raises UserError."""
    files = locate(name, revision, weights=False, repositories=repositories)
    config = causal_config(files)
    factory: Any = AutoModelForCausalLM  # untyped
    with torch.device("meta"):
        model: nn.Module = factory.from_config(config, dtype=torch.float32)
    return model


def activation_bytes(model: Any, config: RunConfig, size: int) -> int:
    """Return what a forward pass of a full micro-batch keeps for the backward pass.

    Counted per token of a block of the Llama kind: the norms keep their float32 inputs and
    outputs, attention its four projections, the feed-forward part four vectors of its width;
    then the logits and their gradient, and float32 copies where there is a label.
    """
    cfg, shape = config.train, model.config
    tokens = (cfg.micro_batch or cfg.batch_size) * cfg.max_length
    width = shape.hidden_size
    inner = getattr(shape, "intermediate_size", None) or 4 * width
    block = tokens * (size * (10 * width + 4 * inner) + 4 * 4 * width)
    logits = tokens * shape.vocab_size * (2 * size + 2 * 4)
    if cfg.gradient_checkpointing:
        return int(shape.num_hidden_layers * tokens * width * size + block + logits)
    return int(shape.num_hidden_layers * block + logits)


def device_rate(device: torch.device, dtype: torch.dtype, width: int | None = None) -> float:
    """Return the measured multiplications and additions per second of a large matrix product."""
    width = width or (768 if device.type == "cpu" else 8192)
    left = torch.ones(width, width, dtype=dtype, device=device)
    best = math.inf
    for _ in range(4):
        began = time.perf_counter()
        (left @ left)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * width**3 / best


def duration(seconds: float) -> str:
    """Return a length of time as a reader wants it, e.g. "3 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _rank(strategy: Strategy) -> int | None:
    ranks = [params["rank"] for params in params_by_part(strategy).values() if "rank" in params]
    return max(ranks) if ranks else None


def _operations(
    config: RunConfig, workload: Workload, parameters: int, trainable: int, calibrates: bool
) -> float:
    """Return the arithmetic of a run, in operations at the efficiency of training.

    Per token and weight 2 operations forward, 2 for the gradient of the activations, 2 for that
    of a weight that trains; 2 more where activations are computed again.
    """
    again = 2 if config.train.gradient_checkpointing else 0
    training = workload.train_tokens * ((4 + again) * parameters + 2 * trainable)
    windows = config.calibration.num_windows * (1 + config.calibration.held_out)
    calibration = workload.num_tasks * windows * config.calibration.window * 2 * parameters
    generation = workload.eval_tokens * 2 * parameters
    slower = TRAINING_EFFICIENCY / GENERATION_EFFICIENCY
    return training + (calibration if calibrates else 0) + slower * generation
