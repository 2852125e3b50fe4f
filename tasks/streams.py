"""The streams, as values; nothing is generated, read or imported in bulk until it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from clbench.stream import Edition, Stream
from clbench.task import Row, Task

from . import real_code, real_instruct, real_math, tiny_evals, world
from .tiny import code, facts, instruct, math

LICENSE = "Apache-2.0; generated in this repository"


@cache
def _rows(draw: Callable[[], Sequence[dict[str, Any]]]) -> tuple[Row, ...]:
    return tuple(Row(row["id"], row["prompt"], row["answer"]) for row in draw())


def _tiny_task(name: str, module: Any, make_eval: Callable[..., Any], about: str) -> Task:
    return Task(
        name=name,
        train=lambda: _rows(module.train_examples),
        evals=(make_eval(module.NAME, module.eval_items, about),),
        validation_evals=(
            make_eval(f"{module.NAME}_validation", module.validation_examples, about),
        ),
        about=about,
        license=LICENSE,
        info={"id": module.NAME, "template": "v1"},
    )


def _tiny_math_code_if() -> Edition:
    return Edition(
        tasks=(
            _tiny_task("math", math, tiny_evals.math_eval, "word problems of one to three steps"),
            _tiny_task("code", code, tiny_evals.code_eval, "one-line functions from a sentence"),
            _tiny_task(
                "if", instruct, tiny_evals.instruct_eval, "short texts under checkable constraints"
            ),
        ),
        world=(tiny_evals.facts_eval(), tiny_evals.facts_greedy_eval()),
        calibration=facts.calibration_texts,
        calibration_id="tiny_facts/statements",
        preset="tiny",
    )


def _full_math_code_if() -> Edition:
    calibration = world.nq_open_train()
    return Edition(
        tasks=(real_math.metamath(), real_code.codefeedback(), real_instruct.wizardlm()),
        world=(world.triviaqa(), world.nq_open(), world.webqs()),
        calibration=calibration,
        calibration_id=calibration.data.id,
    )


MATH_CODE_IF = Stream(
    name="math-code-if",
    about="math by answer, then code by execution, then instructions by checkable constraints",
    editions={"tiny": _tiny_math_code_if, "full": _full_math_code_if},
    source="lora-null",
)
