"""A record on the terminal: every number where it belongs, every gap with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clbench.matrix import Cell, Metric, Partial, References, ScoreMatrix
from clbench.metrics import compute
from clbench.report import text
from clbench.results import Record

EVALS = ("m_eval", "c_eval", "w_eval")


def row(*scores: float | None, reason: str = "refused") -> dict[str, Cell]:
    return {
        e: Cell(s, num_items=200) if s is not None else Cell(None, reason=reason)  # type: ignore[arg-type]
        for e, s in zip(EVALS, scores, strict=True)
    }


def record(**changes: Any) -> Record:
    matrix = ScoreMatrix(
        tasks=("math", "code"),
        task_evals={"math": ("m_eval",), "code": ("c_eval",)},
        world=("w_eval",),
        rows=(row(0.1, None, 0.96), row(0.8, None, 0.5), row(0.405, None, 0.25)),
    )
    blocks: dict[str, Any] = {
        "identity": {"run_id": "r", "suite_version": "0.1.0"},
        "config": {"stream": "s", "strategy": "lora-null", "seed": 3},
        "model": {"id": "tiny", "dtype": "float32"},
        "matrix": matrix,
        "metrics": {
            "bwt.v1": Metric(-0.395, terms=1, interval=(-0.45, -0.31), source="items"),
            "final_avg.v1": Metric(None, reason="missing", partial=Partial(0.405, 1, 2)),
            "joint_gap.v1": Metric(None, reason="no_reference"),
            "fwt.v1": Metric(None, reason="missing"),
            "world_delta.v1": Metric(-0.71),
        },
        "cost": {
            "seconds.train.v1": 42.0,
            "seconds.fold.v1": 0.0,
            "seconds.v1": 80.0,
            "peak_bytes.host.v1[train]": 1.25e9,
            "trainable.v1": 12345,
            "parameters.v1": 3000000,
            "tokens.calibrated.v1": 24576,
        },
        "provenance": {"phases": [{"evals": {"c_eval": {"note": "install bubblewrap"}}}]},
        "status": "refused",
    }
    return Record.model_validate(blocks | changes)


def cells_of(line: str) -> list[str]:
    return line.split()


def test_the_matrix_shows_points_in_the_order_of_the_run():
    lines = text.matrix(record().matrix).splitlines()
    assert cells_of(lines[0]) == ["math", "code", "world"]
    assert cells_of(lines[1]) == list(EVALS)
    assert cells_of(lines[3]) == ["base", "10.0", "–", "96.0"]
    assert cells_of(lines[4]) == ["after", "math", "80.0", "–", "50.0"]
    assert cells_of(lines[5]) == ["after", "code", "40.5", "–", "25.0"]


def test_rows_that_are_not_measured_yet_are_left_out():
    matrix = record().matrix
    begun = ScoreMatrix(matrix.tasks, matrix.task_evals, matrix.world, matrix.rows[:1])
    assert "after" not in text.matrix(begun)


def test_every_gap_has_its_reason_and_what_helps():
    notes = text.footnotes(record())
    assert notes.splitlines() == [
        "– c_eval: no isolation to run generated code in",
        "  install bubblewrap",
    ]


@pytest.mark.parametrize("reason", ["not_scheduled", "failed", "refused", "diverged", "leaked"])
def test_every_reason_of_a_cell_has_words(reason: str):
    matrix = ScoreMatrix(
        ("math", "code"),
        {"math": ("m_eval",), "code": ("c_eval",)},
        ("w_eval",),
        (row(0.1, None, 0.9, reason=reason),),
    )
    assert text.WHY[reason] in text.footnotes(record(matrix=matrix))


def test_flags_are_shown_with_their_evals():
    matrix = record().matrix.with_row(0, row(0.1, None, 0.9) | {"m_eval": Cell(0.1, flags=("x",))})
    assert "flag x: m_eval" in text.footnotes(record(matrix=matrix))


def summary_line(name: str) -> str:
    (line,) = [s for s in text.summary(record().metrics).splitlines() if name in s]
    return line


def test_the_summary_shows_intervals():
    assert summary_line("bwt.v1").split("bwt.v1")[1].split() == ["-39.5", "[-45.0,", "-31.0]"]


def test_a_partial_mean_is_shown_as_one():
    assert "(40.5)  partial: 1 of 2 terms" in summary_line("final_avg.v1")


def test_what_needs_references_is_shown_only_where_there_are_some():
    shown = text.summary(record().metrics)
    assert "joint_gap" not in shown
    assert "fwt" not in shown
    assert "joint_gap.v1" in text.summary({"joint_gap.v1": Metric(0.1)})


RETENTION = ("bwt.v1", "world_delta.v1", "world_ratio_clip.v1", "rel_pooled.v1")


def test_retention_stands_beside_the_raw_scores_and_what_was_learned():
    """The clipped share hides gains and the size of the base score, and who learns nothing keeps
    everything."""
    whole = ScoreMatrix(
        ("math", "code"),
        {"math": ("m_eval",), "code": ("c_eval",)},
        ("w_eval",),
        (row(0.1, 0.1, 0.2), row(0.8, 0.1, 0.5), row(0.4, 0.7, 0.3)),
    )
    measured = compute(whole, References(single={"math": 0.9, "code": 0.8}))
    shown = {line.split()[-2]: line.split()[-1] for line in _lines(text.summary(measured))}
    assert set(RETENTION) <= shown.keys()
    assert shown["world_ratio_clip.v1"] == "100.0"  # though the score rose by a half
    assert (shown["world_before.v1"], shown["world_after.v1"]) == ("20.0", "30.0")
    assert shown["learning_acc.v1"] == "75.0"


def _lines(table: str) -> list[str]:
    return [line for line in table.splitlines() if ".v1" in line]


def test_cost_is_for_people():
    lines = {line.rsplit("  ", 1)[0].strip(): line.split() for line in _cost().splitlines()}
    assert lines["train"][-2:] == ["42", "s"]
    assert lines["all phases"][-2:] == ["80", "s"]
    assert lines["peak memory"][-2:] == ["1.2", "GB"]
    assert "fold" not in lines
    assert "12,345 of 3,000,000" in _cost()
    assert "24,576" in _cost()


def test_what_trains_and_what_is_kept_have_lines_of_their_own():
    """A memory or a Fisher costs bytes that no trained parameter shows."""
    assert "kept between tasks" not in _cost()
    shown = text.cost(record().cost | {"kept_bytes.v1": 40_000}).splitlines()
    assert [line.split()[-2:] for line in shown if "kept between tasks" in line] == [["40", "kB"]]
    assert sum("trainable parameters" in line for line in shown) == 1


def _cost() -> str:
    return text.cost(record().cost)


def test_the_whole_result_says_where_the_record_is_and_what_to_type_next():
    shown = text.result(record(), Path("runs/s/x"))
    assert "s with lora-null, model tiny, seed 3, refused" in shown
    assert "record: runs/s/x/record.json" in shown
    assert "clbench compare runs/s/x OTHER" in shown
    assert "One seed" in shown
    assert "clbench run" not in shown  # nothing was typed


def commands_after(command: list[str], **asked: Any) -> list[str]:
    config = {"stream": "s", "strategy": "x(norm=l2)", "seed": 4}
    config["run"] = {"strategy": "x", "params": {"x": {"rank": 8, "norm": "l2"}}, **asked}
    shown = text.result(
        record(config=config, provenance={"command": command, "phases": []}), Path("my runs")
    )
    return [line.strip().partition("  #")[0] for line in shown.partition("next:")[2].splitlines()]


def test_what_to_type_next_is_what_was_typed_but_for_the_seed_or_the_strategy():
    typed = ["/opt/bin/clbench", "--debug", "run", "--stream=trace", "--data-dir", "my data"]
    typed += ["--strategy", "x", "--seed", "4", "--locked", "--tasks", "a,b", "--order", "1,0"]
    typed += ["--set", "rank=8", "--set", "x.norm=l2", "--set", "train.lr=0.1", "--engine", "vllm"]
    after = commands_after([*typed, "--out", "my runs", "--fresh"])
    common = "clbench run --stream=trace --data-dir 'my data' {}--locked --tasks a,b --order 1,0 "
    assert after[1:] == [
        f"{common.format('--strategy x ')}--set rank=8 --set x.norm=l2 --set train.lr=0.1 "
        "--engine vllm --seed 5",
        f"{common.format('--seed 4 ')}--set train.lr=0.1 --engine vllm --strategy NAME",
        "clbench compare 'my runs' OTHER",
    ]


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (["train.py", "run", "--strategy", "x"], {}),  # clbench.run in a script of the user's
        (["clbench", "run", "--strategy", "y"], {}),  # a reference, trained by another strategy
        (["clbench", "run", "--strategy", "x"], {"joint": True}),
        (["clbench", "run", "--strategy", "x"], {"tasks": ["a"]}),
        ([], {}),
    ],
)
def test_a_run_that_was_not_typed_has_no_command(command: list[str], asked: dict[str, Any]):
    assert commands_after(command, **asked)[1:] == ["clbench compare 'my runs' OTHER"]


def test_the_title_shows_the_label():
    asked = {"stream": "s", "strategy": "x(norm=l2)", "run": {"strategy": "x"}}
    assert "s with x(norm=l2), model tiny" in text.result(record(config=asked), Path("runs"))


@pytest.mark.parametrize(("num", "shown"), [(12e3, "12 kB"), (412e6, "412 MB"), (1.26e9, "1.3 GB")])
def test_sizes_are_for_people(num: float, shown: str):
    assert text.size(num) == shown
