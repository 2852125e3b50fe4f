"""Instructions on published data: WizardLM's evolved ones to learn from, IFEval to be scored on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from string import ascii_letters
from typing import Any

from clbench.dataset import DataSet, Source, Template
from clbench.task import Eval, Need, Task

from . import alpaca
from .real import ROWS, learning

LANGUAGE_SEED = 0  # langdetect draws at random without one


def first_exchange(record: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the first request of a conversation and its answer, None where one is missing."""
    turns = record["conversations"]
    if [turn["from"] for turn in turns[:2]] != ["human", "gpt"]:
        return None
    return {"instruction": turns[0]["value"], "response": turns[1]["value"]}


WIZARDLM = Source(
    DataSet(
        "WizardLMTeam/WizardLM_evol_instruct_V2_196k",
        files=("WizardLM_evol_instruct_V2_143k.json",),
        columns=("conversations",),
    ),
    Template(prompt=alpaca.PROMPT, answer="{response}", request="{instruction}"),
    prepare=first_exchange,
    limit=ROWS,
)
IFEVAL = DataSet(
    "google/IFEval",
    "train",
    files=("ifeval_input_data.jsonl",),
    columns=("key", "prompt", "instruction_id_list", "kwargs"),
    license="Apache-2.0",
)


def wizardlm() -> Task:
    """Return the task of following instructions."""
    return learning("wizardlm", WIZARDLM, (ifeval(),), "instructions made harder step by step")


def ifeval() -> Eval:
    """Return lm-eval's IFEval: every constraint of a prompt is checked by a program."""
    return Eval(
        id="ifeval",
        version=4,
        config="ifeval",
        metric="prompt_level_strict_acc,none",
        other_metrics=(
            "prompt_level_loose_acc,none",
            "inst_level_strict_acc,none",
            "inst_level_loose_acc,none",
        ),
        shots=0,
        needs=(
            _package("langdetect"),
            _package("immutabledict"),
            Need(
                "the sentence splitter punkt_tab of NLTK",
                "python -m nltk.downloader punkt_tab",
                _has_splitter,
            ),
        ),
        setup=_fix_language_detector,
        data={"train": IFEVAL},
        num_items=541,
        prepare=countable,
        about="prompts with constraints that a program checks; all of a prompt's must hold",
    )


def countable(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of IFEval with what is no letter counted as a keyword is.

    Two prompts ask for so many "!" and "#". The checker of letters takes a letter at random in
    their place, so one response would score now this, now that.
    """
    ids, kwargs = list(record["instruction_id_list"]), list(record["kwargs"])
    for at, (name, given) in enumerate(zip(ids, kwargs, strict=True)):
        if name == "keywords:letter_frequency" and not _is_letter(given["letter"]):
            ids[at] = "keywords:frequency"
            kwargs[at] = {
                "keyword": re.escape(given["letter"]),
                "frequency": given["let_frequency"],
                "relation": given["let_relation"],
            }
    return {**record, "instruction_id_list": ids, "kwargs": kwargs}


def _is_letter(text: str) -> bool:
    """Return whether a text is one letter, as the checker of letters takes it."""
    return len(text) == 1 and text in ascii_letters


def _package(name: str) -> Need:
    return Need(
        f"the Python package {name}", f"pip install {name}", lambda: find_spec(name) is not None
    )


def _has_splitter() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def _fix_language_detector() -> None:
    from langdetect import DetectorFactory

    DetectorFactory.seed = LANGUAGE_SEED
