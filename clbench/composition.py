"""Several strategies as one: `lora-null+ewc+replay` is an adapter and two guards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clbench.errors import UserError
from clbench.strategy import Batch, Example, Step, Strategy, TaskContext

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Composed(Strategy):
    """One adapter and its guards, called in the order that lets each see what it must.

    Guards begin after the adapter, because they must see what trains and where it starts, and
    end before it, because they must see the factors before these are folded.
    """

    parts: tuple[Strategy, ...]  # the adapter first, then the guards as written

    @property
    def label(self) -> str:
        """Return the composition as a reader sees it: parts with their switches."""
        return "+".join(label(part) for part in self.parts)

    def calibration_sources(self) -> frozenset[str]:
        """Return the union of what the parts ask for."""
        return frozenset().union(*(part.calibration_sources() for part in self.parts))

    def expected_failures(self) -> dict[str, str]:
        """Return the checks that one of the parts cannot pass."""
        return {
            check: reason
            for part in self.parts
            for check, reason in part.expected_failures().items()
        }

    def begin_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Attach, then let the guards look, left to right."""
        for part in self.parts:
            model = part.begin_task(model, task)
        return model

    def batches(self, batches: Iterator[list[Example]]) -> Iterator[list[Example]]:
        """Wrap the stream of examples, left to right."""
        for part in self.parts:
            batches = part.batches(batches)
        return batches

    def penalty(self, model: nn.Module, batch: Batch, outputs: Any) -> Tensor | float:
        """Return the sum of the parts' penalties."""
        total: Tensor | float = 0.0
        for part in self.parts:
            total = total + part.penalty(model, batch, outputs)
        return total

    def before_step(self, model: nn.Module, step: Step) -> None:
        """Let the parts edit the gradients, left to right."""
        for part in self.parts:
            part.before_step(model, step)

    def after_step(self, model: nn.Module, step: Step) -> None:
        """Tell the adapter, then the guards, that the weights moved."""
        for part in self.parts:
            part.after_step(model, step)

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Let the guards remember, right to left; the adapter folds last."""
        for part in reversed(self.parts):
            model = part.end_task(model, task)
        return model

    def facts(self) -> dict[str, Any]:
        """Return each part's facts under its name."""
        return {part.name(): part.facts() for part in self.parts if part.facts()}

    def params(self) -> dict[str, Any]:
        """Return each part's hyperparameters under its name."""
        return {part.name(): part.params() for part in self.parts}

    def state(self) -> dict[str, Any]:
        """Return each part's state under its name."""
        return {part.name(): part.state() for part in self.parts}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Hand each part its own state back."""
        for part in self.parts:
            part.load_state(state[part.name()])


def compose(
    parts: Sequence[Strategy], build: Callable[[str, Mapping[str, Any]], Strategy]
) -> Strategy:
    """Return one strategy for the parts of `a+b+c`.

    `build` makes an implied adapter from its name and the guard's defaults for its fields; the
    first guard that implies one decides. Raises UserError, with the reason, for a composition
    that cannot be.
    """
    names = [part.name() for part in parts]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"strategy {'+'.join(names)!r} names {twice[0]} twice")
    adapters = [part for part in parts if part.kind == "adapter"]
    guards = [part for part in parts if part.kind == "guard"]
    if len(adapters) > 1:
        raise UserError(
            f"{' and '.join(a.name() for a in adapters)} are both adapters; "
            "a composition has one adapter and any number of guards"
        )
    if not adapters:
        implying = next((guard for guard in guards if guard.implies), None)
        if implying is None or implying.implies is None:
            raise UserError(
                f"{'+'.join(names)!r} has no adapter; write for example lora+{names[0]}"
            )
        adapters = [build(implying.implies, implying.implies_params)]
    chosen = (*adapters, *guards)
    _refuse_two_that_rewrite_gradients(chosen)
    for part in chosen:
        reason = part.refuses([other for other in chosen if other is not part])
        if reason is not None:
            raise UserError(f"strategy {'+'.join(p.name() for p in chosen)!r}: {reason}")
    return Composed(chosen) if guards else adapters[0]


def label(strategy: Strategy) -> str:
    """Return a strategy as a reader sees it, e.g. "lora+ewc" or "mine(norm=l1)+replay"."""
    if isinstance(strategy, Composed):
        return strategy.label
    switches = ", ".join(f"{key}={value}" for key, value in strategy.switches().items())
    return f"{strategy.name()}({switches})" if switches else strategy.name()


def params_by_part(strategy: Strategy) -> dict[str, dict[str, Any]]:
    """Return the hyperparameters of every part under the part's name."""
    parts = strategy.parts if isinstance(strategy, Composed) else (strategy,)
    return {part.name(): part.params() for part in parts}


def _refuse_two_that_rewrite_gradients(parts: Sequence[Strategy]) -> None:
    rewrite = [p.name() for p in parts if type(p).before_step is not Strategy.before_step]
    if len(rewrite) > 1:
        raise UserError(
            f"{' and '.join(rewrite)} both rewrite gradients, and the second would undo what the "
            "first ensures; use one of them"
        )
