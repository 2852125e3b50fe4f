"""Find the target linears of a decoder, attach adapters to them, fold the difference.

An adapted layer keeps its base weight untouched while it trains; what it learned is a difference
that is added once, in float32, when the task ends.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from clbench.errors import UserError
from clbench.linalg import exact_float32

Side = Literal["both", "up", "down"]
Form = Literal["difference", "zero"]


class AdaptedLinear(nn.Module):
    """A linear layer whose weight changes while a task trains: a frozen base and a change.

    A subclass stores what it trains, says what it adds to the base weight (`change`), and can be
    rebuilt from JSON settings, so that a checkpoint needs no pickle. It is also the `Trained`
    that guards see. `base` never moves until the layer is folded.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self._without = False

    def settings(self) -> dict[str, Any]:
        """Return what `rebuild` needs beside the base layer, ready for JSON."""
        raise NotImplementedError

    @classmethod
    def rebuild(cls, base: nn.Module, settings: Mapping[str, Any]) -> AdaptedLinear:
        """Return a layer of the recorded structure; its tensors are loaded afterwards."""
        raise NotImplementedError

    def change(self) -> Tensor:
        """Return what folding adds to the base weight, (out, in), at least float32."""
        raise NotImplementedError

    def delta(self) -> Tensor:
        """Return the weight's change since the start of the task, (out, in), with gradient."""
        raise NotImplementedError

    def scale_delta(self, alpha: float) -> None:
        """Multiply the change since the start of the task by `alpha`, in place."""
        raise NotImplementedError

    def start(self) -> dict[str, Tensor]:
        """Return the values that the trainables had at the start of the task."""
        raise NotImplementedError

    def start_task(self) -> None:
        """Take the present values as the start of a task, where a layer is carried on."""
        raise NotImplementedError

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


def attach(
    model: nn.Module,
    name: str,
    up: Tensor,
    down: Tensor,
    *,
    scale: float,
    trains: Side = "both",
    form: Form = "difference",
    carry: bool = False,
) -> FactorLinear:
    """Put factors on one linear layer of the model and return what trains; see FactorLinear.

    `up` is (out, rank) and `down` (rank, in). Freeze the rest of the model with `freeze`.
    """
    base = model.get_submodule(name)
    layer = FactorLinear(base, up, down, scale=scale, trains=trains, form=form, carry=carry)
    replace(model, name, layer)
    return layer


def adapted(model: nn.Module) -> dict[str, AdaptedLinear]:
    """Return the adapted layers of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, AdaptedLinear)}


def freeze(model: nn.Module) -> None:
    """Let nothing in the model train."""
    model.requires_grad_(False)


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Turn every adapted layer back into a plain one that holds its change; returns the model.

    The difference is formed in float32 and rounded once to the dtype of the weight, so a layer
    that did not train keeps its weight bit for bit.
    """
    for name, layer in adapted(model).items():
        layer.weight.copy_(layer.folded())
        replace(model, name, layer.base)
    return model


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one that has this name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer.train(model.get_submodule(name).training))


def structure(model: nn.Module) -> list[dict[str, Any]]:
    """Return, ready for JSON, which layers are adapted and how; empty for a plain model."""
    return [
        {
            "path": name,
            "class": f"{type(layer).__module__}:{type(layer).__qualname__}",
            "settings": layer.settings(),
        }
        for name, layer in adapted(model).items()
    ]


def rebuild(model: nn.Module, recorded: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Give a plain model the recorded structure, in place; load its tensors afterwards.

    Adapted layers say which of their own parameters train; the others are left as they are.
    Raises UserError for a class that is not an AdaptedLinear or for a model that does not fit.
    """
    for entry in recorded:
        layer_class = _adapted_class(entry["class"])
        try:
            base = model.get_submodule(entry["path"])
        except AttributeError:
            raise UserError(f"the model has no layer {entry['path']!r}") from None
        replace(model, entry["path"], layer_class.rebuild(base, entry["settings"]))
    return model


def _adapted_class(path: str) -> type[AdaptedLinear]:
    module_name, _, qualname = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        raise UserError(f"the adapter class {path!r} is not installed") from None
    if not (isinstance(found, type) and issubclass(found, AdaptedLinear)):
        raise UserError(f"{path!r} is not an adapter class")
    return found


def find_targets(model: nn.Module, pattern: str | None = None) -> tuple[str, ...]:
    """Return the names of the linear layers inside the decoder blocks, in model order.

    Never the output head and never an embedding. `pattern` is a regular expression searched in
    each name, such as `q_proj|v_proj`. Raises UserError for a quantized model, for a target
    whose weight is shared with another module, and where nothing matches.
    """
    if getattr(model, "is_quantized", False):
        raise UserError("a quantized model cannot be adapted: its weights take no float32 fold")
    names = _block_linears(model)
    if not names:
        raise UserError(f"{type(model).__name__} has no decoder blocks with linear layers")
    if pattern is not None:
        names = _matching(names, pattern)
    owners: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(path)
    for name in names:
        weight = cast(Tensor, model.get_submodule(name).weight)
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise UserError(
                f"{name} holds quantized weights ({weight.dtype}), which take no float32 fold; "
                "load the model in bfloat16, float16 or float32"
            )
        if len(owners[id(weight)]) > 1:
            shared = ", ".join(owners[id(weight)])
            raise UserError(f"{name} shares its weight ({shared}), so it cannot be a target")
    return names


def fused_parameters(model: nn.Module) -> tuple[str, ...]:
    """Return the names of parameters with three or more dimensions, for the record.

    Mixture-of-experts layers keep their experts in such tensors; they are no linear layers and
    are not adapted.
    """
    return tuple(name for name, p in model.named_parameters() if p.dim() > 2)


def is_transposed(layer: nn.Module) -> bool:
    """Say whether a layer stores its weight as (in, out), as GPT-2's Conv1D does."""
    return type(layer).__name__ == "Conv1D"


def weight_shape(layer: nn.Module) -> tuple[int, int]:
    """Return (out, in) of a linear layer, whatever its storage."""
    rows, columns = cast(Tensor, layer.weight).shape
    return (columns, rows) if is_transposed(layer) else (rows, columns)


def read_weight(layer: nn.Module) -> Tensor:
    """Return the weight of a linear layer as (out, in), detached, in its own dtype."""
    weight = cast(Tensor, layer.weight).detach()
    return weight.T if is_transposed(layer) else weight


def _block_linears(model: nn.Module) -> tuple[str, ...]:
    """Return the linears below the outermost module lists, adapted ones as one layer."""
    lists = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    inside = [f"{name}." for name, m in model.named_modules() if isinstance(m, AdaptedLinear)]
    return tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | AdaptedLinear) or is_transposed(module)
        if any(name.startswith(f"{prefix}.") for prefix in lists)
        and not any(name.startswith(prefix) for prefix in inside)
    )


def _matching(names: tuple[str, ...], pattern: str) -> tuple[str, ...]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"targets {pattern!r} is not a regular expression: {error}") from None
    found = tuple(name for name in names if expression.search(name))
    if not found:
        kinds = sorted({name.rpartition(".")[2] for name in names})
        raise UserError(f"targets {pattern!r} matches no layer; choices: {', '.join(kinds)}")
    return found


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
