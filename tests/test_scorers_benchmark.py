"""The benchmark of scorers, on a few rows of our own in the layouts of the public files."""

from __future__ import annotations

import gzip
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import repos_math_code_if as rows_of
from local_hub import json_lines

from clbench import sandbox

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
IFEVAL = "google-research/google-research/instruction_following_eval/data"
GSM8K = "openai/grade-school-math/grade_school_math/data"
RESPONSES = (
    "The sea, wide.",
    "rain falls on the roof all night and we listen to it in our warm beds.",
    "There was a fox. It ran away. Nobody saw it. The end.",
)


@pytest.fixture(scope="module")
def scorers() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("scorers")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the files of all checks but those of MATH and LogiQA."""
    import nltk

    monkeypatch.setattr(nltk.data, "path", list(nltk.data.path))
    splitter = "nltk_data/tokenizers/punkt_tab/english"
    parts = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")
    files = {f"{splitter}/{part}": b"" for part in parts}
    files["openai/human-eval/data/HumanEval.jsonl.gz"] = gzip.compress(
        json_lines(rows_of.humaneval())
    )
    mbpp = rows_of.mbpp(range(1, 14))
    mbpp[10]["code"] = "def times_11(x):\r\n  return x"
    files["google-research/google-research/mbpp/mbpp.jsonl"] = json_lines(mbpp)
    for split, rows in {"train": rows_of.gsm8k(100, 6), "test": rows_of.gsm8k(1000, 8)}.items():
        files[f"{GSM8K}/{split}.jsonl"] = json_lines(rows)
    files[f"{GSM8K}/example_model_solutions.jsonl"] = json_lines(_published())
    prompts = [row["prompt"] for row in rows_of.ifeval()[:3]]
    files[f"{IFEVAL}/input_data.jsonl"] = json_lines(rows_of.ifeval()[:3])
    answers = [
        {"prompt": prompt, "response": text}
        for prompt, text in zip(["Another prompt.", *prompts[1:]], RESPONSES, strict=True)
    ]
    files[f"{IFEVAL}/input_response_data_gpt4_20231107_145030.jsonl"] = json_lines(answers)
    files[f"{IFEVAL}/input_response_data_text_bison.jsonl"] = json_lines(answers[::-1])
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def _published() -> list[dict[str, Any]]:
    """Return four models' solutions, the first of which says that a right one is wrong."""
    right = [str(row["answer"]).replace("#### ", "A: ") for row in rows_of.gsm8k(1000, 8)]
    judged = [{"solution": text, "is_correct": True} for text in right]
    wrong = [{"solution": "No idea.\nA: 7", "is_correct": False}] * len(right)
    mistaken = [{**judged[0], "is_correct": False}, *judged[1:]]
    models = {
        "6b_finetuning": judged,
        "6b_verification": wrong,
        "175b_finetuning": mistaken,
        "175b_verification": judged,
    }
    return [{name: model[at] for name, model in models.items()} for at in range(len(right))]


def test_word_problems_are_compared_with_their_judgements(
    scorers: ModuleType, folder: Path
) -> None:
    found = {(f.eval, f.answered, f.key): f for f in scorers.run(folder, ["word_problems"])}
    for name, key in (
        ("math_answer_gsm8k", "math_answer,none"),
        ("gsm8k", "exact_match,flexible-extract"),
        ("gsm8k", "exact_match,strict-match"),
    ):
        for answered, expected, measured, off in (
            ("its solutions", 1.0, 1.0, {}),
            ("6b_finetuning", 1.0, 1.0, {}),
            ("6b_verification", 0.0, 0.0, {}),
            ("175b_finetuning", 7 / 8, 1.0, {"0": "1"}),
        ):
            finding = found[name, answered, key]
            assert (finding.expected, finding.measured, finding.off) == (expected, measured, off)
    assert found["gsm8k", scorers.NEXT, "exact_match,flexible-extract"].measured == 0.0


def test_responses_go_with_their_prompts(scorers: ModuleType, folder: Path) -> None:
    """One to a prompt that was changed keeps its place; PaLM 2 is asked what was kept."""
    found = list(scorers.run(folder, ["instructions"]))
    assert [(f.answered, f.num_items) for f in found] == [("GPT-4", 3)] * 4 + [("PaLM 2", 2)] * 4
    measured = [2 / 3, 3 / 4] * 2 + [1.0] * 4
    assert [f.measured for f in found] == pytest.approx(measured)
    assert [f.expected for f in found[:4]] == list(scorers.PUBLISHED)


def test_programs_are_run_and_what_is_missing_is_said(
    scorers: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if sandbox.find_isolation("auto") is None:
        pytest.skip("no isolation works here")
    found = list(scorers.run(folder, ["code", "competition", "options"]))
    assert [(f.eval, f.answered, f.measured, f.off) for f in found] == [
        ("humaneval", "reference", 1.0, {}),
        ("humaneval", "emptied", 0.0, {}),
        ("mbpp", "reference", pytest.approx(2 / 3), {"11": "AssertionError"}),
        ("mbpp", "emptied", 0.0, {}),
    ]
    said = capsys.readouterr().out
    assert "competition is left out: " in said
    assert "options is left out: " in said
    assert scorers.table(found).count("\n") == 5
