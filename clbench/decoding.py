"""Greedy text and log-likelihoods of a causal LM, batched, with its keys and values cached."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

StopReason = Literal["stop", "eos", "length"]
SHRINK = 0.75  # rows that are done leave the batch once fewer than this share is still writing


class Generation(NamedTuple):
    """What a model wrote after one prompt."""

    text: str  # cut before the first stop
    stop_reason: StopReason
    ids: tuple[int, ...]  # all that was generated, the stop or end-of-sequence token included


class Alternatives(NamedTuple):
    """Several continuations of one prompt, as token ids."""

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


def cut_at_stops(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first occurrence of any stop."""
    for stop in stops:
        text = text.split(stop)[0]
    return text


def pad(rows: Sequence[Sequence[int]], value: int, side: Literal["left", "right"]) -> Tensor:
    """Return rows of unequal length as one tensor (rows, longest)."""
    longest = max(len(row) for row in rows)
    fill = [[value] * (longest - len(row)) for row in rows]
    both = zip(rows, fill, strict=True)
    return torch.tensor([[*f, *r] if side == "left" else [*r, *f] for r, f in both])


class _RoomyLayer(DynamicLayer):
    """A cache layer that writes into reserved room; growing by copies costs a third of the time."""

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.reserved = [self._reserve(key_states), self._reserve(value_states)]
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        for room, states in zip(self.reserved, (key_states, value_states), strict=True):
            room[:, :, start:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self.reserved)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        length = self.get_seq_length()
        if length == 0:  # a layer that shares another's keys and values holds none
            return
        chosen = [room[:, :, :length][indices] for room in self.reserved]
        self.reserved = [self._reserve(states) for states in chosen]
        for room, states in zip(self.reserved, chosen, strict=True):
            room[:, :, :length] = states
        self.keys, self.values = (room[:, :, :length] for room in self.reserved)

    def _reserve(self, states: Tensor) -> Tensor:
        rows, heads, _, width = states.shape
        return states.new_empty(rows, heads, self.room, width)


