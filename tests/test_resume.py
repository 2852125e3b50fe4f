"""A run killed in any phase and started again ends as one that was never interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import toy_runs

from clbench.results import Record

STARTER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits SIG_IGN
sys.path.insert(0, {folder!r})
import toy_runs
from pathlib import Path
from clbench import experiment
config = toy_runs.toy_config(Path({model!r}), strategy=toy_runs.KILLER, threads=1)
experiment.run(config, out=Path({out!r}))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy_runs.save_toy_model(tmp_path_factory.mktemp("model"))


def start(model, out, kill_at=""):
    """Start a real process that runs the stream, and dies of SIGKILL at `kill_at`."""
    script = STARTER.format(folder=os.path.dirname(__file__), model=str(model), out=str(out))
    environment = os.environ | {"KILL_AT": kill_at, "CLBENCH_CACHE": str(out.parent / "cache")}
    return subprocess.Popen([sys.executable, "-c", script], env=environment)


@pytest.fixture(scope="module")
def uninterrupted(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert start(model, out).wait(timeout=300) == 0
    return out


def result(run):
    record = Record.load(run)
    assert record.status == "complete"
    scores = [
        {e: (cell.score, cell.weights_digest) for e, cell in row.items()}
        for row in record.matrix.rows
    ]
    values = {name: (metric.value, metric.interval) for name, metric in record.metrics.items()}
    items = {path.name: path.read_bytes() for path in (run / "items").iterdir()}
    return scores, values, items


def phases(run):
    done = Record.load(run).provenance["phases"]
    return [(p["row"], p["phase"]) for p in done]


@pytest.mark.parametrize(
    ("place", "last"),
    [
        ("calibrate code", (1, "evaluate")),
        ("train", (1, "calibrate")),
        ("fold code", (2, "train")),
    ],
)
def test_killed_in_a_hook(place, last, model, uninterrupted, tmp_path):
    assert start(model, tmp_path / "run", kill_at=place).wait(timeout=300) == -signal.SIGKILL
    assert phases(tmp_path / "run")[-1] == last
    assert start(model, tmp_path / "run").wait(timeout=300) == 0
    assert result(tmp_path / "run") == result(uninterrupted)


def test_killed_while_evaluating(model, uninterrupted, tmp_path):
    out = tmp_path / "run"
    process = start(model, out)
    wait_for(out / "events.jsonl", '"event": "start", "row": 1, "phase": "evaluate"', process)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert phases(out)[-1] == (1, "fold")
    assert start(model, out).wait(timeout=300) == 0
    assert result(out) == result(uninterrupted)


def wait_for(path, text, process):
    """Return as soon as a file holds a text that the process writes."""
    while process.poll() is None:
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.005)
    pytest.fail("the run ended before it could be killed")


def test_interrupted_by_ctrl_c(model, uninterrupted, tmp_path):
    out = tmp_path / "run"
    process = start(model, out)
    wait_for(out / "events.jsonl", '"event": "step", "row": 1', process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert start(model, out).wait(timeout=300) == 0
    assert result(out) == result(uninterrupted)


def test_a_full_disk_stops_with_one_sentence_and_goes_on(
    model, uninterrupted, tmp_path, monkeypatch
):
    """The disk is full while the second checkpoint is written."""
    from clbench import checkpoint, experiment
    from clbench.errors import UserError

    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    config = toy_runs.toy_config(model, strategy=toy_runs.KILLER, threads=1)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match=r"cannot write .*1-calibrate.*No space left"):
            experiment.run(config, out=tmp_path / "run")
    assert phases(tmp_path / "run") == [(0, "evaluate")]
    assert not list((tmp_path / "run" / "weights").glob("*calibrate.safetensors*"))
    experiment.run(config, out=tmp_path / "run")
    assert result(tmp_path / "run") == result(uninterrupted)
