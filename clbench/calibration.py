"""Covariances of the present model's layer inputs, measured afresh before each task.

A covariance is the uncentered second moment of a layer's input: the sum of x x^T over the tokens
divided by their number. Layers that read the same vector share one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from clbench.adapters import FactorLinear, adapted, weight_shape
from clbench.errors import RunFailed, UserError
from clbench.linalg import exact_float32, spectrum

TOKENS_PER_FORWARD = 8192
ADVISED_TOKENS_PER_WIDTH = 8  # fewer let visibly more energy into the chosen null space
FLOAT32_NOISE = 1e-7  # eigenvalues below this share of the largest are as good as zero


class Windows(NamedTuple):
    """Token windows to calibrate on, and others to check the result on."""

    calibration: Tensor  # (num, length) int64
    held_out: Tensor  # (num held out, length) int64


class Group(NamedTuple):
    """Layers that read the same vector."""

    layers: tuple[str, ...]
    width: int  # of that vector
    num_bytes: int  # that its covariance takes


def draw_windows(
    texts: Sequence[str],
    tokenizer: Any,
    num: int,
    length: int,
    *,
    seed: int,
    index: int,
    held_out: float = 0.1,
) -> Windows:
    """Return full windows of text, drawn from (seed, task index), that share no token.

    The texts are shuffled and joined by blank lines; each window starts with the token that the
    tokenizer puts in front of a prompt, if any. `held_out` is the number of windows that are
    held out per calibration window. Raises UserError if the texts hold too few tokens.
    """
    shuffled = list(texts)
    random.Random(f"calibration windows/{seed}/{index}").shuffle(shuffled)
    total = num + math.ceil(held_out * num)
    opening = tokenizer("", verbose=False)["input_ids"][:1]
    prefix = opening if opening == [tokenizer.bos_token_id] else []
    body = length - len(prefix)
    ids: list[int] = []
    for start in range(0, len(shuffled), 64):
        if len(ids) >= total * body:
            break
        text = "".join(f"{part}\n\n" for part in shuffled[start : start + 64])
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < total * body:
        raise UserError(
            f"the calibration text holds {len(ids)} tokens, but {total} windows of {length} take "
            f"{total * body}: lower calibration num_windows ({num}) or window ({length})"
        )
    rows = [prefix + ids[i * body : (i + 1) * body] for i in range(total)]
    windows = torch.tensor(rows, dtype=torch.int64)
    return Windows(windows[:num], windows[num:])


def calibrate(
    model: nn.Module,
    windows: Tensor,
    targets: Sequence[str],
    *,
    budget_bytes: int,
    accumulate: Literal["float32", "float64"] = "float32",
    window_scaling: Literal["none", "published"] = "none",
    attention_mask: Tensor | None = None,
) -> Calibration:
    """Prepare the covariances of the targets' inputs on token windows, (num, length) int64.

    Nothing is summed yet, see Calibration. Tokens whose `attention_mask` is 0 are left out.
    `window_scaling="published"` does as the code released with CorDA and LoRA-Null: it divides
    each window's inputs by the absolute value of their maximum (not the maximum absolute value)
    and the sum by the number of windows.

    Raises UserError if there are fewer tokens than a target is wide, if the windows are longer
    than the model's positions, or if one covariance alone exceeds the budget.
    """
    tokens = windows.numel() if attention_mask is None else int(attention_mask.sum())
    widths = {name: weight_shape(model.get_submodule(name))[1] for name in targets}
    widest = max(targets, key=lambda name: widths[name])
    if tokens < widths[widest]:
        raise UserError(
            f"calibration has {tokens} tokens, but {widest} is {widths[widest]} wide, so its null "
            "space would be arbitrary; use more or longer calibration windows"
        )
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if positions is not None and windows.shape[1] > positions:
        raise UserError(
            f"calibration window {windows.shape[1]} is longer than the model's {positions} "
            "positions"
        )
    dtype = torch.float32 if accumulate == "float32" else torch.float64
    groups = [
        Group(layers, widths[layers[0]], dtype.itemsize * widths[layers[0]] ** 2)
        for layers in shared_inputs(model, windows[:1], targets)
    ]
    largest = max(groups, key=lambda group: group.num_bytes)
    if largest.num_bytes > budget_bytes:
        raise UserError(
            f"calibration budget_bytes {budget_bytes} is less than the {largest.num_bytes} that "
            f"the covariance of {largest.layers[0]} takes"
        )
    passes = _packed(groups, budget_bytes)
    scaled = window_scaling == "published"
    return Calibration(model, windows, attention_mask, passes, tokens, dtype, scaled)


class Calibration:
    """The covariances of one model on one set of windows.

    `covariances` maps each layer to its (in, in) covariance; layers that read the same vector get
    the same tensor. It is lazy: reading a layer runs a pass over the windows for as many layers
    as the memory budget holds and drops the sums of the pass before, so read layers in the
    mapping's own order, and reduce each to what is needed. Sums stay on the model's device.
    After `close` nothing can be read, because the model is about to change.
    """

    def __init__(
        self,
        model: nn.Module,
        windows: Tensor,
        mask: Tensor | None,
        passes: Sequence[tuple[Group, ...]],
        tokens: int,
        dtype: torch.dtype,
        scaled: bool,
    ) -> None:
        self.tokens = tokens  # that a covariance is the mean over
        self.tokens_forwarded = 0  # all passes together, for the cost
        self.passes = tuple(passes)
        self.covariances: Mapping[str, Tensor] = _Lazy(self._covariance, self.passes)
        self._model: nn.Module | None = model
        self._windows, self._mask, self._dtype, self._scaled = windows, mask, dtype, scaled
        self._resident: dict[str, Tensor] = {}
        self._diagnostics: dict[str, dict[str, float]] = {}

    def diagnostics(self) -> dict[str, dict[str, float]]:
        """Return, ready for JSON, the numbers of every layer that was read so far."""
        return dict(self._diagnostics)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a user should be warned of."""
        widest = max((group for part in self.passes for group in part), key=lambda g: g.width)
        advised = ADVISED_TOKENS_PER_WIDTH * widest.width
        if self.tokens >= advised:
            return ()
        return (
            f"calibration has {self.tokens} tokens; {widest.layers[0]} is {widest.width} wide and "
            f"needs {advised} for a null space that holds on other text",
        )

    def close(self) -> None:
        """Free the sums and forget the model."""
        self._resident.clear()
        self._model = None

    def _covariance(self, layer: str) -> Tensor:
        if layer not in self._resident:
            part = next(p for p in self.passes if any(layer in group.layers for group in p))
            self._resident.clear()
            self._run(part)
        return self._resident[layer]

    def _run(self, part: Sequence[Group]) -> None:
        if self._model is None:
            raise RuntimeError("this calibration is closed: the model may have changed since")
        sums = {group: _Sum(group.width, self._dtype) for group in part}
        watchers = {group.layers[0]: total.add for group, total in sums.items()}
        _observe(self._model, self._windows, self._mask, watchers, scaled=self._scaled)
        self.tokens_forwarded += self.tokens
        for group, total in sums.items():
            covariance = total.divided_by(len(self._windows) if self._scaled else total.tokens)
            if not covariance.isfinite().all() or not covariance.any():
                raise RunFailed(
                    f"calibration: the inputs of {group.layers[0]} are not finite, or all zero"
                )
            numbers = _numbers(covariance, total.tokens)
            self._resident |= dict.fromkeys(group.layers, covariance)
            self._diagnostics |= dict.fromkeys(group.layers, numbers)


