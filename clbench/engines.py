"""What writes and scores: the model itself (hf, the reference), or vLLM with the same weights."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple, Protocol, cast

import torch
from safetensors import SafetensorError
from torch import nn

from clbench import decoding
from clbench.adapters import folded_state
from clbench.decoding import Alternatives, Generation, StopReason
from clbench.errors import UserError

MOST_CONTEXT = 8192  # tokens that vLLM reserves memory for, where the model can read more
MEMORY_SHARE = 0.9  # of what the model of the run leaves free on the device
USE_HF = "--engine hf needs nothing more"


class Likelihood(NamedTuple):
    """How likely a continuation is."""

    total: float  # nats, summed over its tokens
    greedy: bool  # whether each of its tokens is the likeliest at its place


class Engine(Protocol):
    """What answers for a model, greedily; it is closed when its row is scored."""

    name: str
    max_length: int | None  # tokens of a prompt and its answer; None is what the model can read

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        stops: Sequence[str],
        max_new_tokens: int,
        end_ids: Collection[int] = (),
    ) -> list[Generation]:
        """Continue prompts, each to its own stop, cap or end, which `end_ids` are too."""

    def score(self, items: Sequence[Alternatives]) -> list[list[float]]:
        """Return the log-likelihood (nats, summed) of each continuation of each item."""

    def close(self) -> None:
        """Give back what the engine holds beside the model."""


class HuggingFace:
    """The model in memory, in batches of similar length: the reference."""

    name = "hf"
    max_length: int | None = None

    def __init__(self, model: nn.Module, tokenizer: Any, batch_size: int) -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        stops: Sequence[str],
        max_new_tokens: int,
        end_ids: Collection[int] = (),
    ) -> list[Generation]:
        """Continue prompts, each to its own stop, cap or end, which `end_ids` are too."""
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), prompts[i]))
        written: dict[int, Generation] = {}
        for at in range(0, len(order), self.batch_size):
            batch = order[at : at + self.batch_size]
            generations = decoding.generate(
                self.model,
                [prompts[i] for i in batch],
                self.tokenizer,
                stops=stops,
                max_new_tokens=max_new_tokens,
                end_ids=end_ids,
            )
            written.update(zip(batch, generations, strict=True))
        return [written[i] for i in range(len(prompts))]

    def score(self, items: Sequence[Alternatives]) -> list[list[float]]:
        """Return log-likelihoods, reading each prompt once for all of its continuations."""
        pad_id = self.tokenizer.pad_token_id
        return decoding.score_alternatives(self.model, items, pad_id, self.batch_size)

    def close(self) -> None:
        """Leave the model to its owner."""


class Vllm:
    """vLLM on a copy of the model's folded weights, loaded when the first request comes.

    `batch_size` is the most sequences that it works on at a time. Nothing of the model's own
    generation settings is used, and what ends a text is decided by our own rules.
    """

    name = "vllm"

    def __init__(self, model: nn.Module, tokenizer: Any, batch_size: int) -> None:
        self.model, self.tokenizer, self.batch_size = cast(Any, model), tokenizer, batch_size
        self.max_length = min(self.model.config.max_position_embeddings, MOST_CONTEXT)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        stops: Sequence[str],
        max_new_tokens: int,
        end_ids: Collection[int] = (),
    ) -> list[Generation]:
        """Continue prompts, each to its own stop, cap or end, which `end_ids` are too."""
        final = {self.tokenizer.eos_token_id, *end_ids}
        outputs = self._ask(
            prompts,
            max_tokens=max_new_tokens,
            stop=list(stops),
            ignore_eos=True,  # these alone end a text, not what the model's files add
            stop_token_ids=sorted(final),
        )
        return [self._generation(output.outputs[0], stops, final) for output in outputs]

    def _generation(self, written: Any, stops: Sequence[str], final: set[int]) -> Generation:
        ids = list(written.token_ids)
        reason: StopReason = "length" if written.finish_reason == "length" else "stop"
        if ids and ids[-1] in final:
            reason = "eos"
        return decoding.finish(ids, reason, self.tokenizer, stops)

    def score(self, items: Sequence[Alternatives]) -> list[list[float]]:
        """Return the log-likelihood (nats, summed) of each continuation of each item."""
        pairs = [(item.prompt, tokens) for item in items for tokens in item.continuations]
        found = iter(self.likelihoods(pairs))
        return [[next(found).total for _ in item.continuations] for item in items]

    def likelihoods(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Likelihood]:
        """Score (prompt, continuation) pairs of token ids; what is too long loses its beginning."""
        texts = [[*prompt, *tokens][1 - self.max_length :] for prompt, tokens in pairs]
        outputs = self._ask(texts, max_tokens=1, prompt_logprobs=1, detokenize=False)
        return [
            _likelihood(output.prompt_logprobs, text, len(tokens))
            for output, text, (_, tokens) in zip(outputs, texts, pairs, strict=True)
        ]

    def close(self) -> None:
        """Free the device."""
        if self.__dict__.pop("_llm", None) is not None:
            gc.collect()
            torch.cuda.empty_cache()

    def _ask(self, prompts: Sequence[Sequence[int]], **settings: Any) -> list[Any]:
        if not prompts:
            return []
        from vllm import SamplingParams

        asked = [{"prompt_token_ids": list(ids)} for ids in prompts]
        params = SamplingParams(temperature=0.0, **settings)
        return list(self._llm.generate(asked, params, use_tqdm=False))

    @cached_property
    def _llm(self) -> Any:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM

        with self._saved() as folder:
            try:
                return LLM(
                    model=folder,
                    dtype=str(self.model.dtype).removeprefix("torch."),
                    seed=0,
                    max_model_len=self.max_length,
                    max_num_seqs=self.batch_size,
                    generation_config="vllm",  # not the model's own
                    trust_remote_code=False,
                    **self._memory(),
                )
            except Exception as error:  # another's engine may fail in any way
                reason = str(error).strip().partition("\n")[0]
                raise UserError(
                    f"vllm {version('vllm')} cannot load the model: {reason}; {USE_HF}"
                ) from error

    @contextmanager
    def _saved(self) -> Iterator[str]:
        """Give a directory with the model as it is now, until vLLM has read it."""
        with tempfile.TemporaryDirectory(prefix="clbench-") as folder:
            try:
                self.model.save_pretrained(folder, state_dict=folded_state(self.model))
                self.tokenizer.save_pretrained(folder)
            except (OSError, SafetensorError) as error:
                raise UserError(
                    f"cannot write the weights for vllm to {folder}: {error}"
                ) from error
            yield folder

    def _memory(self) -> dict[str, float]:
        device = self.model.device
        if device.type != "cuda":
            return {}
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return {"gpu_memory_utilization": MEMORY_SHARE * free / total}


def _likelihood(logprobs: Sequence[Any], text: Sequence[int], num_tokens: int) -> Likelihood:
    """Read a continuation's last tokens; per place, vLLM maps the likeliest and the given one."""
    places = list(zip(text, logprobs, strict=True))[-num_tokens:]
    given = [found[token].logprob for token, found in places]
    best = [max(each.logprob for each in found.values()) for _, found in places]
    return Likelihood(sum(given), given == best)


