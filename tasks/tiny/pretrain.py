"""Pre-train tiny from nothing: `python -m clbench_tasks.tiny.pretrain --out DIR`.

Seeded; started again after an interruption it goes on from the last checkpoint in DIR.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .corpus import documents
from .vocabulary import END, PAD, SIZE, train_tokenizer

CHECKPOINT = "checkpoint.safetensors"
SAMPLE = 40_000  # documents the tokenizer learns from


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the code and the machine."""

    steps: int = 3000
    batch: int = 16
    window: int = 128
    lr: float = 3e-3
    final_lr: float = 0.05  # share of `lr` left at the end
    warmup: int = 100
    decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    width: int = 256
    inner: int = 704
    layers: int = 4
    heads: int = 4

    @property
    def rows(self) -> int:
        """Count the windows that training sees."""
        return self.steps * self.batch


def make_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train the tokenizer on documents that the model does not see."""
    return train_tokenizer(text for _, text in documents(recipe.seed + 1, SAMPLE))


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
        batch = list(documents(recipe.seed + 2 + part, 50_000))
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
    """Return the learning rate of a step: linear warm-up, then cosine."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    share = recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * done)) / 2
    return recipe.lr * share


def save_checkpoint(
    out: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW, log: dict[str, Any]
) -> None:
    """Write weights, moments and log to one file that is replaced whole."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    part = out / f"{CHECKPOINT}.part"
    save_file(tensors, part, metadata={"log": json.dumps(log)})
    os.replace(part, out / CHECKPOINT)


def load_checkpoint(
    out: Path, model: LlamaForCausalLM, optimizer: torch.optim.AdamW
) -> dict[str, Any] | None:
    """Restore what `save_checkpoint` wrote; None if there is nothing."""
    if not (out / CHECKPOINT).exists():
        return None
    with safe_open(out / CHECKPOINT, framework="pt", device=str(model.device)) as file:
        log: dict[str, Any] = json.loads(file.metadata()["log"])
        for name, parameter in model.named_parameters():
            parameter.data.copy_(file.get_tensor(f"weight.{name}"))
            optimizer.state[parameter] = {
                key: file.get_tensor(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")
            }
    return log


def train(recipe: Recipe, out: Path, device: str, every: int) -> None:
    """Train from the last checkpoint to the end and write the model folder."""
    torch.set_flush_denormal(True)
    tokenizer = make_tokenizer(recipe)
    rows, counts = pack(recipe, tokenizer)
    model = make_model(recipe)
    model.to(device)  # type: ignore[arg-type]
    model.train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.decay},
            {"params": vectors, "weight_decay": 0},
        ],
        lr=recipe.lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    log = load_checkpoint(out, model, optimizer) or {"recipe": asdict(recipe), "steps": []}
    if log["recipe"] != asdict(recipe):
        raise SystemExit(f"{out} holds a checkpoint of another recipe: {log['recipe']}")
    before = log["steps"][-1]["seconds"] if log["steps"] else 0.0
    start = log["steps"][-1]["step"] if log["steps"] else 0
    began, losses = time.monotonic(), []
    for step in range(start, recipe.steps):
        batch = torch.from_numpy(rows[step * recipe.batch : (step + 1) * recipe.batch]).to(device)
        batch = batch.long()
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, step)
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        losses.append(loss.detach())
        done = step + 1
        if done % every == 0 or done == recipe.steps:
            seconds = before + time.monotonic() - began
            mean = float(torch.stack(losses).mean())
            losses.clear()
            log["steps"].append(
                {"step": done, "loss": round(mean, 4), "seconds": round(seconds, 1)}
            )
            left = (recipe.steps - done) * (seconds - before) / (done - start)
            print(f"step {done}/{recipe.steps}  loss {mean:.4f}  {left:.0f} s left", flush=True)
            save_checkpoint(out, model, optimizer, log)
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
