"""DoRA: a low-rank adapter that trains the length of every weight row apart from its direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clbench.adapters import AdaptedLinear, is_transposed, replace, weight_shape
from clbench.linalg import exact_float32

from .factors import Start
from .lora import RandomStart


class DoraLinear(AdaptedLinear):
    """A linear layer that computes with `(m / ||V||) V`, where `V = W + s up down`, row by row.

    m starts at the row norms of W and the product at 0. What is added to W is written
    `g W + (1 + g) s up down` with `g = m / ||V|| - 1`, and g from the difference of the norms,
    so that it is exactly zero before training and accurate soon after. The norm of V passes no
    gradient on (arXiv 2402.09353, section 4.3).
    """

    up: nn.Parameter  # (out, rank)
    down: nn.Parameter  # (rank, in)
    magnitude: nn.Parameter  # (out, 1)
    norm: Tensor  # (out, 1), of the rows of W
    up_start: Tensor  # at the start of the task
    down_start: Tensor
    magnitude_start: Tensor

    def __init__(
        self, base: nn.Module, up: Tensor, down: Tensor, *, scale: float, carry: bool = False
    ) -> None:
        super().__init__(base)
        self.scale, self.carry = scale, carry
        self._kept = 1.0  # share of the change that scale_delta has left
        weight = self._weight()
        norm = weight.norm(dim=1, keepdim=True)
        self.register_buffer("norm", norm)
        for name, value in (("up", up), ("down", down), ("magnitude", norm)):
            started = value.detach().to(weight, copy=True).contiguous()
            self.register_parameter(name, nn.Parameter(started))
            self.register_buffer(f"{name}_start", started.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted output, in the dtype of the base layer's output."""
        y: Tensor = self.base(x)
        if self._without and not self.carry:
            return y
        up, down, magnitude = self._values(at_start=self._without)
        gain = self._gain(up, down, magnitude).T  # (1, out)
        straight = y if self.bias is None else y - self.bias
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(down.dtype)
        bent = functional.linear(functional.linear(x, down) * self.scale, up)
        return y + (self._kept * (gain * straight + (1.0 + gain) * bent)).to(y.dtype)

    def settings(self) -> dict[str, Any]:
        """Return rank, scale, and whether the parameters are carried on."""
        return {"rank": len(self.down), "scale": self.scale, "carry": self.carry}

    @classmethod
    def rebuild(cls, base: nn.Module, settings: Mapping[str, Any]) -> DoraLinear:
        """Return a layer with factors of the recorded shape, all zero."""
        options = dict(settings)
        rank = options.pop("rank")
        num_out, num_in = weight_shape(base)
        return cls(base, torch.zeros(num_out, rank), torch.zeros(rank, num_in), **options)

    @torch.no_grad()
    def change(self) -> Tensor:
        """Return `(m / ||V||) V - W`, (out, in)."""
        return self._change(*self._values(at_start=False))

    def delta(self) -> Tensor:
        """Return the effective weight minus that at the start of the task, with gradient.

        As in training, no gradient passes through the norm of V.
        """
        change = self._change(*self._values(at_start=False))
        if not self.carry:
            return change
        with torch.no_grad():
            before = self._change(*self._values(at_start=True))
        return change - before

    def scale_delta(self, alpha: float) -> None:
        """Multiply the change since the start of the task by `alpha`; raises UserError on carry."""
        if self.carry:
            raise self._cannot("scale the change of one task while it is carried on")
        self._kept *= alpha

    def start(self) -> dict[str, Tensor]:
        """Return the values that the trainables had at the start of the task."""
        return {name: getattr(self, f"{name}_start") for name in self.trainables()}

    def start_task(self) -> None:
        """Take the present values as the start of a task."""
        for name, value in self.trainables().items():
            getattr(self, f"{name}_start").copy_(value.detach())

    def _values(self, *, at_start: bool) -> tuple[Tensor, Tensor, Tensor]:
        if at_start:
            return self.up_start, self.down_start, self.magnitude_start
        return self.up, self.down, self.magnitude

    def _change(self, up: Tensor, down: Tensor, magnitude: Tensor) -> Tensor:
        gain = self._gain(up, down, magnitude)
        with torch.autocast(up.device.type, enabled=False), exact_float32():
            product = (up * self.scale) @ down
        return self._kept * (gain * self._weight() + (1.0 + gain) * product)

    def _gain(self, up: Tensor, down: Tensor, magnitude: Tensor) -> Tensor:
        """Return `m / ||V|| - 1`, (out, 1), with the gradient of m alone.

        `||V||^2 - ||W||^2` comes from small matrices; V is not formed.
        """
        with torch.no_grad(), torch.autocast(up.device.type, enabled=False), exact_float32():
            crossed = 2.0 * self._weight() @ down.T + self.scale * up @ (down @ down.T)
            squares = (self.scale * up * crossed).sum(1, keepdim=True)
            norm = (self.norm.square() + squares).clamp(min=torch.finfo(up.dtype).tiny).sqrt()
            growth = squares / (norm + self.norm)
        return (magnitude - self.norm - growth) / norm

    def _weight(self) -> Tensor:
        """Return the frozen weight, (out, in), in the dtype of what trains."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        return weight.T if is_transposed(self.base) else weight


@dataclass
class Dora(RandomStart):
    """DoRA (Liu et al., arXiv 2402.09353): LoRA that trains the row norms of the weight as well.

    The norms are those over the inputs, one per output.
    """

    def attach(self, model: nn.Module, start: Start) -> DoraLinear:
        """Put starting factors and row norms on their layer."""
        base, carry = model.get_submodule(start.layer), self.between_tasks == "carry"
        layer = DoraLinear(base, *start.factors, scale=self.scale, carry=carry)
        replace(model, start.layer, layer)
        return layer
