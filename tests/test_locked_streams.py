"""Every real stream: fetched, locked, and all of it read again with the hub gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import repos_classics
import repos_math_code_if
import repos_models
from hub_fixtures import HubEnv, hub_environment
from test_math_code_if import splitter  # noqa: F401

from clbench import api, registry
from clbench.evaluation import Evaluator
from clbench.hubcache import network_off
from clbench.lock import Lock
from clbench.preparation import prepare

REAL = [
    entry.name
    for entry in registry.listing(registry.STREAMS)
    if "full" in registry.stream(entry.name).editions
]


@pytest.fixture(scope="module")
def env(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[HubEnv]:
    """Serve every data set and the model; the folder of TRACE lies in `home`."""
    request.getfixturevalue("splitter")
    root = tmp_path_factory.mktemp("locked")
    repos = repos_math_code_if.repos() | repos_classics.repos() | repos_models.repos()
    with hub_environment(repos, root) as env:
        repos_classics.write_trace(root / "trace")
        yield env


def test_the_real_streams_are_here() -> None:
    assert {"math-code-if", "secura-16", "trace", "standard-cl", "long-cl"} <= set(REAL)


@pytest.mark.parametrize("name", REAL)
def test_a_stream_is_read_from_its_lock_alone(name: str, env: HubEnv, tmp_path: Path) -> None:
    if not env.hub.up:
        env.hub.start()
    lock = tmp_path / "clbench.lock"
    place = str(env.home / "trace")
    api.fetch(name, model=repos_models.LLAMA, lock=lock, data_dir=place)
    env.hub.stop()
    asked = {"model": repos_models.LLAMA, "locked": True, "lock": str(lock), "data_dir": place}
    plan = prepare(api.resolve(name, "lora", **asked))
    with network_off():
        for task in plan.edition.tasks:
            assert next(iter(plan.rows(task))).answer.strip()
        for data in plan.edition.data_sets:
            assert len(plan.hub.table(data)) > 0
        evaluator = Evaluator({}, None, plan.edition.evals, plan.config.eval, hub=plan.hub)
        assert all(evaluator.plan(spec.id).prompts for spec in plan.edition.evals)
        assert plan.loaded.info["id"] == repos_models.LLAMA
    held = {entry.key for entry in Lock.load(lock).entries}
    assert held == set(plan.hub.repositories.used)
