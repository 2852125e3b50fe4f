"""SECURA: an over-parameterized CUR core, and S-MagNorm on the layer's output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clbench.adapters import adapted, is_transposed
from clbench.linalg import seeded_generator
from clbench.strategy import Step, TaskContext

from .cur import Chosen, CoreLinear, CurStrategy, Selection, blank

Norm = Literal["off", "meant", "executed"]
Scope = Literal["token", "tensor"]
NORMS, SCOPES = ("off", "meant", "executed"), ("token", "tensor")
TINY = 1e-10  # what the published ratios add to their denominators
GATE_DIVISOR, GATE_SHARE, GATE_FACTOR = 1.2, 0.9, 0.99  # of the released decay gate


def divisor(plain: Tensor, change: Tensor, norm: Norm, scope: Scope) -> Tensor:
    """Return S-MagNorm's divisor D of `plain + (plain + change)`, both (..., out), no gradient.

    With the ratio rho = |change / (plain + 1e-10)| of every element and the logistic function s,
    D is 2 - s(6 (rho / (max rho + 1e-10) - 1/2)) as "meant" and 2 - s(6 rho) as "executed" by
    the released code. The maximum is that of a token's outputs or of the whole tensor, and where
    it is 0 D is 2, so that an untrained layer computes what its base does.
    """
    ratio = (change / (plain + TINY)).detach().abs()
    largest = ratio.amax(-1, keepdim=True) if scope == "token" else ratio.amax()
    level = ratio / (largest + TINY) - 0.5 if norm == "meant" else ratio
    return torch.where(largest == 0, 2.0, 2.0 - torch.sigmoid(6.0 * level))


class CabrLinear(CoreLinear):
    """`W x + C A B R x`, its output divided by S-MagNorm, with an A and a B that train.

    `up` is A, (rank, inner), and `down` is B, (inner, rank), which starts at zero. With
    `norm="off"` there is no divisor. `offset` is an output bias of its own, which no weight can
    hold. A layer that `merges` keeps the weight of the start of the task, because its base moves.

    The divisor acts on outputs and belongs to no weight: `change`, `delta`, `squared_norm` and
    `folded` are those of `C A B R`, and `without_delta` computes with the A, B and divisor of the
    start of the task.
    """

    up: nn.Parameter
    down: nn.Parameter
    up_start: Tensor
    down_start: Tensor
    offset: nn.Parameter
    offset_start: Tensor
    weight_start: Tensor
    num_drawn: Tensor  # () int64: times that the gate drew channels

    def __init__(
        self,
        base: nn.Module,
        chosen: Chosen,
        up: Tensor,
        *,
        norm: Norm,
        norm_scope: Scope,
        merges: bool,
        bias: bool,
        gate_seed: str | None,
        carry: bool = False,
    ) -> None:
        super().__init__(base, chosen, {"up": up, "down": torch.zeros(up.T.shape)}, carry)
        self.norm, self.norm_scope, self.merges = norm, norm_scope, merges
        self.gate_seed = gate_seed
        self.has_offset = bias
        if bias:
            self._train("offset", torch.zeros(len(chosen.columns)))
        if merges:
            self.register_buffer("weight_start", self.weight.detach().clone())
        if gate_seed is not None:
            self.register_buffer("num_drawn", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Return the divided output, in the dtype of the base layer's output."""
        y: Tensor = self._base(x)
        added = self._added(x)
        if self.has_offset:
            added = added + (self.offset_start if self._without else self.offset)
        if self.norm == "off":
            return y + added.to(y.dtype)
        exact = torch.promote_types(y.dtype, torch.float32)
        plain, change = y.to(exact), added.to(exact)
        found = divisor(plain, change, self.norm, self.norm_scope)
        output = (2.0 * plain + change) / found
        if self.gate_seed is not None and self.training:
            output = output * self._gate(found, self.gate_seed)
        return output.to(y.dtype)

    def _base(self, x: Tensor) -> Tensor:
        output: Tensor
        if self.merges and self._without:
            output = functional_call(self.base, {"weight": self.weight_start}, (x,))
        else:
            output = self.base(x)
        return output

    def _gate(self, found: Tensor, seed: str) -> Tensor:
        """Return what the decay gate multiplies each output with, (out,)."""
        factor = torch.ones(found.shape[-1], dtype=found.dtype)
        if float((found <= GATE_DIVISOR).double().mean()) > GATE_SHARE:
            count = max((len(factor) - self.rank) // 2, len(factor) // 4)
            generator = seeded_generator(seed, "gate", int(self.num_drawn))
            factor[torch.randperm(len(factor), generator=generator)[:count]] = GATE_FACTOR
            self.num_drawn += 1
        return factor.to(found.device)

    def settings(self) -> dict[str, Any]:
        """Return the sizes and all switches."""
        return {
            "rank": self.rank,
            "inner": self.up.shape[1],
            "norm": self.norm,
            "norm_scope": self.norm_scope,
            "merges": self.merges,
            "bias": self.has_offset,
            "gate_seed": self.gate_seed,
            "carry": self.carry,
        }

    @classmethod
    def rebuild(cls, base: nn.Module, settings: Mapping[str, Any]) -> CabrLinear:
        """Return a layer of the recorded sizes and switches, its tensors zero."""
        options = dict(settings)
        rank, inner = options.pop("rank"), options.pop("inner")
        return cls(base, blank(base, rank), torch.zeros(rank, inner), **options)

    def not_a_weight(self) -> str | None:
        """Return what folding would lose: the divisor, the bias."""
        if self.norm != "off":
            return f"its output is divided by S-MagNorm (norm={self.norm!r})"
        return "it adds a bias of its own (bias=True)" if self.has_offset else None

    def keep_weight_only(self) -> None:
        """Give up the divisor, the gate and the bias, so that the layer can be folded."""
        self.norm, self.gate_seed, self.has_offset = "off", None, False

    @torch.no_grad()
    def merge(self) -> None:
        """Add `C A B R` to the base weight, in its own dtype, and set B to zero."""
        self.weight.copy_(self.folded())
        self.down.zero_()

    def core_delta(self) -> Tensor:
        """Return `A B` minus what it was at the start of the task, free of cancellation."""
        return (self.up - self.up_start) @ self.down + self.up_start @ (self.down - self.down_start)

    def scale_core_delta(self, alpha: float) -> None:
        """Move B by the least that turns `A B` into start + alpha * change."""
        inverse = torch.linalg.pinv(self.up.double())  # (inner, rank); A has full row rank
        self.down.add_(((alpha - 1.0) * inverse @ self.core_delta().double()).to(self.down.dtype))

    def delta(self) -> Tensor:
        """Return the weight's change since the start of the task, merges included, (out, in)."""
        learned = super().delta()
        if not self.merges:
            return learned
        merged = self._merged()
        return learned + (merged.T if is_transposed(self.base) else merged)

    def squared_norm(self) -> Tensor:
        """Return `||delta()||^2`, a scalar with gradient."""
        return self.delta().square().sum() if self.merges else super().squared_norm()

    @torch.no_grad()
    def scale_delta(self, alpha: float) -> None:
        """Multiply the change since the start of the task by `alpha`: core, merges and bias."""
        super().scale_delta(alpha)
        if self.merges:
            self.weight.sub_((1.0 - alpha) * self._merged())
        if self.has_offset:
            self.offset.lerp_(self.offset_start, 1.0 - alpha)

    @torch.no_grad()
    def shift(self, change: Tensor) -> None:
        """Add `change`, (out, in), to the weight that the task started from, in place."""
        super().shift(change)
        if self.merges:
            self.weight_start.add_(change.T if is_transposed(self.base) else change)

    def _merged(self) -> Tensor:
        """Return what merges added to the weight in this task, in the base's own layout."""
        dtype = self.rows.dtype
        return self.weight.to(dtype) - self.weight_start.to(dtype)


@dataclass
class Secura(CurStrategy):
    """SECURA (arXiv 2502.18168): CURLoRA with a core `A B`, its output divided by S-MagNorm.

    `merge_every=None` keeps one C, A, B, R for the whole stream; "task" folds at the end of
    each task; a number of steps merges `C A B R` into the frozen weight after every so many and
    folds the rest at the end. With a divisor the layer stays in the model that is scored and
    kept, unless it is folded, which then changes the function.
    """

    rank: int = 150
    selection: Selection = "smallest"
    inner: int = 200
    norm: Norm = "meant"
    norm_scope: Scope = "token"
    merge_every: int | Literal["task"] | None = None
    bias: bool = False
    decay_gate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_count("inner")
        if self.inner < self.rank:
            self._refuse("inner", f"less than rank {self.rank}, so it would bound the core's rank")
        for field, choices in (("norm", NORMS), ("norm_scope", SCOPES)):
            if getattr(self, field) not in choices:
                self._refuse(field, f"unknown; choices: {', '.join(choices)}")
        merge = self.merge_every
        if merge not in (None, "task") and (type(merge) is not int or merge < 1):
            self._refuse("merge_every", "neither task, none nor a positive number of steps")
        for field in ("norm_scope", "decay_gate"):
            if self.norm == "off" and getattr(self, field) != getattr(Secura, field):
                self._refuse(field, "without meaning for norm='off', which has no divisor")

    @property
    def between_tasks(self) -> Literal["fold", "carry"]:
        """Return "carry" without merges: the layers then live for the whole stream."""
        return "carry" if self.merge_every is None else "fold"

    @property
    def merges(self) -> bool:
        """Return whether the frozen weight moves while a task trains."""
        return isinstance(self.merge_every, int)

    def switches(self) -> dict[str, Any]:
        """Return S-MagNorm's form and the merges, and what else is not the default."""
        found = {"norm": self.norm, "merge": self.merge_every or "none"}
        for field in ("norm_scope", "bias", "decay_gate", "selection"):
            if getattr(self, field) != getattr(Secura, field):
                found[field] = getattr(self, field)
        return found

    def expected_failures(self) -> dict[str, str]:
        """Return what merges and a folded divisor or bias break."""
        found = {}
        if self.merges:
            found["only_trainables_move"] = (
                f"merge_every={self.merge_every} adds the change to the frozen weight while the "
                "task trains, as published"
            )
        lost = [
            *(["the bias is never merged"] if self.bias else []),
            # Merged after every step, B is zero and the divisor 2: there is nothing to lose.
            *(["S-MagNorm is no part of a weight"] if self._divides_at_the_end() else []),
        ]
        if self.between_tasks == "fold" and lost:
            found["end_task_keeps_function"] = f"the layer is folded, and {' and '.join(lost)}"
        return found

    def _divides_at_the_end(self) -> bool:
        return self.norm != "off" and (self.merge_every != 1 or self.bias)

    def kept(self, weight: Tensor, chosen: Chosen) -> dict[str, Tensor]:
        """Return C, R and A, which starts as the first block of the weight, (rank, inner)."""
        inner = min(self.inner, weight.shape[1])
        up = weight.detach()[: len(chosen.rows), :inner].clone()
        return {**super().kept(weight, chosen), "up": up}

    def layer(self, base: nn.Module, kept: Mapping[str, Tensor], seed: str) -> CabrLinear:
        """Return a layer with B = 0."""
        return CabrLinear(
            base,
            Chosen(**{name: value for name, value in kept.items() if name != "up"}),
            kept["up"],
            norm=self.norm,
            norm_scope=self.norm_scope,
            merges=self.merges,
            bias=self.bias,
            gate_seed=seed if self.decay_gate else None,
            carry=self.between_tasks == "carry",
        )

    def caps(self, layer: CabrLinear) -> dict[str, int]:
        """Return the rank and inner size that a layer has instead of the ones asked for."""
        inner = layer.up.shape[1]
        return super().caps(layer) | ({"inner": inner} if inner < self.inner else {})

    def after_step(self, model: nn.Module, step: Step) -> None:
        """Merge the change into the frozen weights where a window of steps ends."""
        if isinstance(self.merge_every, int) and (step.index + 1) % self.merge_every == 0:
            for layer in _layers(model):
                layer.merge()

    def end_task(self, model: nn.Module, task: TaskContext) -> nn.Module:
        """Fold `C A B R` alone where the fields say so; otherwise the layers stay."""
        if self.between_tasks == "fold":
            for layer in _layers(model):
                layer.keep_weight_only()
        return super().end_task(model, task)


def _layers(model: nn.Module) -> Iterator[CabrLinear]:
    return (layer for layer in adapted(model).values() if isinstance(layer, CabrLinear))
