"""The contract: what a strategy is told, what it may do, and when."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

Covariances = Mapping[str, "Tensor"]  # layer name -> uncentred second moment of its input (in, in)


class Example(NamedTuple):
    """One training row, tokenized and un-padded; also what a replay memory stores."""

    ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]  # True where the token is part of the answer
    task: str
    index: int  # type: ignore[assignment]  # position among the task's distinct examples


@dataclass
class Batch:
    """Collated examples, each tensor (rows, tokens) on the training device."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor  # -100 where there is no loss
    examples: list[Example]
    extra: dict[str, Tensor] = field(default_factory=dict)  # e.g. position_ids of packed rows

    def model_inputs(self) -> dict[str, Tensor]:
        """Return the keyword arguments of the model's forward pass, labels left out."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **self.extra}


class Step(NamedTuple):
    """Where the training of the present task stands."""

    index: int  # type: ignore[assignment]  # optimizer steps done before this one, from 0
    total: int | None  # expected number of steps; tokens, not steps, end a task
    lr: float  # learning rate of this step


class Trained(Protocol):
    """One weight matrix that the adapter trains, as guards see it."""

    def delta(self) -> Tensor:
        """Return the weight's change since the start of the task, (out, in), with gradient."""

    def scale_delta(self, alpha: float) -> None:
        """Multiply the change since the start of the task by `alpha`, in place."""

    def without_delta(self) -> AbstractContextManager[None]:
        """Compute, inside the context, without this task's change."""

    def trainables(self) -> dict[str, nn.Parameter]:
        """Return the parameters that train, by local name."""

    def start(self) -> dict[str, Tensor]:
        """Return the values those parameters had at the start of the task."""


@dataclass
class TaskContext:
    """All that a strategy may know of the present task: no eval, no future task."""

    name: str
    index: int  # from 0
    seed: int
    examples: Callable[[], Sequence[Example]]  # the task's distinct examples
    batches: Callable[[], Iterator[Batch]]  # one pass, collated; repeats identically
    covariances: Mapping[str, Covariances]  # source -> layer -> (in, in); lazy
    targets: tuple[str, ...]  # names of the linear layers that may be adapted
    trained: dict[str, Trained] = field(default_factory=dict)  # set by the adapter in begin_task


@dataclass
class Strategy:
    """One way to learn a stream. Fields are hyperparameters; attributes ending in `_` are state.

    A subclass overrides only the hooks that it needs; `class Full(Strategy)` with a docstring
    is complete. State must load without pickle: tensors, numbers, strings, lists, dicts. A run
    that was interrupted goes on with a new object that has the fields and the state of the old
    one, without a second `begin_task`: anything else is lost, so find layers in the model.
    """

    kind: ClassVar[Literal["adapter", "guard"]] = "adapter"
    implies: ClassVar[str | None] = None  # a guard's default adapter, as on the command line
    implies_params: ClassVar[Mapping[str, Any]] = {}  # what that adapter's fields then default to

    def calibration_sources(self) -> frozenset[str]:
        """Return which covariances this strategy asks for, of "world", "seen" and "task"."""
        return frozenset()

    def expected_failures(self) -> dict[str, str]:
        """Return the contract checks that cannot hold for these fields, each with its reason."""
        return {}

    def refuses(self, others: Sequence[Strategy]) -> str | None:
        """Return why this strategy cannot be one with the other parts of a composition."""
        return None

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Choose what trains; the returned model computes what the given one did."""
        return model

    def batches(self, batches: Iterator[list[Example]]) -> Iterator[list[Example]]:
        """Return what is fed, one list of examples per micro-batch, before collation."""
        return batches

    def penalty(self, model: nn.Module, batch: Batch, outputs: Any) -> Tensor | float:
        """Return what is added to the loss: a finite scalar with a gradient, or 0.0."""
        return 0.0

    def before_step(self, model: nn.Module, step: Step) -> None:
        """Edit `.grad`: gradients are ready and not clipped yet."""

    def after_step(self, model: nn.Module, step: Step) -> None:
        """React to the weights having moved."""

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Fold and remember; what is returned is evaluated, kept, and starts the next task."""
        return model

    def switches(self) -> dict[str, Any]:
        """Return what every label must say of this strategy beside its name, e.g. `norm`.

        For fields that make it another method: `mine(norm=l1)`.
        """
        return {}

    def facts(self) -> dict[str, Any]:
        """Return what the record should say of the task that just ended, ready for JSON.

        Tokens of passes beside the training step go here: `tokens_extra_forward` and
        `tokens_extra_backward`.
        """
        return {}

    @classmethod
    def name(cls) -> str:
        """Return the name on the command line: `LoraNull` is `lora-null`."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    def params(self) -> dict[str, Any]:
        """Return the hyperparameters, ready for JSON and for the constructor."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}

    def state(self) -> dict[str, Any]:
        """Return everything that must survive a task boundary."""
        return {key: value for key, value in vars(self).items() if key.endswith("_")}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up where another object of equal params left off."""
        for key, value in state.items():
            setattr(self, key, value)
