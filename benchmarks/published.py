"""Files of public repositories, as the repositories of the hub that hold the same data sets."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from local_hub import Repo, json_lines, parquet

from clbench.errors import UserError

Rows = list[dict[str, Any]]

HUMANEVAL = "openai/human-eval/data/HumanEval.jsonl.gz"
MBPP = "google-research/google-research/mbpp/mbpp.jsonl"
IFEVAL = "google-research/google-research/instruction_following_eval/data"
GSM8K = "openai/grade-school-math/grade_school_math/data"
MATH = "ZubinGou/math-evaluation-harness/data/math/test.jsonl"
MATH500 = "ZubinGou/math-evaluation-harness/data/math_oai/test.jsonl"
QWEN = "QwenLM/Qwen2.5-Math/evaluation/data/eval_rm_maj_example/math_cot_100.jsonl"
LOGIQA = "lgw863/LogiQA-dataset/Test.txt"
GPT4 = f"{IFEVAL}/input_response_data_gpt4_20231107_145030.jsonl"
PALM2 = f"{IFEVAL}/input_response_data_text_bison.jsonl"


class Folder:
    """The files that a user has put together."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def text(self, name: str) -> str:
        """Return a file; raises UserError if it is not there."""
        path = self.root / name
        if not path.is_file():
            raise UserError(f"there is no {name}")
        if path.suffix == ".gz":
            return gzip.decompress(path.read_bytes()).decode()
        return path.read_text(encoding="utf-8")

    def rows(self, name: str) -> Rows:
        """Return the records of a file of JSON Lines."""
        return [json.loads(line) for line in self.text(name).splitlines() if line.strip()]


def humaneval(folder: Folder) -> dict[str, bytes]:
    name = "openai_humaneval/test-00000-of-00001.parquet"
    return {name: parquet(folder.rows(HUMANEVAL))}


def mbpp(folder: Folder) -> dict[str, bytes]:
    splits = {"prompt": range(1, 11), "test": range(11, 511)}
    return {
        f"full/{split}-00000-of-00001.parquet": parquet(
            [row for row in folder.rows(MBPP) if row["task_id"] in ids]
        )
        for split, ids in splits.items()
    }


def gsm8k(folder: Folder) -> dict[str, bytes]:
    return {
        f"main/{split}-00000-of-00001.parquet": parquet(folder.rows(f"{GSM8K}/{split}.jsonl"))
        for split in ("train", "test")
    }


def ifeval(folder: Folder) -> dict[str, bytes]:
    return {"ifeval_input_data.jsonl": json_lines(folder.rows(f"{IFEVAL}/input_data.jsonl"))}


def kept_ifeval(folder: Folder) -> dict[str, bytes]:
    """Return the prompts that PaLM 2 was asked too, whose answers are to an earlier version."""
    asked = {row["prompt"] for row in folder.rows(PALM2)}
    rows = [row for row in folder.rows(f"{IFEVAL}/input_data.jsonl") if row["prompt"] in asked]
    return {"ifeval_input_data.jsonl": json_lines(rows)}


def hendrycks_math(folder: Folder) -> dict[str, bytes]:
    found: dict[str, Rows] = {}
    for row in folder.rows(MATH):
        subject = row["type"].lower().replace("&", "and").replace(" ", "_")
        kept = {key: row[key] for key in ("problem", "level", "type", "solution")}
        found.setdefault(subject, []).append(kept)
    return {f"{name}/test-00000-of-00001.parquet": parquet(rows) for name, rows in found.items()}


def math500(folder: Folder) -> dict[str, bytes]:
    return {"test.jsonl": json_lines(folder.rows(MATH500))}


def qwen(folder: Folder) -> dict[str, bytes]:
    rows = folder.rows(QWEN)
    return {
        "test.jsonl": json_lines(
            [{"problem": row["question"], "solution": row["gt_cot"]} for row in rows]
        )
    }


def logiqa(folder: Folder) -> dict[str, bytes]:
    """Return LogiQA's blocks of eight lines in the columns of the hub's conversion."""
    lines = folder.text(LOGIQA).splitlines()
    rows = [
        {
            "context": lines[at + 2],
            "query": lines[at + 3],
            "options": [option[2:].strip() for option in lines[at + 4 : at + 8]],
            "correct_option": "abcd".index(lines[at + 1].strip()),
        }
        for at in range(0, len(lines) - 7, 8)
    ]
    return {f"default/{split}/0000.parquet": parquet(rows) for split in ("train", "test")}


REPOSITORIES: Mapping[str, Callable[[Folder], dict[str, bytes]]] = {
    "openai/openai_humaneval": humaneval,
    "google-research-datasets/mbpp": mbpp,
    "openai/gsm8k": gsm8k,
    "google/IFEval": ifeval,
    "own/kept-ifeval": kept_ifeval,
    "EleutherAI/hendrycks_math": hendrycks_math,
    "HuggingFaceH4/MATH-500": math500,
    "own/qwen": qwen,
    "lucasmccabe/logiqa": logiqa,
}


def repositories(folder: Folder) -> dict[str, Repo]:
    """Return what the hub serves: every data set whose files are there."""
    found = {}
    for name, make in REPOSITORIES.items():
        try:
            found[f"datasets/{name}"] = Repo([make(folder)], tags={"refs/convert/parquet": 0})
        except UserError as missing:
            print(f"{name} is not served: {missing}")
    return found
