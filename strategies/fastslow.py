"""A linear layer with two copies of one adapter, and what the decoder's layers return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clbench.adapters import AdaptedLinear, adapted, weight_shape
from clbench.linalg import exact_float32


class FastSlowLinear(AdaptedLinear):
    """A frozen linear layer plus low-rank factors in two copies: fast trains, slow follows it.

    It computes `W x + s up down x` with the fast factors in train mode and with the slow ones in
    eval mode, as a normalization layer does with its running statistics; `reading_slow` reads
    the slow ones in any mode. Whatever is asked of the layer's change (`delta`) refers to the
    copy that is read; the fold and the record refer to the slow one, which is what is scored.
    Both copies start from the same factors, whose product is zero, and are carried through the
    stream. All are float32 on any base dtype (float64 on a float64 base).
    """

    carry: bool = True

    up: nn.Parameter  # (out, rank), fast
    down: nn.Parameter  # (rank, in), fast

    def __init__(self, base: nn.Module, up: Tensor, down: Tensor, *, scale: float) -> None:
        super().__init__(base)
        assert (up.shape[0], down.shape[1]) == weight_shape(base), (up.shape, down.shape)
        self.scale = scale
        self._slow = False
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        for name, factor in (("up", up), ("down", down)):
            value = factor.detach().to(self.weight.device, dtype, copy=True).contiguous()
            self.register_parameter(name, nn.Parameter(value))
            for copy in (f"{name}_start", f"slow_{name}", f"slow_{name}_start"):
                self.register_buffer(copy, value.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted output, in the dtype of the base layer's output."""
        y: Tensor = self.base(x)
        up, down = self._factors(start=self._without)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(down.dtype)
        hidden = functional.linear(x, down) * self.scale
        return y + functional.linear(hidden, up).to(y.dtype)

    @torch.no_grad()
    def follow(self, weight: float) -> None:
        """Move the slow factors: slow = weight * slow + (1 - weight) * fast."""
        for name, fast in self.trainables().items():
            self.get_buffer(f"slow_{name}").lerp_(fast, 1.0 - weight)

    def settings(self) -> dict[str, Any]:
        """Return rank and scale."""
        return {"rank": self.down.shape[0], "scale": self.scale}

    @classmethod
    def rebuild(cls, base: nn.Module, settings: Mapping[str, Any]) -> FastSlowLinear:
        """Return a layer with factors of the recorded shape, all zero."""
        (num_out, num_in), rank = weight_shape(base), settings["rank"]
        factors = torch.zeros(num_out, rank), torch.zeros(rank, num_in)
        return cls(base, *factors, scale=settings["scale"])

    @torch.no_grad()
    def change(self) -> Tensor:
        """Return `s up down` of the slow copy, (out, in)."""
        with self._exact():
            return (self.get_buffer("slow_up") * self.scale) @ self.get_buffer("slow_down")

    def delta(self) -> Tensor:
        """Return how far the copy that is read has moved since the start of the task."""
        (up, down), (up0, down0) = self._factors(), self._factors(start=True)
        with self._exact():
            return self.scale * ((up - up0) @ down + up0 @ (down - down0))

    def start(self) -> dict[str, Tensor]:
        """Return the fast factors as they were at the start of the task."""
        return {name: self.get_buffer(f"{name}_start") for name in self.trainables()}

    def start_task(self) -> None:
        """Take the present factors of both copies as the start of a task.

        The slow copy goes on as new tensors: those of before are what the task started from.
        """
        for name, fast in self.trainables().items():
            slow = self.get_buffer(f"slow_{name}")
            setattr(self, f"{name}_start", fast.detach().clone())
            setattr(self, f"slow_{name}_start", slow)
            setattr(self, f"slow_{name}", slow.clone())

    def _factors(self, start: bool = False) -> tuple[Tensor, Tensor]:
        copy = "" if self.training and not self._slow else "slow_"
        when = "_start" if start else ""
        return getattr(self, f"{copy}up{when}"), getattr(self, f"{copy}down{when}")

    @contextmanager
    def _exact(self) -> Iterator[None]:
        with torch.autocast(self.weight.device.type, enabled=False), exact_float32():
            yield


def fast_slow_layers(model: nn.Module) -> dict[str, FastSlowLinear]:
    """Return the layers with two copies, by name."""
    return {n: layer for n, layer in adapted(model).items() if isinstance(layer, FastSlowLinear)}


@contextmanager
def reading_slow(model: nn.Module) -> Iterator[None]:
    """Compute, inside the context, with the slow copies, also in train mode."""
    layers = fast_slow_layers(model).values()
    for layer in layers:
        layer._slow = True
    try:
        yield
    finally:
        for layer in layers:
            layer._slow = False


class HiddenStates:
    """What each decoder layer returned in the latest forward pass, kept by hooks of its own."""

    def __init__(self, model: nn.Module) -> None:
        self._latest: dict[int, Tensor] = {}
        self._autocast = False, torch.bfloat16
        self._handles = [
            layer.register_forward_hook(partial(self._keep, number))
            for number, layer in enumerate(decoder_layers(model))
        ]

    def take(self) -> list[Tensor]:
        """Return the outputs, each (rows, tokens, width), and keep them no longer."""
        taken = [self._latest[number] for number in sorted(self._latest)]
        self._latest.clear()
        return taken

    def remove(self) -> None:
        """Remove the hooks, and no others."""
        for handle in self._handles:
            handle.remove()

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return a context that casts as the latest pass did."""
        enabled, dtype = self._autocast
        return torch.autocast(device.type, dtype=dtype, enabled=enabled)

    def _keep(self, number: int, layer: nn.Module, inputs: Any, output: Any) -> None:
        states: Tensor = output[0] if isinstance(output, tuple) else output
        self._latest[number] = states
        kind = states.device.type
        self._autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the members of the outermost module lists that hold adapted layers, in order."""
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    names = list(adapted(model))
    return [
        layer
        for name, members in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists)
        and any(adapter.startswith(f"{name}.") for adapter in names)
        for layer in members
    ]
