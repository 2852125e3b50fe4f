"""A byte-level random model on disk and a configuration that runs the whole stream in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from clbench.config import CalibrationConfig, EvalConfig, RunConfig, TrainConfig

KILLER = f"{Path(__file__).parent / 'killer.py'}:Killer"


LAYOUTS = {  # width 32, 2 layers
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "gemma": {"num_key_value_heads": 1, "head_dim": 16},
    "gpt2": {"n_inner": 48, "n_positions": 512},
}


def save_toy_model(directory: Path, layout: str = "llama") -> Path:
    """Write a random model of one layout, with one token per byte."""
    alphabet = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    rules = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules, eos_token="<eos>", pad_token="<pad>"
    )
    config = AutoConfig.for_model(
        layout,
        vocab_size=len(alphabet),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        **({} if layout == "gpt2" else {"intermediate_size": 48, "max_position_embeddings": 512}),
        **LAYOUTS[layout],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def toy_config(model: Path, **changes: Any) -> RunConfig:
    """Return a run of math-code-if with 4 steps a task and 4 items an eval."""
    values: dict[str, Any] = {
        "stream": "math-code-if",
        "strategy": "lora-null",
        "params": {},
        "model": str(model),
        "data": "tiny",
        "train": TrainConfig.of({"steps": 4, "batch_size": 4, "lr": 0.01}),
        "eval": EvalConfig.of({"samples": 4, "rank_items": 2}),
        "calibration": CalibrationConfig.of({"window": 64, "num_windows": 8}),
    }
    return RunConfig.of(values | changes)
