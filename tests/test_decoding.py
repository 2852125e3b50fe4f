"""Decoding: batches, caches and stops change nothing of what a model says alone."""

from __future__ import annotations

import copy

import pytest
import torch
from evaltoys import CHARACTERS, char_tokenizer
from toys import LAYOUTS, toy_model
from transformers import Gemma2Config, Gemma2ForCausalLM, GenerationConfig, PreTrainedModel

from clbench import decoding
from clbench.decoding import Alternatives, cut_at_stops, generate, score_alternatives

PROMPTS = [[5, 9, 11], [4] * 9, list(range(3, 17)), [60, 3, 8, 22, 41]]


def sliding_model() -> PreTrainedModel:
    """Return a model whose layers attend to a window of six tokens, every second one."""
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=6,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    return Gemma2ForCausalLM(config).eval()


def lively(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with weights large enough that it does not repeat itself."""
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


@pytest.mark.parametrize("layout", [*LAYOUTS, "sliding"])
def test_a_batch_says_what_each_prompt_gets_alone(layout: str) -> None:
    model = lively(sliding_model() if layout == "sliding" else toy_model(layout))
    settings = GenerationConfig(do_sample=False, max_new_tokens=20, eos_token_id=2, pad_token_id=0)
    together = generate(model, PROMPTS, char_tokenizer(), stops=(), max_new_tokens=20)
    assert len({generation.ids for generation in together}) > 1
    for prompt, generation in zip(PROMPTS, together, strict=True):
        alone = model.generate(torch.tensor([prompt]), generation_config=settings)
        assert tuple(alone[0, len(prompt) :].tolist()) == generation.ids


@pytest.mark.parametrize("layout", [*LAYOUTS, "sliding"])
def test_alternatives_have_the_likelihood_of_the_whole_text(layout: str) -> None:
    model = lively(sliding_model() if layout == "sliding" else toy_model(layout))
    items = [
        Alternatives(tuple(prompt), ((7,), (8, 9, 10, 11), (12, 60))[: 1 + at % 3])
        for at, prompt in enumerate(PROMPTS)
    ]
    for batch_size in (1, 3, 64):
        found = score_alternatives(model, items, 0, batch_size)
        for item, scores in zip(items, found, strict=True):
            for ids, score in zip(item.continuations, scores, strict=True):
                assert score == pytest.approx(by_hand(model, item.prompt, ids), abs=1e-4)


@torch.no_grad()
def by_hand(model: PreTrainedModel, prompt: tuple[int, ...], ids: tuple[int, ...]) -> float:
    log_probs = model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
    return sum(float(log_probs[len(prompt) - 1 + at, token]) for at, token in enumerate(ids))


class Scripted(torch.nn.Module):
    """Writes, after a prompt whose last token is n, the n-th script; counts the rows it reads."""

    def __init__(self, scripts: list[list[int]]) -> None:
        super().__init__()
        self.scripts, self.config = scripts, toy_model().config
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.rows_read: list[int] = []

    def forward(
        self,
        input_ids: torch.Tensor,
        past_key_values: decoding.DynamicCache,
        **_: object,
    ) -> object:
        self.rows_read.append(len(input_ids))
        states = input_ids[:, None, :, None].float().repeat(1, 4, 1, 8)  # the cache is the memory
        keys = past_key_values.layers[0].update(states, states)[0][:, 0, :, 0].long()
        logits = torch.zeros(len(input_ids), 1, 64)
        written = keys.shape[1] - self.prompt_length
        for row, ids in enumerate(keys.tolist()):
            logits[row, 0, self.scripts[ids[self.prompt_length - 1]][written]] = 1
        return type("Output", (), {"logits": logits})

    prompt_length = 2


def ids_of(text: str) -> list[int]:
    return [CHARACTERS.index(character) + 3 for character in text]


def test_each_row_ends_by_its_own_rule_and_leaves_the_batch() -> None:
    texts = ["stop here\nand on", "end", "a long text without any end....", "b\n"]
    scripts = [ids_of(text) + [2] * 30 for text in texts]
    model = Scripted(scripts)
    found = generate(
        model,
        [[9, 0], [9, 1], [9, 2], [9, 3]],
        char_tokenizer(),
        stops=("\nan", "\n"),
        max_new_tokens=16,
    )
    assert [g.text for g in found] == ["stop here", "end", "a long text with", "b"]
    assert [g.stop_reason for g in found] == ["stop", "eos", "length", "stop"]
    assert [len(g.ids) for g in found] == [10, 4, 16, 2]
    assert model.rows_read == [4, 4, 4, 4, *[2] * 6, *[1] * 6]


def test_a_stop_spread_over_tokens_is_found_and_cut() -> None:
    model = Scripted([ids_of("fine?") + ids_of("ab\nclas\nclass x") + [2] * 20])
    found = generate(model, [[9, 0]], char_tokenizer(), stops=("\nclass",), max_new_tokens=25)
    assert found[0].text == "fine?ab\nclas"
    assert len(found[0].ids) == len("fine?ab\nclas\nclass")


def test_text_is_cut_before_the_earliest_stop() -> None:
    assert cut_at_stops("one. two\nthree", ("\n", ".")) == "one"
    assert cut_at_stops("one", ()) == "one"


def test_modes_come_back_after_an_error() -> None:
    model = copy.deepcopy(toy_model()).train()
    model.lm_head.eval()
    with pytest.raises(ZeroDivisionError), decoding.eval_mode(model):
        1 / model.training
    assert model.training
    assert not model.lm_head.training
