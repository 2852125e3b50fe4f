"""Every real stream: run from the hub, fetched and locked, and run again with the hub gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import repos_classics
import repos_math_code_if
import repos_models
from hub_fixtures import HubEnv, hub_environment
from local_hub import Repo
from test_classic_streams import ABILITIES, STREAMS
from test_math_code_if import splitter, talkative_no_more  # noqa: F401

from clbench import api, registry
from clbench.hubcache import network_off
from clbench.lock import Lock
from clbench.matrix import ScoreMatrix
from clbench.results import Record

REAL = [
    entry.name
    for entry in registry.listing(registry.STREAMS)
    if "full" in registry.stream(entry.name).editions
]
DIAGNOSTICS = {"curlora-3": ["word_perplexity.v1[wikitext]"]}
SMALL = {
    "lora.rank": 2,
    "train.steps": 1,
    "train.batch_size": 2,
    "train.max_length": 1024,
    "eval.samples": 2,
    "eval.schedule": "ends",
    "eval.rank_items": 1,
}


@pytest.fixture(scope="module")
def env(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[HubEnv]:
    """Serve every data set and a Llama that soon stops; the folder of TRACE lies in `home`."""
    request.getfixturevalue("splitter")
    root = tmp_path_factory.mktemp("locked")
    repos = repos_math_code_if.repos() | repos_classics.repos()
    repos[f"models/{repos_models.LLAMA}"] = Repo([talkative_no_more(repos_models.llama_files())])
    with hub_environment(repos, root) as env:
        repos_classics.write_trace(root / "trace")
        yield env


def test_the_real_streams_are_here() -> None:
    assert {"math-code-if", *STREAMS} == set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_a_stream_runs_from_the_hub_and_from_its_lock_alone(
    name: str, env: HubEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = registry.stream(name).edition("full").data_sets
    place = str(env.home / "trace") if any(data.place == "folder" for data in read) else None

    def run(out: str, **options: Any) -> Record:
        monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / f"cache-{out}"))  # nothing is read back
        return api.run(
            *(name, "lora"),
            model=repos_models.LLAMA,
            out=tmp_path / out,
            data_dir=place,
            train_limit=8,
            device="cpu",
            dtype="float32",
            isolation="none",
            settings=SMALL,
            **options,
        )

    if not env.hub.up:
        env.hub.start()
    record = run("open")
    assert record.status == "complete"
    for eval_id, cell in record.matrix.rows[-1].items():
        assert cell.score is not None, (eval_id, cell)
    if list(record.matrix.world) == ABILITIES:
        assert record.metrics["trace_delta.v1[general]"].value is not None

    lock = tmp_path / "clbench.lock"
    api.fetch(name, model=repos_models.LLAMA, lock=lock, data_dir=place)
    env.hub.stop()
    with network_off():
        again = run("locked", locked=True, lock=str(lock))
    assert again.status == "complete"
    assert scores(again.matrix) == scores(record.matrix)
    assert diagnostics(again) == diagnostics(record)
    assert list(diagnostics(record)) == DIAGNOSTICS.get(name, [])
    assert again.comparison_key() == record.comparison_key()
    named = {entry.id for entry in Lock.load(lock).entries}
    for block in (again.data["tasks"], {name: e.model_dump() for name, e in again.evals.items()}):
        for each in block.values():
            assert {source["id"] for source in each["sources"]} <= named
            assert each["sources"]


def diagnostics(record: Record) -> dict[str, list[float]]:
    """Return what was measured beside the scores of the base model and after the last task."""
    phases: Any = record.provenance["phases"]
    rows = [phase["diagnostics"] for phase in phases if phase.get("diagnostics")]
    return {name: [row[name]["value"] for row in rows] for row in rows[:1] for name in row}


def scores(matrix: ScoreMatrix) -> list[dict[str, float | None]]:
    """Return the scores of every row by eval."""
    return [{name: cell.score for name, cell in row.items()} for row in matrix.rows]
