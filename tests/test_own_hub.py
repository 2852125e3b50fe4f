"""A data set of the hub as a task, and one of lm-eval's tasks as world, by a stream file alone."""

from __future__ import annotations

import re
from pathlib import Path

import hub_stream
import toy_runs
from hub_fixtures import hub_environment

import clbench
from clbench.report import data

FILE = """
preset = "tiny"
[[tasks]]
name = "sums"
hub = "acme/sums"
config = "plain"
license = "CC BY 4.0"
columns = { question = "q" }
prompt = "Question: {question}\\nAnswer:"
answer = " {a}"
[tasks.eval]
split = "test"
score = "final_number"
[[world]]
name = "facts"
lm_eval = "nq_open"
metric = "exact_match,remove_whitespace"
hub = "acme/facts"
files = ["data/test.*"]
split = "validation"
"""


def test_a_data_set_of_the_hub_is_a_task_and_lm_eval_s_own_is_the_world(
    tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text(FILE)
    repos = hub_stream.repos()
    model = str(toy_runs.save_toy_model(tmp_path / "model"))
    with hub_environment(repos, tmp_path / "home"):
        settings = {"train.steps": 1, "train.lr": 1e-4}
        record = clbench.run("my.toml", "lora", model=model, settings=settings, out="run")
    assert record.status == "complete"
    assert record.matrix.evals == ("sums", "facts")
    assert [cell.num_items for cell in record.matrix.rows[0].values()] == [4, 6]
    assert record.data["tasks"]["sums"]["num_rows"] == 16
    assert set(record.flags) == {"few_items", "length"}  # no leak, no truncation
    shown = " ".join(data.data(record).split())
    sha = repos["datasets/acme/sums"].sha()[:19]
    assert f" train sums acme/sums (plain, train) {sha} 16 CC BY 4.0 " in shown
    assert f" eval sums acme/sums (plain, test) {sha} CC BY 4.0 " in shown
    assert " eval facts acme/facts (validation) " in shown
    assert re.search(r" eval facts: lm-eval \S+'s nq_open, version \d+, zero-shot, ", shown)
