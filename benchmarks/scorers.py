"""Gives clbench's evals published answers whose outcome is known, and compares what they score.

$ PYTHONPATH=tests python benchmarks/scorers.py --data FOLDER [--json FILE]

Nothing is generated. The data sets are served by the local hub of the tests under their real ids
and read by the code that a run reads them with; an engine that writes given answers stands for
the model; filters, metrics and sandbox are those of a run. FOLDER holds files of public
repositories as OWNER/NAME/PATH, so that checkouts beside each other will do; a check whose files
are not there is left out and says so.

- openai/human-eval: data/HumanEval.jsonl.gz
- google-research/google-research: mbpp/mbpp.jsonl, and of instruction_following_eval/data the
  prompts and the answers of two models (those of PaLM 2 were there in commit e4c89b640)
- openai/grade-school-math: grade_school_math/data
- ZubinGou/math-evaluation-harness: data/math/test.jsonl and data/math_oai/test.jsonl, MATH's
  test split and the 500 problems drawn from it
- QwenLM/Qwen2.5-Math: evaluation/data/eval_rm_maj_example/math_cot_100.jsonl
- lgw863/LogiQA-dataset: Test.txt
- nltk_data, by `python -m nltk.downloader -d FOLDER/nltk_data punkt_tab`
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import nltk
from hub_fixtures import hub_environment
from published import GPT4, GSM8K, MATH500, PALM2, QWEN, Folder, Rows, repositories
from tabulate import tabulate
from tokenizers import Tokenizer, models
from toys import toy_model
from transformers import PreTrainedTokenizerFast

from clbench import registry, sandbox
from clbench.config import EvalConfig
from clbench.dataset import DataSet
from clbench.decoding import Generation, cut_at_stops
from clbench.errors import UserError
from clbench.evalresult import EvalResult
from clbench.evaluation import Evaluator
from clbench.task import Eval, Task

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
GSM8K_KEYS = ("exact_match,flexible-extract", "exact_match,strict-match")
NEXT = "solutions of the next problem"
IFEVAL_KEYS = (
    "prompt_level_strict_acc,none",
    "inst_level_strict_acc,none",
    "prompt_level_loose_acc,none",
    "inst_level_loose_acc,none",
)
PUBLISHED = (0.7689, 0.8357, 0.7930, 0.8537)  # of GPT-4: arXiv 2311.07911, table 3


class Finding(NamedTuple):
    """What one eval made of one set of answers."""

    eval: str
    answered: str
    key: str
    num_items: int
    expected: float | None  # None where nothing is published
    measured: float
    seconds: float
    off: dict[str, str]  # item: what it was instead of what was expected


class Answers:
    """An engine that writes given texts, one for each prompt in turn."""

    name = "answers"
    max_length = 1 << 20

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        stops: Sequence[str],
        max_new_tokens: int,
        end_ids: Collection[int] = (),
    ) -> list[Generation]:
        """Return the texts up to their stops."""
        pairs = zip(prompts, self.texts, strict=True)
        return [Generation(cut_at_stops(text, stops), "stop", ()) for _, text in pairs]

    def score(self, items: Any) -> list[list[float]]:
        """Refuse: given answers have no likelihood."""
        raise NotImplementedError

    def close(self) -> None:
        """Hold nothing."""


class Scorer(Evaluator):
    """An evaluator of one eval, with answers in place of a model."""

    def __init__(self, spec: Eval, isolation: sandbox.Isolation | None = None) -> None:
        config = EvalConfig(size="full")
        super().__init__({}, one_token(), [spec], config, isolation=isolation)
        self.spec, self.model = spec, toy_model()

    @property
    def docs(self) -> Sequence[Mapping[str, Any]]:
        """Return the documents, in the order of their answers."""
        return self.plan(self.spec.id).docs

    def answered(self, answers: Sequence[str]) -> EvalResult:
        """Score answers."""
        return self._evaluate(self.model, Answers(answers), self.spec.id, None)

    def findings(
        self,
        answers: Sequence[str],
        what: str,
        expected: float | Sequence[bool] | None = None,
        keys: Sequence[str] = (),
    ) -> Iterator[Finding]:
        """Score answers by the pinned key, or by several.

        `expected` is the score of each of them, or the judgement of each, or None where nothing
        is known of them; `off` are those that were scored otherwise.
        """
        start = time.monotonic()
        result = self.answered(answers)
        seconds = time.monotonic() - start
        known = [expected] * len(answers) if isinstance(expected, float) else expected
        for key in keys or [self.spec.metric]:
            items = [(item, item["scores"][key]) for item in result.items]
            pairs = zip(items, known or [score for _, score in items], strict=True)
            yield Finding(
                eval=self.spec.id,
                answered=what,
                key=key,
                num_items=result.num_items,
                expected=None if known is None else fmean(known),
                measured=self.read(result, key),
                seconds=seconds,
                off={
                    i["id"]: i["detail"] or f"{score:g}"
                    for (i, score), due in pairs
                    if score != due
                },
            )

    def read(self, result: EvalResult, key: str) -> float:
        """Return a score by its key."""
        score = result.score if key == self.spec.metric else result.others[key]
        assert score is not None, result.note
        return score


def one_token() -> PreTrainedTokenizerFast:
    """Return a tokenizer to which every text is one token: given answers do not read prompts."""
    whole = Tokenizer(models.WordLevel({"<eos>": 0, "text": 1}, unk_token="text"))
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<eos>", pad_token="<eos>")


def scorer_of(name: str, split: str = "", data_id: str = "", file: str = "") -> Scorer:
    """Return what scores answers to a registered eval, or to the same of other records."""
    spec = registry.make(registry.EVALS, name, Eval)
    if data_id:
        spec = dataclasses.replace(spec, data={split: DataSet(data_id, split, files=(file,))})
    isolation = sandbox.find_isolation("auto") if spec.execution else None
    return Scorer(spec, isolation=isolation)


def code(folder: Folder) -> Iterator[Finding]:
    """Run reference programs, which must pass, and emptied ones, which must fail."""
    for name in ("humaneval", "mbpp"):
        scorer = scorer_of(name)
        for field, expected in (("reference", 1.0), ("emptied", 0.0)):
            yield from scorer.findings([doc[field] for doc in scorer.docs], field, expected)


def word_problems(folder: Folder) -> Iterator[Finding]:
    """Score GSM8K's solutions, those of the next problem, and those of four published models."""
    published = folder.rows(f"{GSM8K}/example_model_solutions.jsonl")
    solutions = [row["answer"] for row in folder.rows(f"{GSM8K}/test.jsonl")]
    for name, keys in (("math-answer-gsm8k", ()), ("gsm8k", GSM8K_KEYS)):
        scorer = scorer_of(name)
        yield from scorer.findings(solutions, "its solutions", 1.0, keys)
        yield from scorer.findings(following(solutions), NEXT)
        for model in MODELS:
            texts = [row[model]["solution"] for row in published]
            if keys:  # what a model that has seen the five examples would write
                texts = [text.replace("\nA: ", "\n#### ") for text in texts]
            flags = [row[model]["is_correct"] for row in published]
            yield from scorer.findings(texts, model, flags, keys)


