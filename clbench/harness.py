"""lm-eval's model around one in memory, and around the right answers; runs one eval on either."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lm_eval.api.task
import lm_eval.evaluator
import lm_eval.utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import nn

from clbench import decoding, engines
from clbench.chat import Chat
from clbench.decoding import Alternatives, Generation
from clbench.engines import Engine
from clbench.errors import UserError
from clbench.evalplan import WINDOW, EvalPlan, accepted, new_tokens_of, stops_of

IMPOSSIBLE = -1e9  # log-likelihood that the oracle gives to wrong options


class Harness(HFLM):  # type: ignore[misc]
    """lm-eval's model around one in memory: greedy, silent, and keeping what it generated.

    `engine` writes and scores for the model; without one it does so itself.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        batch_size: int,
        engine: Engine | None = None,
        chat: Chat | None = None,
    ) -> None:
        self.engine = engine or engines.HuggingFace(model, tokenizer, batch_size)
        self.chat = chat
        with quiet():
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=batch_size,
                max_length=self.engine.max_length,
            )
        self.seconds = {"generate": 0.0, "likelihood": 0.0, "execute": 0.0}
        self.generations: list[Generation] = []
        self.num_tokens = 0
        self.num_truncated = 0  # prompts that did not fit

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **settings: Any
    ) -> list[int]:
        """Tokenize as lm-eval does; a chat template has written the special tokens itself."""
        special = add_special_tokens if self.chat is None else False
        return list(super().tok_encode(string, add_special_tokens=special, **settings))

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokenize as lm-eval does; after a chat template as in training, from where it ends.

        lm-eval counts the white space at the end of a prompt to the continuation.
        """
        if self.chat is None:
            asked, rest = super()._encode_pair(context, continuation)
            return asked, rest
        asked, whole = self.tok_encode(context), self.tok_encode(context + continuation)
        if whole[: len(asked)] == asked:
            return asked, whole[len(asked) :]
        return asked, self.tok_encode(continuation)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return messages as the chat template writes them."""
        assert self.chat is not None  # run_harness asks for it only then
        return self.chat.render(chat_history, add_generation_prompt)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Answer the requests of one eval; all of them have its settings."""
        settings = requests[0].args[1]
        prompts = [request.args[0] for request in requests]
        self.generations = self.write(prompts, stops_of(settings), new_tokens_of(settings))
        return [generation.text for generation in self.generations]

    def write(
        self, prompts: Sequence[str], stops: Sequence[str], max_new_tokens: int
    ) -> list[Generation]:
        """Continue prompts, cut from the left where they leave no room; the order stays."""
        start = time.monotonic()
        room = self.max_length - max_new_tokens
        if room < 1:
            raise UserError(
                f"{max_new_tokens} new tokens do not fit in the model's {self.max_length}"
            )
        ids = [self.tok_encode(prompt) for prompt in prompts]
        self.num_truncated += sum(len(row) > room for row in ids)
        written = self.engine.write(
            [row[-room:] for row in ids],
            stops,
            max_new_tokens,
            frozenset() if self.chat is None else self.chat.end_ids,
        )
        self.num_tokens += sum(len(generation.ids) for generation in written)
        self.seconds["generate"] += time.monotonic() - start
        return written

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Score continuations as lm-eval does."""
        start = time.monotonic()
        answers = super().loglikelihood(requests, disable_tqdm=True)
        self.seconds["likelihood"] += time.monotonic() - start
        return list(answers)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Score whole texts, each token once, in windows as lm-eval cuts them.

        The first token follows BOS, else EOS; a BOS that the tokenizer writes itself is no token
        to score, as it is for lm-eval. One window is read at a time: it is long enough to be
        quick, and so neither memory nor the result depends on the batch size.
        """
        start = time.monotonic()
        totals = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=min(WINDOW, self._limit - 1),
                context_len=1,
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            answers = self._loglikelihood_tokens(parts, disable_tqdm=True, override_bs=1)
            totals.append(math.fsum(total for total, _ in answers))
        self.seconds["likelihood"] += time.monotonic() - start
        return totals

    @property
    def _limit(self) -> int:
        """Return the most tokens of a prompt and its continuation: the last one is not read.

        vLLM reads it too, and writes one more.
        """
        return int(self.max_length) + (-1 if isinstance(self.engine, engines.Vllm) else 1)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        vllm = self.engine if isinstance(self.engine, engines.Vllm) else None
        self.num_truncated += sum(len(ctx) + len(cont) > self._limit for _, ctx, cont in requests)
        if vllm is not None:
            return vllm.likelihoods([(ctx, cont) for _, ctx, cont in requests])
        return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def alternatives(self, prompt: str, continuations: Sequence[str]) -> Alternatives:
        """Tokenize continuations of one prompt as lm-eval does for its log-likelihoods."""
        pairs = [self._encode_pair(prompt, continuation) for continuation in continuations]
        return Alternatives(tuple(pairs[0][0]), tuple(tuple(ids) for _, ids in pairs))

    def score(self, items: Sequence[Alternatives]) -> list[list[float]]:
        """Return log-likelihoods, reading each prompt once for all of its continuations."""
        start = time.monotonic()
        scores = self.engine.score(items)
        self.seconds["likelihood"] += time.monotonic() - start
        return scores


class Oracle(LM):  # type: ignore[misc]
    """Writes the gold through an eval's own stops: what it scores is the eval's ceiling."""

    def __init__(self, task: ConfigurableTask) -> None:
        super().__init__()
        self.task = task

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return each document's reference answer, cut at the stops."""
        return [
            decoding.cut_at_stops(self.reference(request.doc), stops_of(request.args[1]))
            for request in requests
        ]

    def reference(self, doc: Mapping[str, Any]) -> str:
        """Return a right answer as a model would write it."""
        if "reference" in doc:
            return str(doc["reference"])
        return str(self.task.config.target_delimiter) + accepted(self.task, doc)[0]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return certainty for accepted options and none for the others."""
        delimiter = str(self.task.config.target_delimiter)
        return [
            (0.0, True)
            if request.args[1].removeprefix(delimiter) in accepted(self.task, request.doc)
            else (IMPOSSIBLE, False)
            for request in requests
        ]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Return certainty of every text."""
        return [0.0 for _ in requests]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence lm-eval's log and progress bars; the display of a run is not its own."""
    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, lm_eval.api.task.tqdm
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = functools.partial(bar, disable=True)
    try:
        with warnings.catch_warnings():  # an F1 of no positives is 0, as its library says
            warnings.filterwarnings("ignore", message="F-score is ill-defined")
            yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bar


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Let lm-eval compile each template of a task once; it does so for every document otherwise."""
    environment = lm_eval.utils.env
    usual = environment.from_string
    environment.from_string = functools.cache(usual)
    try:
        yield
    finally:
        environment.from_string = usual


def run_harness(lm: LM, plan: EvalPlan, chat: Chat | None = None) -> dict[str, Any]:
    """Run one eval; lm-eval's caches are off, because the model is in neither of their keys.

    With `chat`, worked examples are earlier turns of the conversation.
    """
    name = plan.task.task_name
    with quiet(), compiled_once():
        return dict(
            lm_eval.evaluator.evaluate(
                lm=lm,
                task_dict={"tasks": {name: plan.task}},
                samples={name: plan.indices},
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=chat is not None,
                fewshot_as_multiturn=chat is not None,
            )
        )
