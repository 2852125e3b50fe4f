"""The layers that adapters are made of: a frozen linear layer and a change to its weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from clbench.errors import UserError
from clbench.linalg import exact_float32

Side = Literal["both", "up", "down"]
Form = Literal["difference", "zero"]


class AdaptedLinear(nn.Module, ABC):
    """A linear layer whose weight changes while a task trains: a frozen base and a change.

    A subclass stores what it trains, says what it adds to the base weight (`change`), and can be
    rebuilt from JSON settings, so that a checkpoint needs no pickle. It is also the `Trained`
    that guards see; one that leaves out what only guards or carrying need raises UserError
    when asked. `base` never moves until the layer is folded.
    """

    carry: bool = False  # whether it stays, with what it learned, for the whole stream

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        assert not isinstance(base, AdaptedLinear), "this layer is adapted already"
        self.base = base.requires_grad_(False)
        self._without = False

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return what `rebuild` needs beside the base layer, ready for JSON."""

    @classmethod
    @abstractmethod
    def rebuild(cls, base: nn.Module, settings: Mapping[str, Any]) -> AdaptedLinear:
        """Return a layer of the recorded structure; its tensors are loaded afterwards."""

    @abstractmethod
    def change(self) -> Tensor:
        """Return what folding adds to the base weight, (out, in), at least float32."""

    def not_a_weight(self) -> str | None:
        """Return what this layer computes that no weight can hold, None if folding loses nothing.

        A sentence without a subject, e.g. "its output is divided by a norm".
        """
        return None

    def delta(self) -> Tensor:
        """Return the weight's change since the start of the task, (out, in), with gradient.

        For a layer that every task attaches anew, that is all of its change.
        """
        return self.change()

    def scale_delta(self, alpha: float) -> None:
        """Multiply the change since the start of the task by `alpha`, in place."""
        raise self._cannot("scale its change")

    def shift(self, change: Tensor) -> None:
        """Add `change`, (out, in), to the weight that the task started from, in place.

        The change since then stays what it is. Rounds to the dtype of the weight.
        """
        raise self._cannot("move the weight that it started from")

    def start(self) -> dict[str, Tensor]:
        """Return the values that the trainables had at the start of the task."""
        raise self._cannot("say where it started")

    def start_task(self) -> None:
        """Take the present values as the start of a task, where a layer is carried on."""
        raise self._cannot("be carried on to another task")

    def _cannot(self, what: str) -> UserError:
        return UserError(f"an adapter layer of type {type(self).__name__} cannot {what}")

    def squared_norm(self) -> Tensor:
        """Return the squared Frobenius norm of `delta()`, a scalar with gradient."""
        return self.delta().square().sum()

    def trainables(self) -> dict[str, nn.Parameter]:
        """Return the parameters that train, by local name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @contextmanager
    def without_delta(self) -> Iterator[None]:
        """Compute, inside the context, without this task's change."""
        before, self._without = self._without, True
        try:
            yield
        finally:
            self._without = before

    @torch.no_grad()
    def folded(self) -> Tensor:
        """Return base weight + change, in the base's layout and dtype, rounded once.

        Where the change is zero the base's own bits are kept (-0.0 + 0.0 would be 0.0).
        """
        change = self.change()
        if is_transposed(self.base):
            change = change.T
        moved = (self.weight.to(change.dtype) + change).to(self.weight.dtype)
        return torch.where(change == 0, self.weight, moved)

    @property
    def weight(self) -> Tensor:
        """Return the base weight, in the base layer's own layout."""
        return cast(Tensor, self.base.weight)

    @property
    def bias(self) -> Tensor | None:
        """Return the base layer's bias."""
        return cast("Tensor | None", self.base.bias)


