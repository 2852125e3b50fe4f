"""I-LoRA: a fast adapter that trains and replays, and a slow one that averages it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from clbench.adapters import adapted, freeze, replace
from clbench.data import collate, num_tokens
from clbench.errors import UserError, unknown
from clbench.strategy import Batch, Example, Step, Strategy, TaskContext, Trained

from .fastslow import FastSlowLinear, HiddenStates, fast_slow_layers, reading_slow
from .lora import Lora
from .replay import Replay

NAME = "i-lora"
IN_EVAL_MODE = "estimates in eval mode, where i-lora computes with a slow copy that does not train"
FRESH = "needs factors that are fresh in every task, and i-lora carries its own through the stream"
REFUSED = {
    "a-gem": IN_EVAL_MODE,
    "ewc": IN_EVAL_MODE,
    "mas": IN_EVAL_MODE,
    "gpm": FRESH,
    "wise-ft": FRESH,
}


class Start(Lora):
    """The factors of LoRA, checked and drawn under the name of I-LoRA."""

    @classmethod
    def name(cls) -> str:
        """Return the name that errors and draws go by."""
        return NAME


@dataclass
class ILora(Replay):
    """I-LoRA (Ren et al., arXiv 2402.18865): replay, and a moving average of the factors.

    After optimizer step n of the stream, from 0, each factor's slow copy becomes
    `w slow + (1 - w) fast` with w = ema_decay; under `ema_warmup` w is at most 1 - 1/(n+1). The
    loss gains `consistency` times the mean squared distance, over layers, features, tokens and
    memory rows, of the fast hidden states to those of the slow copy (`target="slow"`) or to the
    larger of the two (`"max"`). The slow copy is what is scored. The factors start as those of
    LoRA and are carried through the stream.
    """

    kind: ClassVar[Literal["adapter", "guard"]] = "adapter"
    implies: ClassVar[str | None] = None
    between_tasks: ClassVar[str] = "carry"

    share: float = 0.5
    rank: int = 16
    alpha: float | None = None
    ema_decay: float = 0.99
    ema_warmup: bool = True
    consistency: float = 1.0
    target: Literal["slow", "max"] = "slow"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._hidden: HiddenStates | None = None  # both live within the training of one task
        self._in_flight: list[int] = []  # memory tokens of each micro-batch of the present step
        self._stepped = False
        self._adapter()
        self._check_number("ema_decay", most=1.0)
        self._check_number("consistency", most=1e9)
        if self.target not in ("slow", "max"):
            raise unknown(f"target of {NAME}", str(self.target), ("slow", "max"))

    @classmethod
    def name(cls) -> str:
        """Return the name on the command line."""
        return NAME

    def refuses(self, others: Sequence[Strategy]) -> str | None:
        """Refuse a second memory, and what cannot work on two copies of one adapter."""
        for other in others:
            if isinstance(other, Replay):
                return f"{NAME} has a memory of its own; set its memory_size and share instead"
            if other.name() in REFUSED:
                return f"{other.name()} {REFUSED[other.name()]}"
        return None

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Attach both copies to every target, or go on with the ones that are carried."""
        super().begin_task(model, task)
        self.task_ = task.name
        self.tokens_forward_ = self.tokens_backward_ = 0
        carried = fast_slow_layers(model)
        if not carried:
            self._attach(model, task)
            self.num_steps_ = 0
        for layer in carried.values():
            layer.start_task()
        task.trained = dict(cast("dict[str, Trained]", adapted(model)))
        return model

    def batches(self, batches: Iterator[list[Example]]) -> Iterator[list[Example]]:
        """Mix in old examples, and count those of the step that is about to be trained."""
        for batch in super().batches(batches):
            if self._stepped:
                self._in_flight, self._stepped = [], False
            self._in_flight.append(num_tokens(e for e in batch if e.task != self.task_))
            yield batch

    def penalty(self, model: nn.Module, batch: Batch, outputs: Any) -> Tensor | float:
        """Return the consistency term of the memory rows, 0.0 where there are none.

        The mean is over the memory tokens of the whole step, however they fall into
        micro-batches. The first batch of a task pays one more pass, because only hooks on the
        decoder layers see its hidden states and they are set here; so does a packed batch, whose
        rows mix examples.
        """
        if not self.consistency:
            return 0.0
        self._hidden = self._hidden or HiddenStates(model)
        captured = self._hidden.take()
        rows = [n for n, example in enumerate(batch.examples) if example.task != self.task_]
        num_memory = sum(self._in_flight)  # tokens of the whole step
        if not (rows and num_memory):
            return 0.0
        memory = collate([batch.examples[n] for n in rows], 0, batch.input_ids.device)
        fast = [] if batch.extra else [states[rows] for states in captured]
        if not fast:
            fast = self._states(model, memory)
            self.tokens_backward_ += num_tokens(memory.examples)
        with torch.no_grad(), reading_slow(model):
            slow = self._states(model, memory)
        distance = self._distance(fast, slow, memory.attention_mask)
        # The driver divides by the number of micro-batches.
        return self.consistency * distance * len(self._in_flight) / num_memory

    def after_step(self, model: nn.Module, step: Step) -> None:
        """Let the slow copy follow the fast one."""
        weight = float(self.ema_decay)
        if self.ema_warmup:
            weight = min(weight, 1.0 - 1.0 / (self.num_steps_ + 1))
        for layer in fast_slow_layers(model).values():
            layer.follow(weight)
        self.num_steps_ += 1
        self._stepped = True

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Remove the hooks and offer the task's examples to the memory; both copies stay."""
        if self._hidden:
            self._hidden.remove()
            self._hidden = None
        return super().end_task(model, task)

    def facts(self) -> dict[str, Any]:
        """Return the facts of replay, and the tokens of the passes beside the training step."""
        return super().facts() | {
            "tokens_extra_forward": self.tokens_forward_,
            "tokens_extra_backward": self.tokens_backward_,
        }

    def _states(self, model: nn.Module, memory: Batch) -> list[Tensor]:
        assert self._hidden is not None
        with self._hidden.autocast(memory.input_ids.device):
            cast(Any, model).base_model(**memory.model_inputs(), use_cache=False)
        self.tokens_forward_ += num_tokens(memory.examples)
        return self._hidden.take()

    def _distance(self, fast: list[Tensor], slow: list[Tensor], mask: Tensor) -> Tensor:
        """Return the squared distance, mean over layers and features, summed over tokens."""
        total = torch.zeros((), device=mask.device)
        for quick, steady in zip(fast, slow, strict=True):  # (rows, tokens, width)
            gap = steady.float() - quick[:, : steady.shape[1]].float()
            gap = gap.relu() if self.target == "max" else gap
            total = total + (gap.square().mean(-1) * mask).sum()
        return total / len(fast)

    def _adapter(self) -> Start:
        return Start(rank=self.rank, alpha=self.alpha)

    def _attach(self, model: nn.Module, task: TaskContext) -> None:
        adapter = self._adapter()
        starts = list(adapter.starts(model, task))  # all of them before the model changes
        freeze(model)
        for name, factors in starts:
            base = model.get_submodule(name)
            replace(model, name, FastSlowLinear(base, *factors, scale=adapter.scale))

    def _check_number(self, field: str, most: float) -> None:
        value = getattr(self, field)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= most:
            raise UserError(f"{NAME}: {field} {value!r} is not a number from 0 to {most:g}")
