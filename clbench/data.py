"""Rows of text to token examples, and examples to padded or packed batches."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from clbench.digests import ListDigest
from clbench.errors import UserError
from clbench.strategy import Batch, Example
from clbench.task import Row
from clbench.tokens import Tokens, load, writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from clbench.chat import Chat

ENCODING = 1  # how rows become tokens; part of what they are kept under
IGNORED = -100  # the label of a position without loss
ROWS_AT_A_TIME = 1000  # held as text


class Encoded(NamedTuple):
    """A row with the tokens of its prompt and of its answer, without EOS."""

    row: Row
    prompt: list[int]
    answer: list[int]


def derived_seed(*parts: int | str) -> int:
    """Return a seed in 0..2^63-1 that depends on every part and on nothing else."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that ends every answer; raises UserError for a tokenizer without one."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token, so a model "
            "cannot learn where its answers end; set eos_token in tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that fills batches: the tokenizer's own, else that of EOS (never labelled)."""
    if tokenizer.pad_token_id is None:
        return eos_id(tokenizer)
    return int(tokenizer.pad_token_id)


def encode(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    max_length: int,
    folder: Path,
    *,
    chat: Chat | None = None,
    advance: Callable[[int], object] = int,
) -> Tokens:
    """Tokenize rows as generation will see them: prompt, answer, EOS; the loss is on the last two.

    Rows longer than `max_length` tokens are left out, never cut: a cut prompt asks another
    question and a cut answer teaches not to stop. So are rows whose answer is empty. Both are
    counted in the facts. The result is kept in `folder`; `advance` is told after how many more
    rows. With `chat` the prompt is what its template makes of the request. Raises UserError for
    a tokenizer without EOS, when no row is left, and where the folder cannot be written.
    """
    stop = eos_id(tokenizer)
    hasher, counts = ListDigest(), Counter[str]()
    with writing(folder) as writer:
        for chunk in _encoded(_chunks(rows, ROWS_AT_A_TIME), tokenizer, chat):
            for row, prompt, answer in chunk:
                hasher.add(list(row[:3]))
                if not row.answer.strip():
                    counts["num_empty"] += 1
                elif len(prompt) + len(answer) < max_length:
                    writer.add(prompt, [*answer, stop], counts["num_rows"])
                else:
                    counts["num_too_long"] += 1
                counts["num_rows"] += 1
            advance(len(chunk))
        _check_left(task, counts, len(writer), max_length)
        writer.finish(
            {name: counts[name] for name in ("num_rows", "num_empty", "num_too_long")}
            | {"rows_digest": hasher.hexdigest()}
        )
    made = load(folder, task)
    assert made is not None  # it was just written
    return made


def _encoded(
    chunks: Iterable[list[Row]], tokenizer: PreTrainedTokenizerBase, chat: Chat | None
) -> Iterator[list[Encoded]]:
    """Yield the chunks with their tokens; the next is tokenized while one is being used."""
    with ThreadPoolExecutor(max_workers=1) as tokenizing:
        ahead: Future[list[Encoded]] | None = None
        for chunk in chunks:
            ready, ahead = ahead, tokenizing.submit(_encode, chunk, tokenizer, chat)
            if ready is not None:
                yield ready.result()
        if ahead is not None:
            yield ahead.result()


def _encode(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, chat: Chat | None
) -> list[Encoded]:
    prompts, answers = [row.prompt for row in rows], [row.answer for row in rows]
    if chat is not None:
        prompts, answers = [chat.prompt(row) for row in rows], [chat.answer(row) for row in rows]
    special = chat is None  # a chat template writes the special tokens itself
    asked = _ids(tokenizer, prompts, special)
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    whole = _ids(tokenizer, texts, special)
    found = []
    for row, prompt, both, answer in zip(rows, asked, whole, answers, strict=True):
        if both[: len(prompt)] == prompt:
            found.append(Encoded(row, prompt, both[len(prompt) :]))
        else:
            # A token straddles the boundary. Generation starts after the prompt's own tokens,
            # so the answer has to be learned from there.
            found.append(Encoded(row, prompt, _ids(tokenizer, [answer], False)[0]))
    return found


def _ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool
) -> list[list[int]]:
    if not tokenizer.is_fast:
        # verbose=False: the tokenizer would warn about the long rows that are left out
        return list(tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"])
    backend = tokenizer.backend_tokenizer  # by itself it takes a seventh less time
    backend.no_truncation()
    backend.no_padding()
    return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=special)]


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    following = iter(rows)
    while chunk := list(islice(following, size)):
        yield chunk


