"""Rows to examples, examples to batches: what has a loss, what sees what, what order."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from clbench import data
from clbench.data import (
    IGNORED,
    collate,
    derived_seed,
    endless,
    num_labels,
    num_tokens,
    one_pass,
    pack,
    pad_id,
)
from clbench.errors import UserError
from clbench.strategy import Batch, Example
from clbench.task import Row
from clbench.training import answer_loss

CPU = torch.device("cpu")
WORDS = ["<unk>", "<bos>", "<eos>", "<pad>", "two", "plus", "is", "four", "five"]


def word_tokenizer(*, bos: bool = True, **special: str) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, **{"eos_token": "<eos>", **special})


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of characters that joins "a" and "b" wherever they meet."""
    vocabulary = {"a": 0, "b": 1, "ab": 2, "<eos>": 3, "c": 4}
    raw = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


def encode(rows: Sequence[Row], tokenizer: Any, task: str, max_length: int) -> list[Example]:
    """Return the examples of rows, kept nowhere."""
    with tempfile.TemporaryDirectory() as folder:
        return list(data.encode(rows, tokenizer, task, max_length, Path(folder) / "tokens"))


def texts(ids: Any) -> list[str]:
    return [WORDS[token] for token in ids]


def make_example(length: int, answer: int, index: int = 0, task: str = "toy") -> Example:
    generator = torch.Generator().manual_seed(100 * length + index)
    ids = torch.randint(1, 20, (length,), generator=generator).tolist()
    return Example(tuple(ids), (False,) * (length - answer) + (True,) * answer, task, index)


def test_the_loss_is_on_the_answer_and_on_eos() -> None:
    [example] = encode([Row("1", "two plus two", " is four")], word_tokenizer(), "math", 32)
    assert texts(example.ids) == ["<bos>", "two", "plus", "two", "is", "four", "<eos>"]
    assert [t for t, m in zip(texts(example.ids), example.loss_mask, strict=True) if m] == [
        "is",
        "four",
        "<eos>",
    ]
    assert (example.task, example.index) == ("math", 0)


def test_the_prompt_is_tokenized_as_in_generation() -> None:
    for tokenizer in (word_tokenizer(), word_tokenizer(bos=False)):
        [example] = encode([Row("1", "two plus", " two")], tokenizer, "math", 32)
        prompt = tokenizer("two plus")["input_ids"]
        assert list(example.ids[: len(prompt)]) == prompt
        assert not any(example.loss_mask[: len(prompt)])


def test_the_padding_side_changes_no_example() -> None:
    rows = [Row("1", "two plus two", " is four"), Row("2", "two", " is two")]
    found = []
    for side in ("left", "right"):
        tokenizer = word_tokenizer(pad_token="<pad>")
        tokenizer.padding_side = side
        found.append(encode(rows, tokenizer, "math", 32))
    assert found[0] == found[1]
    assert all("<pad>" not in texts(example.ids) for example in found[0])


def test_a_token_across_the_boundary_is_split_where_generation_starts() -> None:
    tokenizer = merging_tokenizer()
    assert tokenizer("cab")["input_ids"] == [4, 2]
    [example] = encode([Row("1", "ca", "b")], tokenizer, "toy", 8)
    assert example.ids == (4, 0, 1, 3)
    assert example.loss_mask == (False, False, True, True)


def test_long_and_empty_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        Row("1", "two", " is" * 9),
        Row("2", "two", " is four"),
        Row("3", "is", " "),
        Row("4", "is", " two"),
    ]
    found = data.encode(rows, word_tokenizer(), "math", 5, tmp_path / "tokens")
    assert [texts(e.ids)[1] for e in found] == ["two", "is"]
    assert [e.index for e in found] == [0, 1]
    counts = [found.facts[name] for name in ("num_rows", "num_empty", "num_too_long")]
    assert counts == [4, 1, 1]
    with pytest.raises(UserError, match=r"every one of the 3 training rows .* max_length 2 "):
        encode(rows, word_tokenizer(), "math", 2)
    with pytest.raises(UserError, match=r"every one of the 1 training rows .* has no answer"):
        encode(rows[2:3], word_tokenizer(), "math", 9)


def test_bad_rows_and_tokenizers_are_refused() -> None:
    with pytest.raises(UserError, match="task math has no training rows"):
        encode([], word_tokenizer(), "math", 8)
    silent = word_tokenizer()
    silent.eos_token = None
    with pytest.raises(UserError, match="has no end-of-sequence token"):
        encode([Row("1", "two", " is")], silent, "math", 8)


def test_eos_pads_where_there_is_no_pad_token() -> None:
    assert pad_id(word_tokenizer(pad_token="<pad>")) == WORDS.index("<pad>")
    assert pad_id(word_tokenizer()) == WORDS.index("<eos>")


