"""The streams, as values; nothing is generated, read or imported in bulk until it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clbench.stream import Edition, Stream
from clbench.task import Task

from . import real_code, real_instruct, real_math, tiny_evals, tiny_tasks, world
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
    editions={
        "tiny": _tiny(tiny_tasks.math_task, tiny_tasks.code_task, tiny_tasks.instructions),
        "full": _full_math_code_if,
    },
    source="lora-null",
)

# SECURA (its paper names some of its data sets, not all of them and no order) is the model for
# three streams. LogiQA, GSM8K, CNN/DailyMail and German news are from there; the other tasks,
# every order, and the facts as the probe of basic knowledge are our choice.

SECURA_MCQ = Stream(
    name="secura-mcq",
    about="four tasks of multiple choice, in the style of SECURA",
    editions={
        "tiny": _tiny(tiny_tasks.logic, tiny_tasks.social, tiny_tasks.science, tiny_tasks.boolq),
    },
)

SECURA_QA = Stream(
    name="secura-qa",
    about="five tasks answered in writing, in the style of SECURA",
    editions={
        "tiny": _tiny(
            tiny_tasks.math_task,
            tiny_tasks.summary,
            tiny_tasks.translate,
            tiny_tasks.instructions,
            tiny_tasks.code_task,
        ),
    },
)

SECURA_16 = Stream(
    name="secura-16",
    about="sixteen tasks of all families, in the style of SECURA",
    editions={
        "tiny": _tiny(
            tiny_tasks.math_task,
            tiny_tasks.logic,
            tiny_tasks.sentiment,
            tiny_tasks.summary,
            tiny_tasks.nli,
            tiny_tasks.code_task,
            tiny_tasks.social,
            tiny_tasks.pairs,
            tiny_tasks.translate,
            tiny_tasks.topic,
            tiny_tasks.science,
            tiny_tasks.instructions,
            tiny_tasks.boolq,
            tiny_tasks.paraphrase,
            tiny_tasks.reviews,
            tiny_tasks.entities,
        ),
    },
)

# O-LoRA (arXiv 2310.14152) learns DBpedia, Amazon, Yahoo, AG News in its order 1 and never Yelp,
# which is in the data set. Ours are: Yelp, which comes last, and the facts as world.

STANDARD_CL = Stream(
    name="standard-cl",
    about="five tasks of text classification, as O-LoRA's standard benchmark",
    editions={
        "tiny": _tiny(
            tiny_tasks.entities,
            tiny_tasks.products,
            tiny_tasks.questions,
            tiny_tasks.topic,
            tiny_tasks.reviews,
        ),
    },
)
