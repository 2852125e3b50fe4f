"""A tokenizer of single characters, models that know a few answers, and evals that ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from toys import VOCABULARY, toy_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from clbench.config import EvalConfig
from clbench.evaluation import Evaluator
from clbench.task import Eval

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n.,:?#=-'ABCDEFGHIJKLMNO"
PAD, EOS = 0, 2
FACTS = {"red": "rose", "blue": "sky", "green": "leaf", "gold": "sun", "white": "snow"}
MEAN = {"aggregation": "mean", "higher_is_better": True}


def char_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer in which every character is a token."""
    names = ["<pad>", "<bos>", "<eos>", *CHARACTERS]
    assert len(names) == VOCABULARY
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def prompt_of(word: str) -> str:
    return f"{word}:"


def teach(texts: Sequence[tuple[str, str]], steps: int = 150) -> PreTrainedModel:
    """Return a model that continues each prompt with its answer and stops."""
    tokenizer = char_tokenizer()
    rows = [(tokenizer.encode(p), [*tokenizer.encode(a), EOS]) for p, a in texts]
    longest = max(len(p) + len(a) for p, a in rows)
    ids = torch.full((len(rows), longest), PAD)
    labels = torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(rows):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    model = toy_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=(ids != PAD).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def facts_eval(**changes: Any) -> Eval:
    """Return an open-answer eval over FACTS, mirroring nq_open."""
    docs = [{"id": w, "prompt": prompt_of(w), "golds": [a, a.upper()]} for w, a in FACTS.items()]
    values: dict[str, Any] = {
        "id": "toy_facts",
        "version": 1,
        "config": {
            "docs": lambda: [dict(doc) for doc in docs],
            "doc_to_text": "prompt",
            "doc_to_target": "golds",
            "generation_kwargs": {"until": ["\n", ".", ","], "max_gen_toks": 12},
            "metric_list": [{"metric": "exact_match", **MEAN}],
            "filter_list": [
                {
                    "name": "remove_whitespace",
                    "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}],
                }
            ],
        },
        "metric": "exact_match,remove_whitespace",
        "open_answer": True,
        "rank_items": 5,
        "long_tokens": 20,
    }
    return Eval(**{**values, **changes})


def choice_eval() -> Eval:
    """Return the same facts by arg-max, mirroring webqs."""
    docs = [{"id": w, "prompt": prompt_of(w), "golds": [a]} for w, a in FACTS.items()]
    return Eval(
        id="toy_choice",
        version=1,
        config={
            "output_type": "multiple_choice",
            "docs": lambda: docs,
            "doc_to_text": "prompt",
            "doc_to_choice": "golds",
            "doc_to_target": lambda doc: list(range(len(doc["golds"]))),
            "metric_list": [{"metric": "exact_match", **MEAN}],
        },
        metric="exact_match,none",
    )


def code_eval() -> Eval:
    """Return three functions to complete."""
    docs = [
        {
            "id": f"add{n}",
            "prompt": f"{word}:",
            "entry_point": "f",
            "prefix": "def f(x):\n",
            "reference": f"    return x + {n}\n",
            "emptied": "    pass\n",
            "cases": [[[0], n], [[1], n + 1], [[-5], n - 5]],
        }
        for n, word in enumerate(("one", "two", "three"), start=1)
    ]
    return Eval(
        id="toy_code",
        version=1,
        config={
            "docs": lambda: docs,
            "doc_to_text": "prompt",
            "doc_to_target": "reference",
            "generation_kwargs": {"until": ["\ndef"], "max_gen_toks": 24},
            "metric_list": [{"metric": "bypass"}],
        },
        metric="pass_at_1,none",
        execution="cases",
    )


def evaluator(*evals: Eval, **settings: Any) -> Evaluator:
    """Return an evaluator of toys; settings that EvalConfig does not have go to it."""
    config = {k: settings.pop(k) for k in list(settings) if k in EvalConfig.model_fields}
    info = {"tokenizer_digest": "toy", "dtype": "float32"}
    return Evaluator(info, char_tokenizer(), evals, EvalConfig(**config), **settings)
