"""A stream of one task and one world eval on the hub, for what can go wrong between here and there.

The task's files are named by the repository's own configuration; the world's by patterns.
"""

from __future__ import annotations

from local_hub import Repo, json_lines, parquet

from clbench.dataset import DataSet, Source, Template
from clbench.stream import Edition, Stream
from clbench.task import Eval, Task

SUMS, FACTS = "acme/sums", "acme/facts"
CARD = b"""---
license: cc-by-4.0
configs:
- config_name: plain
  data_files:
  - split: train
    path: plain/train-*
  - split: test
    path: plain/test-*
- config_name: hard
  data_files: hard/*.parquet
---
Sums.
"""
MEAN = {"aggregation": "mean", "higher_is_better": True}


def sums(first: int, count: int) -> list[dict[str, str]]:
    """Return sums that no other range shares."""
    return [
        {"q": f"What is {n} plus {n + 7}?", "a": f"{2 * n + 7}"}
        for n in range(first, first + count)
    ]


def sums_files(seed: int = 0) -> dict[str, bytes]:
    """Return a commit of the task's data: two training files, a test and another configuration."""
    at = 1000 * seed
    return {
        "README.md": CARD,
        "plain/train-00000-of-00002.parquet": parquet(sums(at, 8)),
        "plain/train-00001-of-00002.parquet": parquet(sums(at + 8, 8)),
        "plain/test-00000-of-00001.parquet": parquet(sums(500, 4)),
        "hard/all.parquet": parquet(sums(900, 4)),
    }


def repos() -> dict[str, Repo]:
    """Return the stream's data sets."""
    facts = [
        {"question": f"Which letter is number {n}?", "answer": [chr(96 + n)]} for n in range(1, 7)
    ]
    texts = [
        {"text": f"The letter {chr(96 + n)} comes after {chr(95 + n)}. " * 9} for n in range(2, 26)
    ]
    return {
        f"datasets/{SUMS}": Repo([sums_files()]),
        f"datasets/{FACTS}": Repo(
            [{"data/test.jsonl": json_lines(facts), "data/text.jsonl": json_lines(texts)}]
        ),
    }


def _eval(name: str, data: DataSet, prompt: str, target: str) -> Eval:
    return Eval(
        id=name,
        version=1,
        config={
            "doc_to_text": prompt,
            "doc_to_target": target,
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
            "metric_list": [{"metric": "exact_match", **MEAN}],
        },
        metric="exact_match,none",
        data={"test": data},
        data_id=data.id,
    )


def edition() -> Edition:
    """Return the content."""
    task = Task(
        name="sums",
        train=Source(DataSet(SUMS, "train", "plain"), Template("Question: {q}\nAnswer:", " {a}")),
        evals=(_eval("sums", DataSet(SUMS, "test", "plain"), "Question: {{q}}\nAnswer:", "{{a}}"),),
    )
    facts = DataSet(FACTS, "test", files=("data/test.jsonl",), columns=("question", "answer"))
    world = _eval("letters", facts, "Question: {{question}}\nAnswer:", "{{answer[0]}}")
    text = DataSet(FACTS, "train", files=("data/text.jsonl",), license="mit")
    return Edition((task,), (world,), Source(text, Template("", "{text}")), "acme/facts")


STREAM = Stream("hub-stream", "sums, then letters", {"full": edition})