def _new_cache(config: PretrainedConfig, room: int) -> DynamicCache:
    cache = DynamicCache(config=config)
    cache.layers = [
        _RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class _Prefix(NamedTuple):
    """Left-padded prompts that the model has read."""

    cache: DynamicCache
    mask: Tensor  # (rows, tokens)
    last_logits: Tensor  # (rows, vocabulary), after the last token of each prompt
    lengths: Tensor  # (rows,)


def _read(model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int, room: int) -> _Prefix:
    device = next(model.parameters()).device
    ids = pad(prompts, pad_id, "left").to(device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    columns = torch.arange(ids.shape[1], device=device)
    mask = (columns >= ids.shape[1] - lengths[:, None]).long()
    cache = _new_cache(model.config, ids.shape[1] + room)  # type: ignore[arg-type]
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return _Prefix(cache, mask, logits, lengths)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode and every module of it back into its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    tokenizer: Any,
    *,
    stops: Sequence[str],
    max_new_tokens: int,
    end_ids: Collection[int] = (),
) -> list[Generation]:
    """Continue prompts greedily, as one batch, each to its own stop, end or cap.

    Nothing of the model's own generation settings is used: no sampling, no beams, no
    penalties, and only the tokenizer's end-of-sequence token and `end_ids` end a text.
    """
    final = {tokenizer.eos_token_id, *end_ids}
    prefix = _read(model, prompts, tokenizer.pad_token_id, max_new_tokens)
    cache, mask, positions = prefix.cache, prefix.mask, prefix.lengths[:, None]
    written: list[list[int]] = [[] for _ in prompts]
    reasons: list[StopReason] = ["length"] * len(prompts)
    window = 1 + max((len(stop.encode()) for stop in stops), default=0)
    rows = list(range(len(prompts)))  # which prompt each row of the batch continues
    writing = set(rows)
    logits = prefix.last_logits
    for step in range(max_new_tokens):
        tokens = logits.argmax(-1)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if row in writing:
                written[row].append(token)
                if token in final:
                    reasons[row] = "eos"
                    writing.discard(row)
        if stops and writing:
            order = sorted(writing)
            ends = tokenizer.batch_decode([written[row][-window:] for row in order])
            for row, end in zip(order, ends, strict=True):
                if any(stop in end for stop in stops):
                    writing.discard(row)
        if not writing or step + 1 == max_new_tokens:
            break
        if len(writing) < SHRINK * len(rows):
            kept = [at for at, row in enumerate(rows) if row in writing]
            rows = [rows[at] for at in kept]
            at = torch.tensor(kept, device=mask.device)
            cache.batch_select_indices(at)
            mask, positions, tokens = mask[at], positions[at], tokens[at]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        positions = positions + 1
    return [
        finish(ids, reason, tokenizer, stops) for ids, reason in zip(written, reasons, strict=True)
    ]


def finish(ids: list[int], reason: StopReason, tokenizer: Any, stops: Sequence[str]) -> Generation:
    """Return what was written, cut before its first stop; `reason` is why it ended otherwise."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    kept = cut_at_stops(text, stops)
    return Generation(kept, "stop" if kept != text else reason, tuple(ids))


@torch.no_grad()
def score_alternatives(
    model: nn.Module, items: Sequence[Alternatives], pad_id: int, batch_size: int
) -> list[list[float]]:
    """Return the log-likelihood (nats, summed over tokens) of each continuation of each item.

    A prompt is read once; its cached keys and values serve all of its continuations. The
    logits at position t-1 score token t, and only continuation tokens count.
    """
    scores: list[list[float]] = [[] for _ in items]
    by_length = sorted(range(len(items)), key=lambda i: -len(items[i].prompt))
    for start in range(0, len(items), batch_size):
        chunk = by_length[start : start + batch_size]
        rows = [(at, c) for at, i in enumerate(chunk) for c in items[i].continuations]
        room = max(len(ids) for _, ids in rows) - 1
        prefix = _read(model, [items[i].prompt for i in chunk], pad_id, room)
        first = prefix.last_logits.float().log_softmax(-1)
        found = dict(zip(rows, _first_tokens(first, rows), strict=True))
        longer = sorted({key for key in rows if len(key[1]) > 1}, key=lambda key: -len(key[1]))
        for batch in _batches(longer, 2 * batch_size):
            for key, value in zip(batch, _later_tokens(model, prefix, batch, pad_id), strict=True):
                found[key] += value
        for at, i in enumerate(chunk):
            scores[i] = [found[at, c] for c in items[i].continuations]
    return scores


_Row = tuple[int, tuple[int, ...]]  # which prompt of the prefix, and the continuation


def _batches(rows: Sequence[_Row], size: int) -> Iterator[Sequence[_Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _first_tokens(log_probs: Tensor, rows: Sequence[_Row]) -> list[float]:
    at = torch.tensor([row for row, _ in rows], device=log_probs.device)
    tokens = torch.tensor([ids[0] for _, ids in rows], device=log_probs.device)
    return log_probs[at, tokens].tolist()


def _later_tokens(
    model: nn.Module, prefix: _Prefix, rows: Sequence[_Row], pad_id: int
) -> list[float]:
    device = prefix.mask.device
    at = torch.tensor([row for row, _ in rows], device=device)
    cache = copy.copy(prefix.cache)  # selecting rows replaces the tensors of the copied layers
    cache.layers = [copy.copy(layer) for layer in cache.layers]
    cache.batch_select_indices(at)
    inputs = pad([ids[:-1] for _, ids in rows], pad_id, "right").to(device)
    targets = pad([ids[1:] for _, ids in rows], pad_id, "right").to(device)
    lengths = torch.tensor([len(ids) - 1 for _, ids in rows], device=device)
    columns = torch.arange(inputs.shape[1], device=device)
    real = columns < lengths[:, None]  # (rows, tokens)
    logits = model(
        input_ids=inputs,
        attention_mask=torch.cat([prefix.mask[at], real.long()], dim=1),
        position_ids=(prefix.lengths[at][:, None] + columns) * real,
        past_key_values=cache,
        use_cache=True,
    ).logits
    picked = logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    totals: list[float] = (picked * real).sum(-1).tolist()
    return totals