def test_collate_pads_on_the_right_and_labels_the_answer_only() -> None:
    examples = [make_example(5, 2), make_example(3, 1)]
    batch = collate(examples, 9, CPU)
    one, two = (list(e.ids) for e in examples)
    assert batch.input_ids.tolist() == [one, [*two, 9, 9]]
    assert batch.attention_mask.tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch.labels.tolist() == [
        [IGNORED] * 3 + one[3:],
        [IGNORED] * 2 + two[2:] + [IGNORED] * 2,
    ]
    assert batch.examples == examples
    assert batch.input_ids.dtype == torch.int64
    assert num_tokens(examples) == int(batch.attention_mask.sum())
    assert num_labels(examples) == int((batch.labels != IGNORED).sum())


def test_a_first_token_has_no_loss_because_nothing_predicts_it() -> None:
    example = Example((4, 5, 6), (True, True, True), "toy", 0)
    assert collate([example], 0, CPU).labels.tolist() == [[IGNORED, 5, 6]]
    assert num_labels([example]) == 2


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=64, n_embd=16, n_layer=2, n_head=4)
    return GPT2LMHeadModel(config).eval()


def summed_loss(model: Any, batch: Batch) -> float:
    with torch.no_grad():
        return float(answer_loss(model(**batch.model_inputs()).logits, batch.labels))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_packing_gives_every_example_the_loss_it_has_alone(make: Any, attention: str) -> None:
    model = make()
    model.set_attn_implementation(attention)
    examples = [make_example(6, 2, 0), make_example(9, 4, 1), make_example(5, 1, 2)]
    packed = pack(examples, 0, CPU, max_length=16)
    assert packed.input_ids.shape == (2, 15)
    alone = [summed_loss(model, collate([example], 0, CPU)) for example in examples]
    assert summed_loss(model, packed) == pytest.approx(sum(alone), abs=1e-4)
    assert summed_loss(model, collate(examples, 0, CPU)) == pytest.approx(sum(alone), abs=1e-4)
    for example, loss in zip(examples, alone, strict=True):
        keep = [
            e if e is example else e._replace(loss_mask=(False,) * len(e.ids)) for e in examples
        ]
        only = pack(keep, 0, CPU, max_length=16)
        assert summed_loss(model, only) == pytest.approx(loss, abs=1e-4)


def test_packed_rows_count_the_same_tokens() -> None:
    examples = [make_example(4 + i % 5, 2, i) for i in range(9)]
    padded, packed = collate(examples, 0, CPU), pack(examples, 0, CPU, max_length=20)
    assert packed.input_ids.numel() < padded.input_ids.numel()
    assert packed.attention_mask.sum() == padded.attention_mask.sum()
    assert (packed.labels != IGNORED).sum() == (padded.labels != IGNORED).sum()
    assert packed.examples == examples
    with pytest.raises(UserError, match="an example of 8 tokens does not fit max_length 7"):
        pack(examples, 0, CPU, max_length=7)


def test_each_epoch_holds_every_example_once() -> None:
    examples = [make_example(4, 1, i) for i in range(10)]
    flat = itertools.chain.from_iterable(endless(examples, 4, seed=3))
    drawn = [example.index for example in itertools.islice(flat, 30)]
    epochs = [drawn[:10], drawn[10:20], drawn[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_order_depends_on_the_seed_only() -> None:
    examples = [make_example(4, 1, i) for i in range(10)]

    def first(seed: int) -> list[list[Example]]:
        return list(itertools.islice(endless(examples, 3, seed), 7))

    before = first(1)
    torch.rand(5)
    assert first(1) == before
    assert first(2) != before
    assert all(len(part) == 3 for part in before)


def test_a_batch_larger_than_the_data_is_filled_from_the_next_epoch() -> None:
    examples = [make_example(4, 1, i) for i in range(3)]
    [part] = itertools.islice(endless(examples, 7, seed=0), 1)
    assert sorted(e.index for e in part[:6]) == [0, 0, 1, 1, 2, 2]
    assert len(part) == 7


def test_one_pass_is_in_order_and_complete() -> None:
    examples = [make_example(4, 1, i) for i in range(5)]
    batches = list(one_pass(examples, 2, 0, CPU))
    assert [len(batch.examples) for batch in batches] == [2, 2, 1]
    assert [e for batch in batches for e in batch.examples] == examples


def test_derived_seeds_differ_by_every_part() -> None:
    seeds = {
        derived_seed(*parts) for parts in [("a", 1), ("a", 2), ("b", 1), ("a1",), ("a", "1", 0)]
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed("a", 1) == derived_seed("a", 1)
