"""The one training loop: what a step is, when the hooks are called, when a task ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from clbench.config import TrainConfig
from clbench.data import collate, derived_seed, endless, num_labels, num_tokens, pack
from clbench.errors import UserError
from clbench.strategy import Batch, Example, Step, Strategy, TaskContext

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


class StepLog(NamedTuple):
    """What `on_step` is told after every optimizer step."""

    number: int  # from 0
    total: int  # expected number of steps
    lr: float
    loss: float  # per answer token, without the penalty
    tokens_seen: int
    budget_tokens: int


@dataclass(frozen=True)
class TrainLog:
    """What the training of one task did."""

    tokens_seen: int  # non-pad tokens forwarded, replayed ones included
    tokens_loss: int  # those with a label
    tokens_replayed: int  # those of examples of another task
    losses: tuple[float, ...]  # per answer token, without the penalty; one per optimizer step
    lrs: tuple[float, ...]
    diverged: bool  # a loss or gradient was not finite; the weights never saw it
    seconds: float

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps."""
        return len(self.losses)

    @property
    def sum_lr(self) -> float:
        """Return the sum of the learning rates of all steps."""
        return math.fsum(self.lrs)


def budget(examples: Sequence[Example], cfg: TrainConfig, published: float = 1.0) -> int:
    """Return the number of tokens that a task may see, from steps, epochs or tokens.

    `published` is how many passes the task's protocol makes, for epochs that are "task".
    """
    if cfg.tokens is not None:
        return cfg.tokens
    total = num_tokens(examples)
    passes = cfg.passes(published)
    if passes is not None:
        return round(passes * total)
    assert cfg.steps is not None  # TrainConfig holds exactly one of the three
    return round(cfg.steps * cfg.batch_size * total / len(examples))


