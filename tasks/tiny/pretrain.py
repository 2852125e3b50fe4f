"""Pre-train tiny from nothing: `python -m clbench_tasks.tiny.pretrain --out DIR`.

Seeded; started again after an interruption it goes on from the last checkpoint in DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .corpus import documents
from .glossary import glossary
from .muon import Muon
from .vocabulary import END, PAD, SIZE, train_tokenizer

CHECKPOINT = "checkpoint.safetensors"
SAMPLE = 40_000  # documents the tokenizer learns from
PART = 50_000  # documents made at once, each part from a seed of its own
STAGES = (3, 5)  # the parts at which the mix changes


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the code and the machine."""

    steps: int = 4200
    batch: int = 16
    window: int = 128
    lr: float = 0.02  # of the matrices, by Muon
    vector_lr: float = 3e-3  # of embeddings and norms, by Adam
    cooldown: float = 0.25  # share of the steps in which the rate falls to zero
    warmup: int = 100
    decay: float = 0.05
    clip: float = 1.0
    seed: int = 0
    width: int = 256
    inner: int = 512
    layers: int = 4
    heads: int = 4

    @property
    def rows(self) -> int:
        """Count the windows that training sees."""
        return self.steps * self.batch


def make_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train the tokenizer on other documents, with more of the words that tasks will use."""
    rng = Random(f"tokenizer/{recipe.seed}")
    texts = [text for _, text in documents(recipe.seed + 1, SAMPLE)]
    return train_tokenizer([*texts, *(glossary(rng) for _ in range(SAMPLE // 10))])


def make_model(recipe: Recipe) -> LlamaForCausalLM:
    """Build the untrained model."""
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config)


def pack(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast
) -> tuple[np.ndarray[Any, np.dtype[np.int16]], dict[str, int]]:
    """Make the whole token stream, (rows, window + 1); each row begins with a document.

    Prompts are answered without a begin-of-text token, so documents must be met at position 0.
    Returns the rows and the number of tokens of each kind of document.
    """
    length = recipe.window + 1
    rows = np.full((recipe.rows, length), tokenizer.convert_tokens_to_ids(PAD), dtype=np.int16)
    end = tokenizer.convert_tokens_to_ids(END)
    counts: Counter[str] = Counter()
    row, filled, part = 0, 0, 0
    while row < recipe.rows:
        stage = sum(part >= first for first in STAGES)
        batch = list(documents(recipe.seed + 2 + part, PART, stage))
        part += 1
        encoded = tokenizer([text for _, text in batch], add_special_tokens=False)["input_ids"]
        for (kind, _), ids in zip(batch, encoded, strict=True):
            kept = [*ids, end][: length - filled]
            rows[row, filled : filled + len(kept)] = kept
            filled += len(kept)
            counts[kind] += len(kept)
            if filled == length:
                row, filled = row + 1, 0
                if row == recipe.rows:
                    break
    return rows, dict(counts)


def rate(recipe: Recipe, step: int) -> float:
    """Return the share of the learning rates in a step: linear warm-up, constant, linear to 0."""
    up = (step + 1) / recipe.warmup
    down = (recipe.steps - step) / (recipe.cooldown * recipe.steps)
    return min(1.0, up, down)


def check_same(recipe: Recipe, other: dict[str, Any], start: int) -> None:
    """Refuse a checkpoint of another recipe; only the end may move, before any cool-down began."""
    began = min(recipe.steps, other["steps"]) * (1 - recipe.cooldown) < start
    if {**asdict(recipe), "steps": 0} != {**other, "steps": 0} or (
        began and recipe.steps != other["steps"]
    ):
        raise SystemExit(f"the folder holds a checkpoint of another recipe: {other}")


class Optimizers:
    """Muon for the matrices, Adam for embeddings and norms; states by parameter name."""

    def __init__(self, model: LlamaForCausalLM, recipe: Recipe) -> None:
        """Sort the parameters of `model`."""
        self.recipe = recipe
        self.named = dict(model.named_parameters())
        matrices = {n: p for n, p in self.named.items() if p.dim() > 1 and "embed" not in n}
        self.muon = Muon(matrices.values())
        others = [p for name, p in self.named.items() if name not in matrices]
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(self, share: float) -> None:
        """Clip, step with this share of the learning rates, and clear the gradients."""
        torch.nn.utils.clip_grad_norm_(self.named.values(), self.recipe.clip)
        self.adam.param_groups[0]["lr"] = self.recipe.vector_lr * share
        self.adam.step()
        self.muon.step(self.recipe.lr * share, self.recipe.decay)
        for parameter in self.named.values():
            parameter.grad = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return weights and moments under names that `load` understands."""
        found = {f"weight.{name}": p.detach() for name, p in self.named.items()}
        for name, parameter in self.named.items():
            if parameter in self.muon.buffers:
                found[f"momentum.{name}"] = self.muon.buffers[parameter]
            for key, value in self.adam.state.get(parameter, {}).items():
                found[f"{key}.{name}"] = value
        return found

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `tensors` returned."""
        for name, parameter in self.named.items():
            parameter.data.copy_(tensors[f"weight.{name}"])
            if parameter in self.muon.buffers:
                self.muon.buffers[parameter].copy_(tensors[f"momentum.{name}"])
            else:
                keys = ("step", "exp_avg", "exp_avg_sq")
                self.adam.state[parameter] = {key: tensors[f"{key}.{name}"] for key in keys}


def save_checkpoint(out: Path, optimizers: Optimizers, log: dict[str, Any]) -> None:
    """Write weights, moments and log to one file that is replaced whole."""
    part = out / f"{CHECKPOINT}.part"
    save_file(optimizers.tensors(), part, metadata={"log": json.dumps(log)})
    os.replace(part, out / CHECKPOINT)


def load_checkpoint(out: Path, optimizers: Optimizers, device: str) -> dict[str, Any] | None:
    """Restore what `save_checkpoint` wrote and return its log; None if there is nothing."""
    if not (out / CHECKPOINT).exists():
        return None
    with safe_open(out / CHECKPOINT, framework="pt", device=device) as file:
        optimizers.load({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        log: dict[str, Any] = json.loads(file.metadata()["log"])
    return log


def train(recipe: Recipe, out: Path, device: str, every: int) -> None:
    """Train from the last checkpoint to the end and write the model folder."""
    torch.set_flush_denormal(True)
    tokenizer = make_tokenizer(recipe)
    rows, counts = pack(recipe, tokenizer)
    model = make_model(recipe)
    model.to(device)  # type: ignore[arg-type]
    model.train()
    optimizers = Optimizers(model, recipe)
    log = load_checkpoint(out, optimizers, device) or {"recipe": asdict(recipe), "steps": []}
    before = log["steps"][-1]["seconds"] if log["steps"] else 0.0
    start = log["steps"][-1]["step"] if log["steps"] else 0
    check_same(recipe, log["recipe"], start)
    log["recipe"] = asdict(recipe)
    began, losses = time.monotonic(), []
    for step in range(start, recipe.steps):
        batch = torch.from_numpy(rows[step * recipe.batch : (step + 1) * recipe.batch])
        batch = batch.to(device).long()
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.step(rate(recipe, step))
        losses.append(loss.detach())
        done = step + 1
        if done % every == 0 or done == recipe.steps:
            seconds = before + time.monotonic() - began
            mean = float(torch.stack(losses).mean())
            losses.clear()
            entry = {"step": done, "loss": round(mean, 4), "seconds": round(seconds, 1)}
            log["steps"].append(entry)
            left = (recipe.steps - done) * (seconds - before) / (done - start)
            print(f"step {done}/{recipe.steps}  loss {mean:.4f}  {left:.0f} s left", flush=True)
            save_checkpoint(out, optimizers, log)
    export(out, model, tokenizer, {**log, "tokens": counts})


def export(
    out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, log: dict[str, Any]
) -> None:
    """Write the model folder: bfloat16 weights, configuration, tokenizer and training log."""
    log["parameters"] = sum(p.numel() for p in model.parameters())
    log["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    model.to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training_log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the checkpoint and model"
    )
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(steps=options.steps, seed=options.seed)
    train(recipe, options.out, options.device, options.every)


if __name__ == "__main__":
    main()
