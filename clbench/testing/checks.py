"""The checks of the contract. Each one's docstring is its promise; it raises where that breaks."""

from __future__ import annotations

import dataclasses
import inspect
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clbench import registry
from clbench.errors import UserError
from clbench.testing import promises
from clbench.testing.course import LAYOUTS, PHASES, Course
from clbench.testing.parts import Plain, Rehearse, Witness, largest, require
from clbench.testing.promises import same
from clbench.testing.subject import CheckFailed, Subject

Check = Callable[[Subject], None]


def check_constructs_from_its_params(subject: Subject) -> None:
    """Hyperparameters survive JSON and rebuild an equal strategy; every annotation is a field."""
    for part in subject.parts():
        cls, params = type(part), part.params()
        try:
            read = json.loads(json.dumps(params, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise CheckFailed(f"params() {params!r} is not JSON: {error}") from error
        again = registry.build_part(cls, read)
        require(
            again == part and again.params() == params,
            f"params() {params!r} rebuild a strategy with {again.params()!r}",
        )
        names = {field.name for field in dataclasses.fields(cls)}
        for name, hint in inspect.get_annotations(cls).items():
            require(
                name in names or "ClassVar" in str(hint),
                f"{cls.__name__}.{name} is annotated but is no field: @dataclass is missing",
            )


def check_constructor_is_pure(subject: Subject) -> None:
    """The constructor draws nothing at random and holds no state before the first task."""
    before = promises.global_randomness()
    first, second = subject.parts(), subject.parts()
    require(
        same(before, promises.global_randomness()),
        "the constructor draws random numbers; draw in begin_task, from a seeded generator",
    )
    for one, other in zip(first, second, strict=True):
        fields = {field.name for field in dataclasses.fields(one)}
        held = {name: value for name, value in vars(one).items() if name not in fields}
        full = [name for name, value in held.items() if isinstance(value, Tensor) or value]
        require(not full, f"the constructor makes {', '.join(full)}; make it in begin_task")
        require(one == other, "two objects of the same hyperparameters differ")


def check_begin_task_keeps_function(subject: Subject) -> None:
    """Attaching changes no logit: in the first task in train mode too, in the second at eval."""
    for layout in LAYOUTS:
        course = Course(subject.build(), layout=layout)
        promises.begin(course)
        if layout == LAYOUTS[0]:
            course.train()
            course.end()
            promises.begin(course)


def check_only_trainables_move(subject: Subject) -> None:
    """Training moves what requires a gradient, and no other tensor of the model by a single bit."""
    course = Course(subject.build())
    for _ in range(2):
        given = promises.tensors(course.model)
        course.begin()
        promises.train(course, given)
        course.end()


def check_penalty_has_gradient(subject: Subject) -> None:
    """A penalty is 0.0 or a finite scalar that, off the start, pulls on what trains."""
    course = Course(subject.build())
    for _ in range(2):
        course.begin()
        course.train()
        promises.pull(course)
        course.end()


def check_learns(subject: Subject) -> None:
    """The loss falls while a task trains, and that of the model which is kept has fallen too."""
    course = Course(subject.build())
    before = course.loss()
    course.begin()
    log = course.train(steps=8, batch_size=8)  # of all examples, so that losses compare
    require(not log.diverged, "a loss or a gradient is not finite")
    first, last = sum(log.losses[:3]) / 3, sum(log.losses[-3:]) / 3
    require(last < first, f"the loss goes from {first:.4f} to {last:.4f}")
    task = course.task
    course.end()
    course.task = task
    after = course.loss()
    require(
        after < before, f"the loss of the model that end_task returns: {before:.4f} to {after:.4f}"
    )


def check_end_task_keeps_function(subject: Subject) -> None:
    """Folding changes no logit, in float32."""
    for layout in LAYOUTS:
        course = Course(subject.build(), layout=layout)
        for _ in range(2 if layout == LAYOUTS[0] else 1):
            course.begin()
            course.train()
            promises.end(course)


def check_second_task_costs_no_more(subject: Subject) -> None:
    """Parameters, trainables and hooks do not grow from task to task."""
    course = Course(subject.build())
    sizes = []
    for _ in range(2):
        course.begin()
        course.train()
        begun = promises.sizes(course.model)
        course.end()
        sizes.append({"begin_task": begun, "end_task": promises.sizes(course.model)})
    for when, first in sizes[0].items():
        for what, number in sizes[1][when].items():
            require(
                number <= first[what],
                f"{what} after {when}: {first[what]} in the first task, {number} in the second",
            )


def check_same_seed_same_weights(subject: Subject) -> None:
    """Two runs with one seed agree bit for bit, whatever was drawn at random before them."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        course = Course(subject.build())
        course.learn()
        course.learn()
        found.append((promises.tensors(course.model), course.strategy.state()))
    require(same(found[0][0], found[1][0]), "two runs with the same seed give other weights")
    require(same(found[0][1], found[1][1]), "two runs with the same seed give other state")


def check_hyperparameters_survive_a_run(subject: Subject) -> None:
    """Params are the same before and after learning two tasks."""
    course = Course(subject.build())
    before = json.dumps(course.strategy.params())
    course.learn()
    course.learn()
    after = json.dumps(course.strategy.params())
    require(before == after, f"params() {before} became {after}")


def check_state_round_trips(subject: Subject) -> None:
    """A run that is stopped and resumed after every phase equals one that never stopped."""
    whole, resumed = Course(subject.build()), Course(subject.build())
    with tempfile.TemporaryDirectory() as folder:
        for number in (1, 2):
            for phase in PHASES:
                getattr(whole, phase)()
                promises.loads_without_pickle(whole)
                try:
                    getattr(resumed, phase)()
                    agrees = same(promises.left(whole), promises.left(resumed))
                    resumed = resumed.resumed(subject.build(), Path(folder))
                except Exception as error:  # a strategy may fail in any way
                    raise CheckFailed(
                        f"stopped and resumed, {phase} of task {number} fails: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                require(
                    agrees, f"stopped and resumed, {phase} of task {number} leaves other values"
                )


def check_uses_fresh_calibration(subject: Subject) -> None:
    """Other covariances give another start, in the second task too; missing ones raise."""
    course = Course(subject.build())
    for _ in range(2):
        for source in sorted(promises.read_now(course)):
            promises.other_start(course, source)
            promises.refusal(course, source)
        course.learn()


def check_does_not_drift(subject: Subject) -> None:
    """Tasks in which no gradient comes leave bfloat16 weights as they are, bit for bit."""
    course = Course(subject.build(), dtype=torch.bfloat16)
    before = promises.weights(course)
    for number in range(1, 4):
        course.begin()
        course.idle()
        course.end()
        after = promises.weights(course)
        for name, weight in before.items():
            require(
                same(after[name], weight),
                f"{name} moves in task {number} although no gradient came: "
                f"by {largest(after[name].float() - weight.float()):.1e}",
            )


def check_composes(subject: Subject) -> None:
    """Beside another part all of this still holds, and guards are told the truth; or it refuses."""
    adapter = Plain() if len(subject.classes) > 1 else None
    broken = subject.build().expected_failures()
    for other in (Witness(), Rehearse()):
        try:
            whole = subject.beside(other, adapter)
        except UserError:
            continue  # refused, with its reason
        course = Course(whole)
        for index in range(2):
            given = promises.tensors(course.model)
            promises.begin(course)
            if "only_trainables_move" in broken:
                log = course.train(**promises.ACCUMULATED)
            else:
                log = promises.train(course, given)
            replays = isinstance(other, Rehearse) and index > 0
            require(
                not replays or log.tokens_replayed > 0,
                "another part replays examples of an earlier task, and they do not arrive",
            )
            promises.end(course, keeps="end_task_keeps_function" not in broken)


CHECKS: tuple[Check, ...] = (
    check_constructs_from_its_params,
    check_constructor_is_pure,
    check_begin_task_keeps_function,
    check_only_trainables_move,
    check_penalty_has_gradient,
    check_learns,
    check_end_task_keeps_function,
    check_second_task_costs_no_more,
    check_same_seed_same_weights,
    check_hyperparameters_survive_a_run,
    check_state_round_trips,
    check_uses_fresh_calibration,
    check_does_not_drift,
    check_composes,
)
