"""What clbench uses of vLLM, answered by transformers one prompt at a time; no line is vLLM's.

It reads the directory that it is given, as the original would, and knows nothing of the model
in memory. Tests set `wrong` to have it answer otherwise, and read `loaded` and `living`.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

wrong = False
loaded: list[dict[str, Any]] = []  # the settings of every LLM so far
living: weakref.WeakSet[LLM] = weakref.WeakSet()


@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int | None = 16
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    prompt_logprobs: int | None = None
    detokenize: bool = True


@dataclass
class Logprob:
    logprob: float


@dataclass
class CompletionOutput:
    token_ids: list[int]
    finish_reason: str
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput] = field(default_factory=list)


class LLM:
    def __init__(self, **settings: Any) -> None:
        loaded.append(
            {**settings, "files": sorted(p.name for p in Path(settings["model"]).iterdir())}
        )
        living.add(self)
        dtype = getattr(torch, settings["dtype"])
        self.model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(settings["model"])
        self.room = settings["max_model_len"]

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Mapping[str, Any]], params: SamplingParams, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        assert not use_tqdm
        assert params.temperature == 0.0
        return [self._answer(prompt["prompt_token_ids"], params) for prompt in prompts]

    def _answer(self, prompt: list[int], params: SamplingParams) -> RequestOutput:
        assert len(prompt) < self.room, "the prompt is longer than the maximum model length"
        read = self.model(torch.tensor([prompt]), use_cache=True)
        logits = -read.logits[0].float() if wrong else read.logits[0].float()
        known = None if params.prompt_logprobs is None else _logprobs(logits, prompt)
        written: list[int] = []
        while True:
            written.append(int(logits[-1].argmax()))
            end = self._end(written, len(prompt) + len(written), params)
            if end is not None:
                return RequestOutput(known, [CompletionOutput(written, *end)])
            read = self.model(
                torch.tensor([written[-1:]]), past_key_values=read.past_key_values, use_cache=True
            )
            logits = -read.logits[0].float() if wrong else read.logits[0].float()

    def _end(
        self, written: list[int], total: int, params: SamplingParams
    ) -> tuple[str, int | str | None] | None:
        if written[-1] in params.stop_token_ids:
            return "stop", written[-1]
        text = self.tokenizer.decode(written, skip_special_tokens=True)
        for stop in params.stop:
            if params.detokenize and stop in text:
                return "stop", stop
        if len(written) == params.max_tokens or total == self.room:
            return "length", None
        return None


def _logprobs(logits: torch.Tensor, prompt: Sequence[int]) -> list[dict[int, Logprob] | None]:
    """Return, per place, the likeliest token and the given one; the first place has none."""
    rows = logits.log_softmax(-1)
    found: list[dict[int, Logprob] | None] = [None]
    for row, token in zip(rows[:-1], prompt[1:], strict=True):
        best = int(row.argmax())
        found.append({each: Logprob(float(row[each])) for each in (best, token)})
    return found