def _check_left(task: str, counts: Mapping[str, int], num_left: int, max_length: int) -> None:
    """Raise UserError when there is nothing to train on."""
    num_rows, num_empty = counts["num_rows"], counts["num_empty"]
    if num_left:
        return
    if not num_rows:
        raise UserError(f"task {task} has no training rows")
    if num_empty == num_rows:
        raise UserError(f"every one of the {num_rows} training rows of task {task} has no answer")
    raise UserError(
        f"every one of the {num_rows - num_empty} training rows of task {task} is longer than "
        f"max_length {max_length} tokens; raise max_length"
    )


def num_labels(examples: Iterable[Example]) -> int:
    """Return the number of tokens with a loss; a first token has none, nothing predicts it."""
    if isinstance(examples, Tokens):
        return examples.num_labels
    return sum(sum(example.loss_mask[1:]) for example in examples)


def num_tokens(examples: Iterable[Example]) -> int:
    """Return the number of tokens, padding not counted."""
    if isinstance(examples, Tokens):
        return examples.num_tokens
    return sum(len(example.ids) for example in examples)


def collate(examples: Sequence[Example], pad_id: int, device: torch.device) -> Batch:
    """Pad examples on the right to the longest: tensors (rows, tokens) on `device`."""
    width = max(len(example.ids) for example in examples)
    ids = [[*example.ids, *[pad_id] * (width - len(example.ids))] for example in examples]
    real = [[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in examples]
    labels = [_labels(e) + [IGNORED] * (width - len(e.ids)) for e in examples]
    return Batch(
        input_ids=torch.tensor(ids).to(device),
        attention_mask=torch.tensor(real).to(device),
        labels=torch.tensor(labels).to(device),
        examples=list(examples),
    )


def pack(
    examples: Sequence[Example],
    pad_id: int,
    device: torch.device,
    max_length: int,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Concatenate examples into as few rows of at most `max_length` tokens as first-fit finds.

    No example sees another: `extra` holds position_ids that restart and an additive mask
    (rows, 1, tokens, tokens) in `dtype`, the dtype of the model's activations.
    """
    bins = _first_fit(examples, max_length)
    width = max(num_tokens(members) for members in bins)
    shape = (len(bins), width)
    ids = torch.full(shape, pad_id)
    labels = torch.full(shape, IGNORED)
    positions = torch.zeros(shape, dtype=torch.int64)
    segments = torch.zeros(shape, dtype=torch.int64)  # 0 is padding; it attends to itself
    for row, members in enumerate(bins):
        start = 0
        for number, example in enumerate(members, start=1):
            end = start + len(example.ids)
            ids[row, start:end] = torch.tensor(example.ids)
            labels[row, start:end] = torch.tensor(_labels(example))
            positions[row, start:end] = torch.arange(end - start)
            segments[row, start:end] = number
            start = end
    same = segments[:, :, None] == segments[:, None, :]  # (rows, queries, keys)
    seen = same & torch.ones(width, width, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    return Batch(
        input_ids=ids.to(device),
        attention_mask=(segments > 0).long().to(device),
        labels=labels.to(device),
        examples=list(examples),
        extra={
            "position_ids": positions.to(device),
            "attention_mask": mask[:, None].to(device),  # takes the place of the 2-D one
        },
    )


def _labels(example: Example) -> list[int]:
    """Return the labels of one un-padded example; its first token is never predicted."""
    pairs = zip(example.ids, example.loss_mask, strict=True)
    return [
        token if has_loss and position > 0 else IGNORED
        for position, (token, has_loss) in enumerate(pairs)
    ]


def _first_fit(examples: Sequence[Example], max_length: int) -> list[list[Example]]:
    """Fill rows with the longest examples first, each into the first row with room."""
    bins: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=lambda example: -len(example.ids)):
        size = len(example.ids)
        if size > max_length:
            raise UserError(f"an example of {size} tokens does not fit max_length {max_length}")
        fit = next((number for number, free in enumerate(room) if free >= size), None)
        if fit is None:
            bins.append([])
            room.append(max_length)
            fit = len(bins) - 1
        bins[fit].append(example)
        room[fit] -= size
    return bins


def endless(examples: Sequence[Example], micro_batch: int, seed: int) -> Iterator[list[Example]]:
    """Yield lists of `micro_batch` examples forever: each epoch is a fresh seeded permutation.

    A list may cross two epochs, so that every list is full.
    """
    generator = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    while True:
        while len(queue) < micro_batch:
            queue += torch.randperm(len(examples), generator=generator).tolist()
        taken, queue = queue[:micro_batch], queue[micro_batch:]
        yield [examples[index] for index in taken]


def one_pass(
    examples: Sequence[Example], size: int, pad_id: int, device: torch.device
) -> Iterator[Batch]:
    """Yield padded batches of at most `size` examples, each example once and in order."""
    for start in range(0, len(examples), size):
        yield collate(examples[start : start + size], pad_id, device)
