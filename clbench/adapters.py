"""Find the target linears of a decoder, attach adapters to them, fold the difference.

An adapted layer keeps its base weight untouched while it trains; what it learned is a difference
that is added once, in float32, when the task ends.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from clbench.errors import UserError
from clbench.layers import (
    AdaptedLinear,
    FactorLinear,
    Form,
    Side,
    is_transposed,
    read_weight,
    weight_shape,
)

__all__ = [
    "AdaptedLinear",
    "FactorLinear",
    "Form",
    "Side",
    "adapted",
    "attach",
    "find_targets",
    "fold",
    "folded_state",
    "freeze",
    "fused_parameters",
    "is_transposed",
    "read_weight",
    "rebuild",
    "replace",
    "structure",
    "weight_shape",
]


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
    that did not train keeps its weight bit for bit. Raises UserError, before anything is folded,
    for a layer whose function is not that of a weight.
    """
    for name, layer in _foldable(model).items():
        layer.weight.copy_(layer.folded())
        replace(model, name, layer.base)
    return model


@torch.no_grad()
def folded_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state that the model would have folded, leaving it as it is; raises UserError."""
    state = dict(model.state_dict())
    for name, layer in _foldable(model).items():
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
        state[f"{name}.weight"] = layer.folded()
        if layer.bias is not None:
            state[f"{name}.bias"] = layer.bias.detach()
    return state


def _foldable(model: nn.Module) -> dict[str, AdaptedLinear]:
    layers = adapted(model)
    for name, layer in layers.items():
        lost = layer.not_a_weight()
        if lost is not None:
            raise UserError(f"{name} cannot be folded into a weight: {lost}")
    return layers


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
    quantization = getattr(model, "quantization_method", None)  # set by transformers
    if quantization is not None:
        raise UserError(
            f"the model is quantized ({quantization}), so its weights take no float32 fold; "
            "load it in bfloat16, float16 or float32"
        )
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
