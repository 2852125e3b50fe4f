"""The streams, as values or files; nothing is generated, read or imported before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from clbench.dataset import Texts
from clbench.stream import Edition, Stream
from clbench.task import Task

from . import tiny_evals, tiny_tasks
from .tiny import facts

MakeTask = Callable[[], Task]


def _tiny(*tasks: MakeTask) -> Callable[[], Edition]:
    return lambda: _tiny_edition(tasks)


def _tiny_edition(tasks: Sequence[MakeTask]) -> Edition:
    return Edition(
        tasks=tuple(make() for make in tasks),
        world=(tiny_evals.facts_eval(), tiny_evals.facts_greedy_eval()),
        calibration=facts.calibration_texts,
        calibration_id="tiny_facts/statements",
        preset="tiny",
    )


MATH_CODE_IF = Stream(
    name="math-code-if",
    about="math by answer, then code by execution, then instructions by checkable constraints",
    editions={
        "tiny": _tiny(tiny_tasks.math_task, tiny_tasks.code_task, tiny_tasks.instructions),
    },
)

_FILES = Path(__file__).with_name("streams")
CURLORA_3 = _FILES / "curlora-3.toml"
I_LORA_8 = _FILES / "i-lora-8.toml"
LONG_CL = _FILES / "long-cl.toml"
SECURA_16 = _FILES / "secura-16.toml"
SECURA_MCQ = _FILES / "secura-mcq.toml"
SECURA_QA = _FILES / "secura-qa.toml"
STANDARD_CL = _FILES / "standard-cl.toml"
TRACE = _FILES / "trace.toml"


def tiny_facts() -> Texts:
    """Return the statements of facts that strategies are calibrated on."""
    return Texts("tiny_facts/statements", facts.calibration_texts)
