"""What calibrating and attaching lora-null costs beside the published procedures, in one run.

Run `python benchmarks/attach.py --width 1024` (or 2048; `--width 4096 --device cuda` for a 7B
shape). One decoder block of a Llama is calibrated and attached by clbench, by the procedure
published with LoRA-Null (two full SVDs per linear layer) and by PEFT's CorDA. Attaching starts
from covariances that have a gap, so that the subspaces can be compared. Ratios are of processor
time on a CPU, to which other processes add little, and of wall time on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import calib_cov_distribution, collect_eigens_for_layer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from clbench import registry
from clbench.adapters import adapted, find_targets, fold, read_weight
from clbench.calibration import calibrate, shared_inputs
from clbench.linalg import orthonormal, seeded_generator
from clbench.strategy import Strategy, TaskContext

VOCABULARY = 1024


class Seconds(NamedTuple):
    """How long one thing took."""

    wall: float
    processor: float


def timed(work: Callable[[], object], device: torch.device) -> Seconds:
    """Return what a call takes, the device's queue included."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    wall, processor = time.perf_counter(), time.process_time()
    work()
    wait()
    return Seconds(time.perf_counter() - wall, time.process_time() - processor)


def decoder_block(width: int, device: torch.device) -> LlamaForCausalLM:
    """Return a random Llama of one block whose MLP is 2.6875 times as wide, as Llama-2-7B's."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=round(2.6875 * width),
        num_hidden_layers=1,
        num_attention_heads=width // 64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(device).eval()


def covariance_with_gap(
    width: int, rank: int, gap: float, seed: int, device: torch.device
) -> Tensor:
    """Return a covariance (in, in) float32 over three decades, its last eigenvalues times gap."""
    basis = orthonormal(width, width, seeded_generator(seed)).to(device)
    values = torch.logspace(0, -3, width, dtype=torch.float64, device=device)
    values[-rank:] *= gap
    return ((basis * values) @ basis.T).float()


def attach_clbench(
    model: nn.Module, covariances: Mapping[str, Tensor], strategy: Strategy
) -> nn.Module:
    """Begin a task of lora-null on the layers that have a covariance."""
    sources = {"world": covariances}
    task = TaskContext("t", 0, 0, list, lambda: iter(()), sources, tuple(covariances))
    return strategy.begin_task(model, task)


def attach_published(
    model: nn.Module, covariances: Mapping[str, Tensor], rank: int
) -> dict[str, Tensor]:
    """Return the input sides of the published procedure: two full SVDs per layer, float32."""
    downs = {}
    for name, covariance in covariances.items():
        null = torch.linalg.svd(covariance).U[:, -rank:]
        product = read_weight(model.get_submodule(name)) @ null @ null.T
        _, values, right = torch.linalg.svd(product, full_matrices=False)
        downs[name] = values[:rank].sqrt()[:, None] * right[:rank]
    return downs


def attach_peft(model: nn.Module, covariances: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Decompose every layer as PEFT's CorDA does: an inverse and a full SVD of `W C`."""
    for name, covariance in covariances.items():
        layer = model.get_submodule(name)
        layer.covariance_matrix = covariance
        collect_eigens_for_layer(layer, config)
        del layer.covariance_matrix


def largest_angle(down: Tensor, other: Tensor) -> float:
    """Return the largest principal angle between two row spaces, in radians."""
    basis, against = (torch.linalg.qr(rows.double().T).Q for rows in (down, other))
    outside = basis - against @ (against.T @ basis)  # its norm is the sine: exact where small
    return float(torch.linalg.matrix_norm(outside, 2).clamp(max=1.0).asin())


def peft_settings(targets: tuple[str, ...]) -> LoraConfig:
    return LoraConfig(
        target_modules=list(targets),
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="kpm"),
    )


def measure_calibration(
    model: nn.Module, tokens: int, repeats: int, device: torch.device
) -> dict[str, list[Seconds]]:
    """Time both calibrations on the same windows of 512 random tokens, in turns."""
    targets = find_targets(model)
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(VOCABULARY, (tokens // 512, 512), generator=generator).to(device)
    config = peft_settings(targets)

    def ours() -> None:
        found = calibrate(model, windows, targets, budget_bytes=2**62).covariances
        for name in targets:
            found[name]

    def forward() -> None:
        for window in windows:
            model.model(input_ids=window[None], use_cache=False)

    def theirs() -> None:
        calib_cov_distribution(model, config, forward, None, None)
        for name in targets:
            del model.get_submodule(name).covariance_matrix

    found: dict[str, list[Seconds]] = {"clbench": [], "peft": []}
    for _ in range(repeats):
        found["clbench"].append(timed(ours, device))
        found["peft"].append(timed(theirs, device))
    return found


def measure_attaching(
    model: nn.Module, covariances: Mapping[str, Tensor], rank: int, device: torch.device
) -> tuple[dict[str, Seconds], float]:
    """Time the three procedures once; return also the largest angle between the subspaces."""
    config = peft_settings(tuple(covariances))
    strategy = registry.build_strategy("lora-null", {"lora-null": {"rank": rank}})
    downs: dict[str, Tensor] = {}
    seconds = {
        "published": timed(
            lambda: downs.update(attach_published(model, covariances, rank)), device
        ),
        "peft": timed(lambda: attach_peft(model, covariances, config), device),
        "clbench": timed(lambda: attach_clbench(model, covariances, strategy), device),
    }
    ours: Any = adapted(model)
    angle = max(largest_angle(ours[name].attached_down, downs[name]) for name in covariances)
    fold(model)
    return seconds, angle


def summary(runs: Mapping[str, list[Seconds]], device: torch.device) -> dict[str, Any]:
    """Return median seconds and how many times slower than clbench the others are."""
    place = "wall" if device.type == "cuda" else "processor"
    medians = {
        name: {key: statistics.median(getattr(run, key) for run in done) for key in Seconds._fields}
        for name, done in runs.items()
    }
    ratios = {name: m[place] / medians["clbench"][place] for name, m in medians.items()}
    return {"seconds": medians, f"{place} times clbench": ratios}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument(
        "--gap",
        type=float,
        default=0.1,
        help="factor below the last directions; 1 is no gap, and then the angle means nothing",
    )
    parser.add_argument("--tokens", type=int, help="default: 4 times the MLP's width")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    model = decoder_block(options.width, device)
    tokens = options.tokens or 4 * model.config.intermediate_size // 512 * 512
    result: dict[str, Any] = {"options": {k: str(v) for k, v in vars(options).items()}}
    result["calibrate"] = summary(
        measure_calibration(model, tokens, options.repeats, device), device
    )
    targets = find_targets(model)
    probe = torch.arange(8, device=device)[None]
    groups = shared_inputs(model, probe, targets)
    covariances: dict[str, Tensor] = {}
    for seed, group in enumerate(groups):
        num_in = read_weight(model.get_submodule(group[0])).shape[1]
        shared = covariance_with_gap(num_in, options.rank, options.gap, seed, device)
        covariances |= dict.fromkeys(group, shared)
    for what, names in (("attach, shared input", groups[0]), ("attach, block", targets)):
        chosen = {name: covariances[name] for name in names}
        runs: dict[str, list[Seconds]] = {"clbench": [], "published": [], "peft": []}
        angles = []
        for _ in range(options.repeats):
            seconds, angle = measure_attaching(model, chosen, options.rank, device)
            angles.append(angle)
            for name, done in seconds.items():
                runs[name].append(done)
        result[what] = summary(runs, device) | {"largest angle": max(angles)}
        print(json.dumps({what: result[what]}, indent=1), flush=True)
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