def competition(folder: Folder) -> Iterator[Finding]:
    """Score MATH's answers, its solutions, and those of the next problem.

    lm-eval's own eval compares what stands between the first and the last $, so no solution is
    right for it.
    """
    docs = scorer_of("math-answer-math").docs
    solutions = [doc["reference"] for doc in docs]
    for name, bare, expected in (
        ("math-answer-math", "The answer is: ${}$", 1.0),
        ("hendrycks-math", "${}$", None),
    ):
        scorer = scorer_of(name)
        answers = [bare.format(doc["gold"]) for doc in docs]
        yield from scorer.findings(answers, f"its answers, `{bare.format('x')}`", 1.0)
        yield from scorer.findings(solutions, "its solutions", expected)
        yield from scorer.findings(following(solutions), NEXT)


def competition_500(folder: Folder) -> Iterator[Finding]:
    """Score the answers that are published beside the solutions of 500 problems."""
    scorer = scorer_of("math-answer-math", "test", "HuggingFaceH4/MATH-500", "test.jsonl")
    answers = [f"The answer is: {row['answer']}" for row in folder.rows(MATH500)]
    yield from scorer.findings(answers, "its answers, as `The answer is: x`", 1.0)


def judged_by_qwen(folder: Folder) -> Iterator[Finding]:
    """Compare the judgement of eight answers to each of 100 problems."""
    scorer = scorer_of("math-answer-math", "test", "own/qwen", "test.jsonl")
    rows = folder.rows(QWEN)
    for at in range(len(rows[0]["code"])):
        texts, flags = [row["code"][at] for row in rows], [row["score"][at] for row in rows]
        yield from scorer.findings(texts, f"Qwen2.5-Math, {at + 1}", flags)


