"""Rows of text to token examples, and examples to padded or packed batches."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from clbench.errors import UserError
from clbench.strategy import Batch, Example
from clbench.task import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label of a position without loss

logger = logging.getLogger(__name__)


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
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, task: str, max_length: int
) -> list[Example]:
    """Tokenize rows as generation will see them: prompt, answer, EOS; the loss is on the last two.

    Rows longer than `max_length` tokens are left out, never cut: a cut prompt asks another
    question and a cut answer teaches not to stop. Their number is `len(rows)` minus the number
    of examples, and is logged. `Example.index` is the position in the returned list.
    Raises UserError for a tokenizer without EOS and when no row is left.
    """
    stop = eos_id(tokenizer)
    if not rows:
        raise UserError(f"task {task} has no training rows")
    # verbose=False: the tokenizer would warn about the long rows that are left out below
    prompts = tokenizer([row.prompt for row in rows], verbose=False)["input_ids"]
    whole = tokenizer([row.prompt + row.answer for row in rows], verbose=False)["input_ids"]
    examples: list[Example] = []
    for row, prompt, both in zip(rows, prompts, whole, strict=True):
        answer = both[len(prompt) :]
        if both[: len(prompt)] != prompt:
            # A token straddles the boundary. Generation starts after the prompt's own tokens,
            # so the answer has to be learned from there.
            answer = tokenizer(row.answer, add_special_tokens=False, verbose=False)["input_ids"]
        ids = (*prompt, *answer, stop)
        if len(ids) <= max_length:
            mask = (False,) * len(prompt) + (True,) * (len(answer) + 1)
            examples.append(Example(ids, mask, task, len(examples)))
    if not examples:
        raise UserError(
            f"every one of the {len(rows)} training rows of task {task} is longer than "
            f"max_length {max_length} tokens; raise max_length"
        )
    if len(examples) < len(rows):
        num_dropped = len(rows) - len(examples)
        logger.warning(
            "task %s: left out %d of %d training rows longer than %d tokens",
            *(task, num_dropped, len(rows), max_length),
        )
    return examples


def num_labels(examples: Iterable[Example]) -> int:
    """Return the number of tokens with a loss; a first token has none, nothing predicts it."""
    return sum(sum(example.loss_mask[1:]) for example in examples)


def num_tokens(examples: Iterable[Example]) -> int:
    """Return the number of tokens, padding not counted."""
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