def learning_rate(progress: float, cfg: TrainConfig) -> float:
    """Return the rate at a share of the token budget: linear warm-up, then the schedule."""
    if cfg.warmup and progress <= cfg.warmup:
        return cfg.lr * progress / cfg.warmup
    left = max(0.0, (1.0 - progress) / (1.0 - cfg.warmup))
    if cfg.schedule == "cosine":
        return cfg.lr * 0.5 * (1.0 - math.cos(math.pi * left))
    return cfg.lr * left if cfg.schedule == "linear" else cfg.lr


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed negative log-likelihood, float32, of the labelled tokens.

    `logits` is (rows, tokens, vocabulary); the logits at t-1 are scored against the label at t.
    Only labelled positions are cast to float32: prompts and padding cost no memory.
    """
    targets = labels[:, 1:].reshape(-1)
    labelled = (targets >= 0).nonzero().squeeze(1)
    chosen = logits[:, :-1].reshape(-1, logits.shape[-1]).index_select(0, labelled)
    return F.cross_entropy(chosen.float(), targets[labelled], reduction="sum")


def train(
    model: nn.Module,
    strategy: Strategy,
    task: TaskContext,
    examples: Sequence[Example],
    cfg: TrainConfig,
    *,
    pad_id: int,
    device: torch.device,
    budget_tokens: int,
    on_step: Callable[[StepLog], None] | None = None,
) -> TrainLog:
    """Train `model` in place on `examples` until `budget_tokens` have been seen.

    The model comes back in eval mode and without gradients. A loss or gradient that is not
    finite ends the training before the weights see it and sets `diverged`. Under several
    processes (accelerate launch) each takes its share of a step's micro-batches. Raises
    UserError when nothing trains, when micro-batches do not divide the batch, and when packing
    is asked of an attention that cannot keep examples apart.
    """
    started = time.monotonic()
    torch.manual_seed(derived_seed("train", task.seed, task.index))
    accelerator = Accelerator(mixed_precision="no", device_placement=False)
    with _train_mode(model, cfg):
        loop = _Loop(model, strategy, task, cfg, accelerator, pad_id, device, budget_tokens)
        micro_batch = cfg.micro_batch or cfg.batch_size
        seed = derived_seed("batches", task.seed, task.index)
        batches = strategy.batches(endless(examples, micro_batch, seed))
        total = max(1, round(budget_tokens * len(examples) / num_tokens(examples) / cfg.batch_size))
        while loop.tokens_seen < budget_tokens and not loop.diverged:
            loop.step([next(batches) for _ in range(loop.num_parts)], total)
            if on_step is not None and not loop.diverged:
                report = (loop.lrs[-1], loop.losses[-1], loop.tokens_seen, budget_tokens)
                on_step(StepLog(len(loop.losses) - 1, total, *report))
    return TrainLog(
        tokens_seen=loop.tokens_seen,
        tokens_loss=loop.tokens_loss,
        tokens_replayed=loop.tokens_replayed,
        losses=tuple(loop.losses),
        lrs=tuple(loop.lrs),
        diverged=loop.diverged,
        seconds=time.monotonic() - started,
    )


class _Loop:
    """What lives as long as the training of one task: optimizer, wrapped model, counters."""

    def __init__(
        self,
        model: Any,  # a causal LM of transformers, whose methods are untyped
        strategy: Strategy,
        task: TaskContext,
        cfg: TrainConfig,
        accelerator: Accelerator,
        pad_id: int,
        device: torch.device,
        budget_tokens: int,
    ) -> None:
        self.model, self.strategy, self.task, self.cfg = model, strategy, task, cfg
        self.accelerator, self.pad_id, self.device = accelerator, pad_id, device
        self.budget_tokens = budget_tokens
        self.num_parts = _num_parts(cfg, accelerator.num_processes)
        if cfg.packing:
            check_packing(model, cfg.max_length)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise UserError(
                f"nothing to train in task {task.name}: after begin_task of strategy "
                f"{strategy.name()} no parameter requires a gradient"
            )
        # Decay is 0: on factors that carry pretrained weight it would shrink the model.
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=cfg.lr,
            weight_decay=0.0,
            fused=device.type in ("cpu", "cuda"),
        )
        self.forward = accelerator.prepare_model(model)
        self.tokens_seen = self.tokens_loss = self.tokens_replayed = 0
        self.losses: list[float] = []
        self.lrs: list[float] = []
        self.diverged = False

    def step(self, parts: list[list[Example]], total: int) -> None:
        """Do one optimizer step on its micro-batches, or set `diverged` and leave the weights."""
        everything = [example for part in parts for example in part]
        tokens = num_tokens(everything)
        # In the middle of the step: neither the first nor the last step has rate 0.
        progress = (self.tokens_seen + tokens / 2) / self.budget_tokens
        lr = learning_rate(min(progress, 1.0), self.cfg)
        step = Step(index=len(self.losses), total=total, lr=lr)
        labels = num_labels(everything)
        loss, finite = self._backward(parts, labels)
        if finite:
            self.strategy.before_step(self.model, step)
            finite = self._clip()
        if not finite:
            self.diverged = True
            return
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.strategy.after_step(self.model, step)
        self.tokens_seen += tokens
        self.tokens_loss += labels
        self.tokens_replayed += num_tokens(e for e in everything if e.task != self.task.name)
        self.losses.append(loss)
        self.lrs.append(lr)

    def _backward(self, parts: list[list[Example]], labels: int) -> tuple[float, bool]:
        """Accumulate the gradient; return the loss per answer token and whether all is finite.

        The step's loss is the sum over its answer tokens divided by their number, so each
        micro-batch is divided by the labels of the whole step; the penalty counts once per step.
        """
        world = self.accelerator.num_processes
        mine = parts[self.accelerator.process_index :: world]
        sums = torch.zeros(2, device=self.device)  # loss, loss + penalty
        for number, part in enumerate(mine, start=1):
            batch = self._batch(part)
            with self._no_sync(last=number == len(mine)):
                with self._autocast():
                    outputs = self.forward(**batch.model_inputs(), use_cache=False)
                    loss = answer_loss(outputs.logits, batch.labels) / labels
                outputs.loss = loss
                penalty = self.strategy.penalty(self.model, batch, outputs) / len(parts)
                whole = loss + penalty
                # Several processes average their gradients; the sum is wanted.
                self.accelerator.backward(whole * world if world > 1 else whole)
            sums += torch.stack((loss.detach(), whole.detach()))
        loss_sum, whole_sum = self.accelerator.reduce(sums, reduction="sum").tolist()
        return loss_sum, math.isfinite(whole_sum)

    def _clip(self) -> bool:
        """Clip the gradient's norm; return whether it was finite."""
        limit = math.inf if self.cfg.clip is None else self.cfg.clip  # inf leaves every bit
        norm = self.accelerator.clip_grad_norm_(self.parameters, limit)
        return bool(torch.isfinite(norm))

    def _batch(self, part: list[Example]) -> Batch:
        if not self.cfg.packing:
            return collate(part, self.pad_id, self.device)
        dtype = self.model.get_input_embeddings().weight.dtype
        return pack(part, self.pad_id, self.device, self.cfg.max_length, dtype)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.cfg.autocast == "bf16" or (
            self.cfg.autocast == "auto" and self.device.type == "cuda"
        ):
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _no_sync(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext() if last else self.accelerator.no_sync(self.forward)


def _num_parts(cfg: TrainConfig, num_processes: int) -> int:
    """Return the micro-batches of a step, over all processes; raises UserError."""
    micro_batch = cfg.micro_batch or cfg.batch_size
    if cfg.batch_size % (micro_batch * num_processes):
        raise UserError(
            f"batch_size {cfg.batch_size} is not a multiple of micro_batch {micro_batch} times "
            f"{num_processes} process(es)"
        )
    return cfg.batch_size // micro_batch


def check_packing(model: Any, max_length: int) -> None:
    """Raise UserError unless a 4-D mask keeps the packed examples of this model apart."""
    config = model.config
    attention = config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise UserError(f"packing needs the attention sdpa or eager, not {attention!r}")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention"}:
        raise UserError(
            f"packing cannot keep examples apart in layers of type {', '.join(sorted(kinds))}"
        )
    window = getattr(config, "sliding_window", None)
    if "sliding_attention" in kinds and window is not None and max_length > window:
        raise UserError(f"packing needs max_length at most the sliding window, {window} tokens")


@contextmanager
def _train_mode(model: Any, cfg: TrainConfig) -> Iterator[None]:
    """Train inside; outside the model is in eval mode, un-checkpointed and without gradients."""
    # transformers 5 renamed the pair on its way: early versions have only the old names, later
    # ones warn about them.
    prefix = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    model.train()
    if cfg.gradient_checkpointing:
        getattr(model, f"{prefix}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        if cfg.gradient_checkpointing:
            getattr(model, f"{prefix}_checkpointing_disable")()
        model.zero_grad(set_to_none=True)
        model.eval()