def shared_inputs(
    model: nn.Module, windows: Tensor, targets: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    """Return the targets in groups that are given the very same tensor, in model order.

    Found by running the model on the first tokens of the first window. Raises UserError for a
    target that a forward pass does not reach.
    """
    seen: dict[str, Tensor] = {}  # holds the tensors, so that no address is used twice
    with _watched(model, {name: partial(seen.setdefault, name) for name in targets}):
        _forward(model, windows[:1, :8], None)
    unreached = [name for name in targets if name not in seen]
    if unreached:
        raise UserError(f"{unreached[0]} is not used in a forward pass and cannot be calibrated")
    groups: dict[int, list[str]] = {}
    for name in targets:
        groups.setdefault(id(seen[name]), []).append(name)
    return tuple(tuple(group) for group in groups.values())


def held_out_energy(model: nn.Module, windows: Tensor) -> dict[str, dict[str, float]]:
    """Return, per layer with factors, how much of its input its starting `down` can see.

    `energy` is `||Q^T x||^2 / ||x||^2` summed over the tokens of windows that were held out of
    the covariances, with Q the orthonormalized rows of `down` as attached; `random` is what a
    random subspace of the same dimension expects, rank / in.
    """
    layers = {
        name: layer
        for name, layer in adapted(model).items()
        if isinstance(layer, FactorLinear) and layer.attached_down.any()
    }
    energies = {name: _Energy(layer.attached_down) for name, layer in layers.items()}
    _observe(model, windows, None, {name: energy.add for name, energy in energies.items()})
    return {
        name: {
            "energy": energies[name].share(),
            "random": layer.rank / layer.attached_down.shape[1],
        }
        for name, layer in layers.items()
    }


class _Lazy(Mapping[str, Tensor]):
    """Layer -> covariance, in the order of the passes."""

    def __init__(self, read: Callable[[str], Tensor], passes: Sequence[tuple[Group, ...]]) -> None:
        self._read = read
        self._layers = [name for part in passes for group in part for name in group.layers]

    def __getitem__(self, layer: str) -> Tensor:
        if layer not in self._layers:
            raise KeyError(layer)
        return self._read(layer)

    def __contains__(self, layer: object) -> bool:  # without a pass over the windows
        return layer in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class _Sum:
    """The running sum of x x^T."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        self.width, self.dtype, self.tokens = width, dtype, 0
        self.total: Tensor | None = None  # (in, in), where the inputs are

    def add(self, x: Tensor) -> None:
        x = x.to(self.dtype)  # (tokens, in)
        if self.total is None:
            self.total = x.new_zeros(self.width, self.width)
        with exact_float32():
            self.total.addmm_(x.T, x)
        self.tokens += len(x)

    def divided_by(self, count: int) -> Tensor:
        assert self.total is not None
        return self.total.div_(count)


class _Energy:
    """The share of the input's energy inside the row space of `down`."""

    def __init__(self, down: Tensor) -> None:
        self.basis = torch.linalg.qr(down.T.double().cpu()).Q.to(down)  # (in, rank)
        self.inside, self.all = 0.0, 0.0

    def add(self, x: Tensor) -> None:
        x = x.to(self.basis.dtype)
        with exact_float32():
            self.inside += float((x @ self.basis).square().sum())
        self.all += float(x.square().sum())

    def share(self) -> float:
        return self.inside / self.all


def _numbers(covariance: Tensor, tokens: int) -> dict[str, float]:
    """Return what is recorded of one covariance."""
    values = spectrum(covariance)
    total, width = float(values.sum()), len(values)
    shares = values / total
    return {
        "tokens": tokens,
        "tokens_per_width": tokens / width,
        "trace_per_dimension": total / width,
        "top_share": float(shares[0]),
        "entropy_rank": math.exp(float(torch.special.entr(shares).sum())),
        "participation_ratio": 1.0 / float(shares.square().sum()),
        "noise_share": float((values < FLOAT32_NOISE * values[0]).double().mean()),
    }


def _packed(groups: Sequence[Group], budget_bytes: int) -> list[tuple[Group, ...]]:
    """Cut the groups, in order, into passes whose covariances fit the budget."""
    passes: list[list[Group]] = []
    free = -1
    for group in groups:
        if group.num_bytes > free:
            passes.append([])
            free = budget_bytes
        passes[-1].append(group)
        free -= group.num_bytes
    return [tuple(part) for part in passes]


def _observe(
    model: nn.Module,
    windows: Tensor,
    mask: Tensor | None,
    watchers: Mapping[str, Callable[[Tensor], None]],
    *,
    scaled: bool = False,
) -> None:
    """Run the model over all windows; hand each watcher its layer's inputs, (tokens, in)."""
    kept: Tensor | None = None

    def real_tokens(watcher: Callable[[Tensor], None], x: Tensor) -> None:
        if scaled:
            x = x.float().reshape(-1, windows.shape[1], x.shape[-1])
            x = x / x.amax((1, 2), keepdim=True).abs()
        rows = x.reshape(-1, x.shape[-1])
        watcher(rows if kept is None else rows[kept.to(rows.device)])

    step = max(1, TOKENS_PER_FORWARD // windows.shape[1])
    with _watched(model, {name: partial(real_tokens, w) for name, w in watchers.items()}):
        for start in range(0, len(windows), step):
            part = None if mask is None else mask[start : start + step]
            kept = None if part is None else part.flatten().bool()
            _forward(model, windows[start : start + step], part)


@contextmanager
def _watched(model: nn.Module, watchers: Mapping[str, Callable[[Tensor], Any]]) -> Iterator[None]:
    """Show each watcher the input of its layer, in eval mode and without gradient.

    Afterwards the model is as before: own hooks removed by their handles, modes restored.
    """

    def hook(watcher: Callable[[Tensor], Any], _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        watcher(inputs[0])  # the tensor itself: its identity tells which layers share it

    training = {module: module.training for module in model.modules()}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(partial(hook, watcher))
        for name, watcher in watchers.items()
    ]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode


def _forward(model: nn.Module, windows: Tensor, mask: Tensor | None) -> None:
    """Run the decoder without its output head, which no target is part of."""
    backbone = cast(nn.Module, getattr(model, "base_model", model))
    device = next(model.parameters()).device
    inputs = {"input_ids": windows.to(device)}
    if mask is not None:
        inputs["attention_mask"] = mask.to(device)
    backbone(**inputs, use_cache=False)