class FactorLinear(AdaptedLinear):
    """A frozen linear layer plus two low-rank factors.

    It computes `W x + s (up down - up0 down0) x`, where up0 and down0 are the factors as they
    were attached. The difference is written `L R` with `L = [up - up0, up0]` and
    `R = [down; down - down0]`: exactly zero before the first step in any dtype, and without the
    cancellation that `up down` minus `up0 down0` suffers under bfloat16 autocast.
    `form="zero"` says that up0 down0 is zero, so that `L R = up down`. The factors are float32
    on any base dtype (float64 on a float64 base).

    With `carry` the factors live on for the whole stream; `start_task` then moves the point that
    `delta` and `start` refer to, while the fold still refers to the attached factors.
    """

    up: nn.Parameter  # (out, rank)
    down: nn.Parameter  # (rank, in)
    up0: Tensor | None  # as attached; None for a factor that does not train
    down0: Tensor | None
    up_start: Tensor | None  # at the start of a carried task; None while that is as attached
    down_start: Tensor | None

    def __init__(
        self,
        base: nn.Module,
        up: Tensor,
        down: Tensor,
        *,
        scale: float,
        trains: Side = "both",
        form: Form = "difference",
        carry: bool = False,
    ) -> None:
        super().__init__(base)
        assert (up.shape[0], down.shape[1]) == weight_shape(base), (up.shape, down.shape)
        assert up.shape[1] == down.shape[0], (up.shape, down.shape)
        self.scale, self.trains, self.form, self.carry = scale, trains, form, carry
        self._gain = 1.0
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        for name, factor in (("up", up), ("down", down)):
            moves = trains in (name, "both")
            value = factor.detach().to(self.weight.device, dtype, copy=True).contiguous()
            self.register_parameter(name, nn.Parameter(value, requires_grad=moves))
            self.register_buffer(f"{name}0", value.clone() if moves else None)
            self.register_buffer(f"{name}_start", None)

    @property
    def rank(self) -> int:
        """Return the rank of this layer's factors."""
        return self.down.shape[0]

    @property
    def attached_down(self) -> Tensor:
        """Return `down` as it was attached, (rank, in)."""
        return (self.down if self.down0 is None else self.down0).detach()

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted output, in the dtype of the base layer's output."""
        y: Tensor = self.base(x)
        if not self._without:
            left, right = self._since_attached(self.up, self.down)
        elif self.carry:
            left, right = self._since_attached(*self._task_start())
        else:
            return y
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(right.dtype)
        hidden = functional.linear(x, right) * (self.scale * self._gain)
        return y + functional.linear(hidden, left).to(y.dtype)

    def settings(self) -> dict[str, Any]:
        """Return rank, scale, trained side, form, and whether the factors are carried on."""
        return {
            "rank": self.rank,
            "scale": self.scale,
            "trains": self.trains,
            "form": self.form,
            "carry": self.carry,
            "started": self.up_start is not None or self.down_start is not None,
        }

    @classmethod
    def rebuild(cls, base: nn.Module, settings: Mapping[str, Any]) -> FactorLinear:
        """Return a layer with factors of the recorded shape, all zero."""
        options = dict(settings)
        rank, started = options.pop("rank"), options.pop("started")
        num_out, num_in = weight_shape(base)
        layer = cls(base, torch.zeros(num_out, rank), torch.zeros(rank, num_in), **options)
        if started:
            layer.start_task()
        return layer

    @torch.no_grad()
    def change(self) -> Tensor:
        """Return `s (up down - up0 down0)`, (out, in)."""
        return self._product(*self._since_attached(self.up, self.down))

    def low_rank_delta(self) -> tuple[Tensor, Tensor]:
        """Return L (out, r) and R (r, in) with `delta() = scale * L @ R`; r <= 2 rank.

        On the untouched base weight they are a plain adapter that starts at zero.
        """
        if self.carry and self.settings()["started"]:
            return _difference(self.up, self.down, self.up_start, self.down_start)
        return self._since_attached(self.up, self.down)

    def delta(self) -> Tensor:
        """Return the weight's change since the start of the task, (out, in), with gradient."""
        return self._product(*self.low_rank_delta())

    def squared_norm(self) -> Tensor:
        """Return `s^2 ||L R||^2` from the two small Gram matrices; `L R` is not formed."""
        with _plain_float32(self.up):
            left, right = self.low_rank_delta()
            grams = (left.T @ left) * (right @ right.T)  # (r, r)
            return (self.scale * self._gain) ** 2 * grams.sum()

    def scale_delta(self, alpha: float) -> None:
        """Multiply the change since the start of the task by `alpha`; raises UserError on carry."""
        if self.carry:
            raise UserError(
                "between_tasks='carry' keeps the factors, so this task's change alone cannot be "
                "scaled; choose between_tasks='fold'"
            )
        self._gain *= alpha

    @torch.no_grad()
    def shift(self, change: Tensor) -> None:
        """Add `change`, (out, in), to the base weight, in place."""
        self.weight.add_(change.T if is_transposed(self.base) else change)

    def start(self) -> dict[str, Tensor]:
        """Return the values that the trainables had at the start of the task."""
        values = dict(zip(("up", "down"), self._task_start(), strict=True))
        return {name: values[name].detach() for name in self.trainables()}

    def start_task(self) -> None:
        """Take the present factors as the start of a task."""
        for name, value in self.trainables().items():
            setattr(self, f"{name}_start", value.detach().clone())

    def _task_start(self) -> tuple[Tensor, Tensor]:
        up = self.up0 if self.up_start is None else self.up_start
        down = self.down0 if self.down_start is None else self.down_start
        return (self.up if up is None else up), (self.down if down is None else down)

    def _since_attached(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        if self.form == "zero":
            return up, down
        return _difference(up, down, self.up0, self.down0)

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        with _plain_float32(left):
            return (left * (self.scale * self._gain)) @ right


def is_transposed(layer: nn.Module) -> bool:
    """Say whether a layer stores its weight as (in, out), as GPT-2's Conv1D does."""
    plain = layer.base if isinstance(layer, AdaptedLinear) else layer
    return type(plain).__name__ == "Conv1D"


def weight_shape(layer: nn.Module) -> tuple[int, int]:
    """Return (out, in) of a linear layer, whatever its storage."""
    rows, columns = cast(Tensor, layer.weight).shape
    return (columns, rows) if is_transposed(layer) else (rows, columns)


def read_weight(layer: nn.Module) -> Tensor:
    """Return the weight that a linear layer computes with, as (out, in), in its own dtype."""
    if isinstance(layer, AdaptedLinear):
        weight = layer.folded()
    else:
        weight = cast(Tensor, layer.weight).detach()
    return weight.T if is_transposed(layer) else weight


def _difference(
    up: Tensor, down: Tensor, up0: Tensor | None, down0: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return L, R with `L R = up down - up0 down0`; None stands for a factor that is frozen."""
    if down0 is None:
        assert up0 is not None
        return up - up0, down
    if up0 is None:
        return up, down - down0
    return torch.cat((up - up0, up0), 1), torch.cat((down, down - down0), 0)


@contextmanager
def _plain_float32(tensor: Tensor) -> Iterator[None]:
    with torch.autocast(tensor.device.type, enabled=False), exact_float32():
        yield