def instructions(folder: Folder) -> Iterator[Finding]:
    """Score what two models answered to IFEval's prompts, PaLM 2 to those that were kept."""
    kept = scorer_of("ifeval", "train", "own/kept-ifeval", "ifeval_input_data.jsonl")
    yield from followed(folder.rows(GPT4), scorer_of("ifeval"), "GPT-4", PUBLISHED)
    yield from followed(folder.rows(PALM2), kept, "PaLM 2", (None,) * 4)


def followed(
    rows: Rows, scorer: Scorer, model: str, expected: Sequence[float | None]
) -> Iterator[Finding]:
    """Yield the four scores of a model's responses; one to a changed prompt keeps its place."""
    by_prompt = {row["prompt"]: row["response"] for row in rows}
    responses = [
        by_prompt.get(doc["prompt"], rows[at]["response"]) for at, doc in enumerate(scorer.docs)
    ]
    start = time.monotonic()
    result = scorer.answered(responses)
    seconds = time.monotonic() - start
    for key, figure in zip(IFEVAL_KEYS, expected, strict=True):
        measured = scorer.read(result, key)
        yield Finding("ifeval", model, key, result.num_items, figure, measured, seconds, {})


def options(folder: Folder) -> Iterator[Finding]:
    """Choose the right option of every question of LogiQA."""
    scorer = Scorer(registry.make(registry.TASKS, "logiqa", Task).evals[0])
    start = time.monotonic()
    ceiling = scorer.ceiling(scorer.spec.id)
    assert ceiling is not None
    seconds = time.monotonic() - start
    key, size = scorer.spec.metric, len(scorer.docs)
    yield Finding(scorer.spec.id, "its answers", key, size, 1.0, ceiling, seconds, {})


def following(texts: Sequence[str]) -> list[str]:
    """Return each text in the place of the one before it."""
    return [*texts[1:], texts[0]]


CHECKS: Mapping[str, Callable[[Folder], Iterator[Finding]]] = {
    check.__name__: check
    for check in (
        code,
        word_problems,
        competition,
        competition_500,
        judged_by_qwen,
        instructions,
        options,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checks", nargs="+", default=list(CHECKS), choices=list(CHECKS))
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    findings = []
    for found in run(options.data, options.checks):
        print(
            *found[:6],
            f"{len(found.off)} off",
            f"{found.seconds:.1f} s",
            sep=" | ",
            file=sys.stderr,
        )
        findings.append(found)
    print(table(findings))
    if options.json:
        rounded = [f._replace(seconds=round(f.seconds, 1)) for f in findings]
        content = [f._asdict() for f in rounded]
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def run(data: Path, checks: Sequence[str]) -> Iterator[Finding]:
    """Yield what the checks find whose files are there."""
    folder = Folder(data)
    nltk.data.path.insert(0, str(data / "nltk_data"))
    with tempfile.TemporaryDirectory() as home, hub_environment(repositories(folder), Path(home)):
        for name in checks:
            try:
                yield from CHECKS[name](folder)
            except UserError as missing:
                print(f"{name} is left out: {missing}")


def table(findings: Sequence[Finding]) -> str:
    """Return the findings as a table."""
    headers = ["eval", "answered", "key", "items", "expected", "measured", "off", "seconds"]
    rows = [[*f[:6], len(f.off), f.seconds] for f in findings]
    formats = ("", "", "", "d", ".4f", ".4f", "d", ".1f")
    return tabulate(rows, headers, tablefmt="github", floatfmt=formats)


if __name__ == "__main__":
    main()