def engine(name: str, model: nn.Module, tokenizer: Any, batch_size: int) -> Engine:
    """Return the engine of a name for one model; close it after use."""
    if name == Vllm.name:
        return Vllm(model, tokenizer, batch_size)
    return HuggingFace(model, tokenizer, batch_size)


def version(package: str) -> str | None:
    """Return the version of an installed package, None without it; nothing is imported."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check(name: str, device: torch.device) -> None:
    """Raise UserError for an engine that this machine lacks."""
    if name != Vllm.name:
        return
    if version("vllm") is None:
        raise UserError(
            f"engine vllm is not installed; pip install 'clbench[vllm]' adds it, and {USE_HF}"
        )
    if device.index:
        raise UserError(
            f"engine vllm computes on the first device that it sees, not on {str(device)!r}; "
            f"choose that one with CUDA_VISIBLE_DEVICES={device.index} instead"
        )


def packages(name: str) -> dict[str, str | None]:
    """Return the versions of what an engine needs beyond the rest of the suite."""
    return {"vllm": version("vllm")} if name == Vllm.name else {}


def describe(name: str) -> dict[str, str | None]:
    """Return the name of an engine and the versions that decide what it writes."""
    common = {"lm_eval": "lm-eval", "torch": "torch", "transformers": "transformers"}
    return {"name": name, **{key: version(p) for key, p in common.items()}, **packages(name)}


def label(name: str) -> str:
    """Return what a cell says of its engine: the name, and the version unless it is the run's."""
    return name if name == HuggingFace.name else f"{name} {version(name)}"
