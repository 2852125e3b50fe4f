"""What the training loop costs over a bare PyTorch loop on the same batches, side by side.

Run `python benchmarks/overhead.py`; the two alternate in one process, so that whatever else the
machine does touches both. The ratio of the medians may be at most 1.05; on a CPU it is that of
processor time, to which other processes add little.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import sys
import time
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from clbench import adapters, models, registry
from clbench.config import TrainConfig
from clbench.data import collate, derived_seed, endless, num_tokens, one_pass
from clbench.errors import UserError
from clbench.strategy import Batch, Example, TaskContext
from clbench.training import train

VOCABULARY = 1024
LIMIT = 1.05


def make_examples(count: int) -> list[Example]:
    """Make examples of 40 to 89 random tokens, the last 20 to 39 of them the answer."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for index in range(count):
        length, answer = 40 + index % 50, 20 + index % 20
        ids = torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()
        mask = (False,) * (length - answer) + (True,) * answer
        examples.append(Example(tuple(ids), mask, "task", index))
    return examples


def load_model(name: str, device: torch.device) -> tuple[nn.Module, str]:
    """Return the model and where it is from; a random one of tiny's shape where it is absent."""
    try:
        return models.load(name, "float32", device).model, name
    except UserError as error:
        print(f"random weights: {error}", file=sys.stderr)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(device), "random"


def bare_loop(model: Any, batches: list[Batch], cfg: TrainConfig) -> None:
    """Train as a script would: the library's own loss, AdamW, cosine, clipping; no more."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for batch in batches:
        outputs = model(**batch.model_inputs(), labels=batch.labels, use_cache=False)
        outputs.loss.backward()
        nn.utils.clip_grad_norm_(parameters, cfg.clip or float("inf"))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Alternate both loops over the same batches and compare the medians of their times."""
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_flush_denormal(True)
    base, origin = load_model(options.model, device)
    examples = make_examples(options.batch_size * options.steps)
    strategy = registry.build_strategy(options.strategy, {})
    cfg = TrainConfig(lr=1e-4, batch_size=options.batch_size, epochs=1.0, autocast="off")
    task = TaskContext(
        name="task",
        index=0,
        seed=0,
        examples=lambda: examples,
        batches=lambda: one_pass(examples, options.batch_size, 0, device),
        covariances={},
        targets=adapters.find_targets(base),
    )
    model = strategy.begin_task(base, task)
    lists = endless(examples, options.batch_size, derived_seed("batches", 0, 0))
    batches = [collate(part, 0, device) for part in itertools.islice(lists, options.steps)]
    start = copy.deepcopy(model.state_dict())
    seconds: dict[str, list[float]] = {"bare": [], "clbench": []}
    wall: dict[str, list[float]] = {"bare": [], "clbench": []}
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for number in range(2 * (options.rounds + 1)):
        which = ("bare", "clbench")[(number + number // 2) % 2]  # either one goes first in turn
        model.load_state_dict(start)
        _wait(device)
        began, began_wall = clock(), time.perf_counter()
        if which == "bare":
            bare_loop(model, batches, cfg)
        else:
            budget = num_tokens(examples)
            train(
                model, strategy, task, examples, cfg, pad_id=0, device=device, budget_tokens=budget
            )
        _wait(device)
        if number >= 2:  # the first of each warms up
            seconds[which].append((clock() - began) / options.steps)
            wall[which].append((time.perf_counter() - began_wall) / options.steps)
    medians = {which: statistics.median(times) for which, times in seconds.items()}
    return {
        "model": origin,
        "strategy": options.strategy,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "steps": options.steps,
        "rounds": options.rounds,
        "ms_per_step": {which: round(1000 * value, 2) for which, value in medians.items()},
        "ratio": round(medians["clbench"] / medians["bare"], 4),
        "ratio_wall": round(
            statistics.median(wall["clbench"]) / statistics.median(wall["bare"]), 4
        ),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    """Print the comparison as JSON; return 1 when the loop costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--strategy", default="lora")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="per round")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    found = measure(options)
    print(json.dumps(found, indent=2))
    return 0 if found["ratio"] <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
