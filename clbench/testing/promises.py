"""The promises that several checks ask for, phase by phase, and how values are compared."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from clbench.adapters import adapted, read_weight, structure
from clbench.composition import Composed
from clbench.data import num_labels
from clbench.errors import UserError
from clbench.strategy import Covariances, Example, Strategy
from clbench.testing.course import Course
from clbench.testing.parts import largest, require
from clbench.testing.subject import CheckFailed
from clbench.training import TrainLog, answer_loss

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
ACCUMULATED = {"micro_batch": 2}  # both of a step are drawn before the first one is forwarded
TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def begin(course: Course) -> None:
    """Begin the present task; raises CheckFailed where that changes what the model computes."""
    before = course.logits()
    course.begin()
    require(bool(course.trainables()), "after begin_task nothing requires a gradient")
    _require_close(course.logits(), before, "begin_task")
    if course.index == 0:  # later, what trains may be another copy than what is scored
        _require_close(course.logits(training=True), before, "begin_task, in train mode,")


def train(course: Course, given: Mapping[str, Tensor]) -> TrainLog:
    """Train the present task; raises CheckFailed where a tensor moves that should not.

    `given` are the tensors of the model that begin_task was given.
    """
    watched = dict(given)
    watched |= {f"{name}.weight": layer.weight for name, layer in adapted(course.model).items()}
    frozen = {name: tensor for name, tensor in watched.items() if not tensor.requires_grad}
    before = {name: tensor.detach().clone() for name, tensor in frozen.items()}
    starts = {name: p.detach().clone() for name, p in course.trainables().items()}
    log = course.train(**ACCUMULATED)
    moved = [name for name, tensor in frozen.items() if not same(tensor, before[name])]
    require(not moved, f"{', '.join(moved[:3])} moved without requiring a gradient")
    stuck = all(same(p, starts[name]) for name, p in course.trainables().items())
    require(not stuck, f"nothing moved in {log.steps} steps of task {course.index + 1}")
    return log


def end(course: Course, *, keeps: bool = True) -> None:
    """End the present task; raises CheckFailed where that changes what the model computes."""
    before = course.logits()
    course.end()
    if keeps:
        _require_close(course.logits(), before, "end_task")


def pull(course: Course) -> None:
    """Raise CheckFailed unless the penalty of the trained model is 0.0 or has a gradient."""
    batch = course.fed()
    course.model.train()
    outputs = course.model(**batch.model_inputs())
    outputs.loss = answer_loss(outputs.logits, batch.labels) / num_labels(batch.examples)
    penalty = course.strategy.penalty(course.model, batch, outputs)
    course.model.eval()
    if not isinstance(penalty, Tensor):
        require(penalty == 0.0, f"the penalty is {penalty!r}, a number without a gradient")
        return
    require(penalty.numel() == 1, f"the penalty has the shape {tuple(penalty.shape)}, no scalar")
    value = float(penalty.detach())
    require(bool(penalty.isfinite().all()), f"the penalty is {value}")
    require(penalty.requires_grad, f"the penalty is {value:.3g} and has no gradient")
    trains = list(course.trainables().values())
    gradients = torch.autograd.grad(penalty, trains, allow_unused=True)
    pulls = any(g is not None and bool(g.any()) for g in gradients)
    require(
        pulls,
        f"the penalty is {value:.3g} and its gradient 0, although the weights have moved",
    )


def read_now(course: Course) -> set[str]:
    """Return the sources whose covariances must matter in the present task.

    Factors that are carried on were chosen in the first task.
    """
    carried = bool(structure(course.model))
    asking = [part for part in _parts(course.strategy) if part.kind == "guard" or not carried]
    asked: set[str] = set().union(*(part.calibration_sources() for part in asking))
    return asked & set(course.calibrations())


def other_start(course: Course, source: str) -> None:
    """Raise CheckFailed unless other covariances of a source make begin_task do other things."""
    own = {name: found.covariances for name, found in course.calibrations().items()}
    foreign = course.calibrations(foreign=True)[source].covariances
    results = [_begun(course, own), _begun(course, {**own, source: foreign})]
    require(
        not same(left(results[0]), left(results[1])),
        f"task {course.index + 1} starts the same whatever the {source!r} covariances are",
    )


def refusal(course: Course, source: str) -> None:
    """Raise CheckFailed unless begin_task refuses to do without the covariances of a source."""
    own: dict[str, Covariances] = {n: f.covariances for n, f in course.calibrations().items()}
    first, *rest = course.targets
    for missing, part in (("all", {}), (first, {name: own[source][name] for name in rest})):
        sentence = f"begin_task goes on without the {source!r} covariances (missing: {missing})"
        try:
            _begun(course, {**own, source: part})
        except UserError:
            continue
        except Exception as error:  # a strategy may fail in any way
            kind = type(error).__name__
            raise CheckFailed(f"{sentence} into a {kind}; raise UserError") from error
        raise CheckFailed(sentence)


def loads_without_pickle(course: Course) -> None:
    """Raise CheckFailed for state that a checkpoint cannot hold."""
    for part in _parts(course.strategy):
        for name, value in part.state().items():
            try:
                buffer = io.BytesIO()
                torch.save(value, buffer)
                buffer.seek(0)
                with torch.serialization.safe_globals([Example]):
                    torch.load(buffer, weights_only=True)
            except Exception as error:  # what cannot be pickled fails in ways of its own
                raise CheckFailed(
                    f"{name} of {part.name()} does not load without pickle; keep tensors, "
                    "numbers, strings, examples, lists and dicts"
                ) from error


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model, themselves, by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def weights(course: Course) -> dict[str, Tensor]:
    """Return copies of all that the model computes with, a change that is not folded included."""
    layers = {name: course.model.get_submodule(name) for name in course.targets}
    found = {f"{name}.weight": read_weight(layer) for name, layer in layers.items()}
    biases = {f"{name}.bias": cast("Tensor | None", layer.bias) for name, layer in layers.items()}
    found |= {name: bias for name, bias in biases.items() if bias is not None}
    inside = tuple(f"{name}." for name in layers)
    rest = tensors(course.model).items()
    found |= {name: tensor for name, tensor in rest if not name.startswith(inside)}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def left(course: Course) -> tuple[Any, ...]:
    """Return all that a phase leaves behind."""
    return tensors(course.model), sorted(course.trainables()), course.strategy.state()


def sizes(model: nn.Module) -> dict[str, int]:
    """Return the number of values that a model holds and trains, and of the hooks on it."""
    parameters = list(model.parameters())
    hooks = [getattr(module, kind) for module in model.modules() for kind in HOOKS]
    hooks += [getattr(p, kind) or () for p in parameters for kind in TENSOR_HOOKS]
    hooks += [getattr(torch_module, f"_global{kind}") for kind in HOOKS]
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trainables": sum(p.numel() for p in parameters if p.requires_grad),
        "hooks": sum(len(found) for found in hooks),
    }


def global_randomness() -> tuple[Any, ...]:
    """Return the state of the generators that everybody shares."""
    return torch.get_rng_state(), random.getstate(), repr(np.random.get_state())


def same(one: Any, other: Any) -> bool:
    """Say whether two values are equal, tensors bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and torch.equal(_bits(one), _bits(other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def _parts(strategy: Strategy) -> tuple[Strategy, ...]:
    return strategy.parts if isinstance(strategy, Composed) else (strategy,)


def _begun(course: Course, covariances: Mapping[str, Covariances]) -> Course:
    """Return a copy of the course on which the present task was begun with these covariances."""
    twin = copy.deepcopy(course)
    twin.begin(covariances)
    return twin


def _require_close(after: Tensor, before: Tensor, when: str) -> None:
    off, scale = largest(after - before), max(1.0, largest(before))
    require(off <= 2e-5 * scale, f"{when} moves the logits by {off:.1e}")


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
