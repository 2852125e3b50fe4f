"""Tiny random models of four layouts, a few thousand parameters each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from clbench.adapters import find_targets
from clbench.strategy import Covariances, TaskContext

VOCABULARY = 64
LAYOUTS = ("llama", "qwen2", "gemma", "gpt2")


def toy_model(layout: str = "llama", *, seed: int = 0, decaying: bool = False) -> PreTrainedModel:
    """Return a random causal LM: width 32, 2 layers, grouped-query attention but for GPT-2.

    `decaying` gives the embedding a steep spectrum in a random rotation, so that layer inputs
    have directions which carry next to nothing, as those of trained models have.
    """
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel
        if layout == "llama":
            model = LlamaForCausalLM(LlamaConfig(**common))
        elif layout == "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**common, tie_word_embeddings=True))
        elif layout == "gemma":
            model = GemmaForCausalLM(GemmaConfig(**common, head_dim=16))
        else:
            assert layout == "gpt2", layout
            model = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=VOCABULARY,
                    n_positions=64,
                    n_embd=32,
                    n_layer=2,
                    n_head=4,
                    bos_token_id=1,
                    eos_token_id=2,
                    resid_pdrop=0.0,
                    embd_pdrop=0.0,
                    attn_pdrop=0.0,
                )
            )
        if decaying:
            embedding = model.get_input_embeddings().weight.data
            spectrum = torch.logspace(0, -3, embedding.shape[1])
            rotation = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum))).Q
            embedding.copy_(torch.randn_like(embedding) * spectrum @ rotation)
    return model.eval()


def toy_context(
    model: nn.Module,
    covariances: Mapping[str, Covariances] | None = None,
    *,
    index: int = 0,
    seed: int = 0,
    targets: str | None = None,
) -> TaskContext:
    """Return what a strategy is told of a task that has no examples."""
    return TaskContext(
        name=f"task{index}",
        index=index,
        seed=seed,
        examples=list,
        batches=lambda: iter(()),
        covariances=covariances or {},
        targets=find_targets(model, targets),
    )


def toy_windows(num: int, length: int, *, seed: int = 0) -> Tensor:
    """Return random token windows, (num, length) int64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (num, length), generator=generator)


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the model's logits without gradient."""
    with torch.no_grad():
        out: Tensor = model(input_ids=ids).logits
    return out


def train_a_little(model: nn.Module, ids: Tensor, *, steps: int = 3, lr: float = 1e-2) -> float:
    """Take AdamW steps on next-token prediction of `ids`; return the last loss."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0
    )
    loss = torch.zeros(())
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
