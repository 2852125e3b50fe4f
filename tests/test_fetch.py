"""Fetch, the lock, and runs from it: with the server gone and with everything that can be wrong."""

from __future__ import annotations

import copy
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_stream
import pytest
import repos_models
from click.testing import CliRunner
from hub_fixtures import HubEnv, hub_environment
from hub_stream import FACTS, SUMS, sums_files
from huggingface_hub import constants
from local_hub import TOKEN, Fault
from repos_models import LLAMA

from clbench import api, hubcache, training
from clbench.cli import main
from clbench.errors import UserError
from clbench.fetching import as_text
from clbench.lock import Entry, Lock, LockedFile
from clbench.report.data import data
from clbench.results import Record
from clbench.rundir import RunDirectory

STREAM = f"{Path(__file__).parent / 'hub_stream.py'}:STREAM"
SETTINGS = {"train.steps": 1, "train.batch_size": 2, "eval.samples": 2}
DATA = f"datasets/{SUMS}"
Serve = Callable[..., HubEnv]


def all_repos() -> dict[str, Any]:
    return copy.deepcopy(hub_stream.repos() | repos_models.repos())


def run(place: Path, **options: Any) -> Record:
    given = {"model": LLAMA, "settings": SETTINGS, "out": place / "run"} | options
    return api.run(STREAM, "lora", **given)


def fetch(place: Path, **options: Any) -> Any:
    return api.fetch(STREAM, **{"model": LLAMA, "lock": place / "clbench.lock"} | options)


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def env(hub_env: Serve) -> HubEnv:
    return hub_env(all_repos())


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubEnv, Path]]:
    """Fetch once; the server is gone afterwards."""
    place = tmp_path_factory.mktemp("locked")
    with hub_environment(all_repos(), place / "hf") as env:
        fetch(place)
        env.hub.stop()
        env.hub.requests.clear()
        yield env, place


@pytest.fixture
def no_sockets(no_sockets_after: Callable[[], None]) -> None:
    """Fail whatever connects to anything."""
    no_sockets_after()


@pytest.fixture
def no_sockets_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function from whose call on whatever connects to anything fails."""

    def connect(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"a socket is opened to {address}")

    def block() -> None:
        monkeypatch.setattr(socket.socket, "connect", connect)
        monkeypatch.setattr(socket.socket, "connect_ex", connect)

    return block


def sources(record: Record) -> dict[str, tuple[str, int]]:
    """Return commit and number of files of everything that a record names."""
    model, read = record.model.model_dump(mode="json"), record.data
    blocks: Any = [*read["tasks"].values(), read["calibration"], model]  # type: ignore[union-attr]
    blocks += [block.model_dump(mode="json") for block in record.evals.values()]
    found = [source for block in blocks for source in block["sources"]]
    return {f"{s['id']} {s.get('split', 'model')}": (s["revision"], len(s["files"])) for s in found}


# What the lock holds


def test_the_lock_names_commit_and_bytes_of_everything(locked: tuple[HubEnv, Path]) -> None:
    env, place = locked
    lock = Lock.load(place / "clbench.lock")
    assert [(e.kind, e.id, e.revision) for e in lock.entries] == [
        ("dataset", FACTS, env.hub.repos[f"datasets/{FACTS}"].sha()),
        ("dataset", SUMS, env.hub.repos[DATA].sha()),
        ("model", LLAMA, env.hub.repos[f"models/{LLAMA}"].sha()),
    ]
    assert [e.license for e in lock.entries] == ["mit", "cc-by-4.0", "llama2"]
    facts, sums, model = lock.entries
    assert set(facts.files) == {"data/test.jsonl", "data/text.jsonl"}
    assert sums.splits == {
        "plain/train": [f"plain/train-0000{n}-of-00002.parquet" for n in (0, 1)],
        "plain/test": ["plain/test-00000-of-00001.parquet"],
    }
    assert {"tokenizer.json", "model-00001-of-00002.safetensors"} < set(model.files)
    assert not any(name.endswith(".bin") for name in model.files)  # a pickle
    assert sums.files["README.md"].size == len(hub_stream.CARD)


def test_fetch_says_what_it_holds_and_what_leaks(env: HubEnv, tmp_path: Path) -> None:
    leaking = parquet_with_a_test_question()
    env.hub.repos[DATA].commits.append(sums_files() | leaking)
    fetched = fetch(tmp_path)
    text = as_text(fetched)
    assert f"dataset  acme/sums                 {env.hub.repos[DATA].sha()[:12]}" in text
    assert "license llama2" in text
    assert "leak: rows left out of train sums because they ask what an eval asks: 1" in text
    assert "same distribution: calibration reads the data set that letters asks about" in text
    before = fetched.leaks["before_removal"]["train sums"]["evals"]["sums"]
    assert before["leak_exact.v1"] == 0.25


def parquet_with_a_test_question() -> dict[str, bytes]:
    from local_hub import parquet

    return {"plain/train-00001-of-00002.parquet": parquet(hub_stream.sums(503, 1))}


def test_fetching_again_downloads_nothing_and_writes_the_same(env: HubEnv, tmp_path: Path) -> None:
    fetch(tmp_path)
    first = (tmp_path / "clbench.lock").read_bytes()
    env.hub.requests.clear()
    fetch(tmp_path)
    assert (tmp_path / "clbench.lock").read_bytes() == first
    assert not any("resolve" in request for request in env.hub.requests)


def test_a_lock_keeps_its_commits_until_it_is_updated(env: HubEnv, tmp_path: Path) -> None:
    path = tmp_path / "clbench.lock"
    fetch(tmp_path, model="tiny", data="full")
    old = env.hub.repos[DATA].sha()
    env.hub.repos[DATA].commits.append(sums_files(seed=1))
    fetch(tmp_path)  # adds the model
    found = Lock.load(path)
    assert [entry.kind for entry in found.entries] == ["dataset", "dataset", "model"]
    assert found.find("dataset", SUMS, "main").revision == old
    fetch(tmp_path, update=True)
    assert Lock.load(path).find("dataset", SUMS, "main").revision == env.hub.repos[DATA].sha()


def test_a_lock_of_another_machine_brings_its_commits(env: HubEnv, tmp_path: Path) -> None:
    fetch(tmp_path)
    old = env.hub.repos[DATA].sha()
    env.hub.repos[DATA].commits.append(sums_files(seed=1))
    with hub_environment(env.hub.repos, tmp_path / "other") as other:
        fetched = fetch(tmp_path)
        assert {e.revision for e in fetched.entries if e.id == SUMS} == {old}
        assert any(old in request for request in other.hub.requests if "resolve" in request)


# Runs from the lock


def test_a_locked_run_needs_no_network(
    locked: tuple[HubEnv, Path], tmp_path: Path, no_sockets: None
) -> None:
    env, place = locked
    record = run(tmp_path, locked=True, lock=str(place / "clbench.lock"))
    assert record.status == "complete"
    assert record.provenance["locked"] is True
    assert record.provenance["lock_digest"] == Lock.load(place / "clbench.lock").digest()
    repos = env.hub.repos
    facts, sums = repos[f"datasets/{FACTS}"].sha(), repos[DATA].sha()
    assert sources(record) == {
        f"{SUMS} train": (sums, 2),
        f"{SUMS} test": (sums, 1),
        f"{FACTS} test": (facts, 1),
        f"{FACTS} train": (facts, 1),
        f"{LLAMA} model": (repos[f"models/{LLAMA}"].sha(), 9),
    }
    assert record.model.revision == repos[f"models/{LLAMA}"].sha()
    assert env.hub.requests == []
    assert not hubcache.is_offline()  # as it was before


BLOCKER = """
import socket, sys

def connect(self, address):
    raise AssertionError(f"a socket is opened to {address}")

socket.socket.connect = socket.socket.connect_ex = connect
print("guarded", file=sys.stderr)
"""


def test_the_command_opens_no_socket_from_its_first_import(
    locked: tuple[HubEnv, Path], tmp_path: Path
) -> None:
    env, place = locked
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    folders = f"{tmp_path}{os.pathsep}{Path(__file__).parent}"
    command = [
        sys.executable,
        "-c",
        "from clbench.cli import main; main()",
        "run",
        "--stream",
        STREAM,
        "--strategy",
        "lora",
    ]
    command += ["--model", LLAMA, "--locked", "--lock", str(place / "clbench.lock"), "--quiet"]
    command += [f"--set={name}={value}" for name, value in SETTINGS.items()]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        env={**env.env, "PYTHONPATH": folders},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("guarded")
    assert Record.load(tmp_path / "run").status == "complete"


def test_a_locked_run_forbids_the_libraries_every_request(env: HubEnv) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with hubcache.network_off(), pytest.raises(OfflineModeIsEnabled):
        HfApi().dataset_info(SUMS)
    assert HfApi().dataset_info(SUMS).sha == env.hub.repos[DATA].sha()


def test_the_lock_is_no_part_of_what_is_compared(
    env: HubEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = run(tmp_path)
    assert (free.provenance["locked"], free.provenance["lock_digest"]) == (False, None)
    fetch(tmp_path)
    held = run(tmp_path, locked=True, lock=str(tmp_path / "clbench.lock"), out=tmp_path / "held")
    assert held.comparison_key() == free.comparison_key()
    assert sources(held) == sources(free)
    assert held.config.model_dump()["run"] == free.config.model_dump()["run"]


def test_the_record_shows_every_commit(env: HubEnv, tmp_path: Path) -> None:
    lines = [re.split(" {2,}", line) for line in data(run(tmp_path)).splitlines()]
    commits = {key: repo.sha()[:12] for key, repo in env.hub.repos.items()}
    sums, facts = commits[DATA], commits[f"datasets/{FACTS}"]
    assert [[*line[:2], line[2][:12]] for line in lines[2:7]] == [
        ["model", LLAMA, commits[f"models/{LLAMA}"]],
        ["train sums", f"{SUMS} (plain, train)", sums],
        ["calibration", f"{FACTS} (train)", facts],
        ["eval sums", f"{SUMS} (plain, test)", sums],
        ["eval letters", f"{FACTS} (test)", facts],
    ]


def test_without_a_lock_the_newest_is_taken_and_with_it_the_old(
    env: HubEnv, tmp_path: Path
) -> None:
    fetch(tmp_path)
    old = env.hub.repos[DATA].sha()
    env.hub.repos[DATA].commits.append(sums_files(seed=1))
    held = run(tmp_path, locked=True, lock=str(tmp_path / "clbench.lock"))
    free = run(tmp_path, out=tmp_path / "free")
    assert sources(held)[f"{SUMS} train"][0] == old
    assert sources(free)[f"{SUMS} train"][0] == env.hub.repos[DATA].sha() != old
    assert held.comparison_key() != free.comparison_key()  # other rows


def test_what_the_lock_does_not_hold_is_refused(
    locked: tuple[HubEnv, Path], tmp_path: Path, no_sockets: None
) -> None:
    _, place = locked
    path = place / "clbench.lock"

    def said(**options: Any) -> str:
        return refusal(lambda: run(tmp_path, **{"locked": True, "lock": str(path)} | options))

    remedy = f"clbench fetch --stream {STREAM} --model"
    assert said(model="acme/other") == (
        f"the lock does not hold model 'acme/other'; `{remedy} acme/other --lock {path}` fetches "
        "and locks it"
    )
    assert "does not hold model" in said(revision="v2")
    missing = tmp_path / "no.lock"
    assert said(lock=str(missing)) == (
        f"there is no lock '{missing}'; `{remedy} {LLAMA} --lock {missing}` writes it"
    )
    thin = tmp_path / "thin.lock"
    held = Lock.load(path)
    cut = [e.model_copy(update={"splits": {}}) if e.id == SUMS else e for e in held.entries]
    Lock(entries=tuple(cut)).save(thin)
    assert "does not hold data set acme/sums (plain, train)" in said(lock=str(thin))
    cut = [e.model_copy(update={"files": {}}) if e.id == FACTS else e for e in held.entries]
    Lock(entries=tuple(cut)).save(thin)
    assert "(test) has no file data/test.jsonl" in said(lock=str(thin))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "tokenizer_config.json"])
def test_a_file_that_is_not_what_was_locked_is_refused(
    locked: tuple[HubEnv, Path], tmp_path: Path, name: str
) -> None:
    env, place = locked
    options = {"locked": True, "lock": str(place / "clbench.lock")}
    (link,) = env.home.rglob(f"snapshots/*/{name}")
    blob = link.resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1])
    said = refusal(lambda: run(tmp_path, **options))
    assert f"{name} of model '{LLAMA}' is damaged" in said
    assert "not what the lock says" in said
    blob.unlink()
    said = refusal(lambda: run(tmp_path, **options))
    assert f"{name} of model '{LLAMA}' is locked but not in the cache {env.home / 'hub'}" in said
    blob.write_bytes(content)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not strict JSON"),
        ("[]", "is no clbench lock: its format is not 'clbench.lock'"),
        ('{"format": "clbench.lock", "schema_version": 2}', "has lock schema 2"),
        (
            '{"format": "clbench.lock", "schema_version": 1, "entries": [{"kind": "model"}]}',
            "is no valid lock: entries.0.id: Field required",
        ),
    ],
)
def test_a_file_that_is_no_lock_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "clbench.lock"
    path.write_text(text)
    assert said in refusal(lambda: Lock.load(path))


def test_a_lock_that_is_written_is_read_back(tmp_path: Path) -> None:
    file = LockedFile(size=3, sha256="ab" * 32)
    one = Entry(kind="dataset", id="a/b", revision="1" * 40, files={"x": file})
    two = one.model_copy(update={"files": {"y": file}, "splits": {"default/train": ["y"]}})
    other = one.model_copy(update={"revision": "2" * 40})
    lock = Lock().merged({one.key: one}).merged({two.key: two})
    assert set(lock.entries[0].files) == {"x", "y"}
    assert set(lock.merged({other.key: other}).entries[0].files) == {"x"}
    lock.save(tmp_path / "clbench.lock")
    assert Lock.load(tmp_path / "clbench.lock") == lock
    assert lock.find("dataset", "a/b", "1" * 40) == lock.find("dataset", "a/b", "main")
    assert lock.find("model", "a/b", "main") is None


def test_offline_without_a_lock_the_cache_is_used_as_it_is(
    env: HubEnv,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_sockets_after: Callable[[], None],
) -> None:
    held = fetch(tmp_path)
    no_sockets_after()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    record = run(tmp_path)
    assert sources(record)[f"{SUMS} train"] == (env.hub.repos[DATA].sha(), 2)
    again = fetch(tmp_path, lock=tmp_path / "again.lock")
    assert [e.files for e in again.lock.entries] == [e.files for e in held.lock.entries]


# What breaks off


def test_a_server_that_dies_leaves_no_lock_and_fetch_goes_on(
    env: HubEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    env.hub.faults.append(Fault("GET /meta-llama/Llama-2-7b-hf/resolve", cut=100, stop=True))
    refusal(lambda: fetch(tmp_path))
    assert not (tmp_path / "clbench.lock").exists()
    assert not list(env.home.rglob("*.incomplete"))
    env.hub.start()
    assert len(fetch(tmp_path).entries) == 3


def test_the_room_for_everything_is_looked_at_first(
    env: HubEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = hubcache.shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(hubcache.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
        said = refusal(lambda: fetch(tmp_path))
    assert f"in {env.home / 'hub'}, and 100 kB are free; free some, or set HF_HOME" in said
    assert not any("safetensors" in request for request in env.hub.requests)


def interrupted(place: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Run until the training begins."""

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            run(place, **options)


def test_a_run_does_not_go_on_with_data_that_moved(
    env: HubEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, monkeypatch)
    old = env.hub.repos[DATA].sha()
    fetch(tmp_path)
    env.hub.repos[DATA].commits.append(sums_files() | {"LICENSE": b"as before\n"})
    assert refusal(lambda: run(tmp_path)) == (
        f"{tmp_path / 'run'} holds an interrupted run that read {SUMS} plain test at commit {old}, "
        f"and it is at {env.hub.repos[DATA].sha()} now; choose another --out, or --fresh to delete "
        "it and start anew"
    )
    record = run(tmp_path, locked=True, lock=str(tmp_path / "clbench.lock"))
    assert record.status == "complete"


def test_a_finished_run_is_read_back_whatever_moved(env: HubEnv, tmp_path: Path) -> None:
    record = run(tmp_path)
    env.hub.repos[DATA].commits.append(sums_files(seed=1))
    assert run(tmp_path).record_digest() == record.record_digest()


def test_files_of_the_users_that_changed_are_named(tmp_path: Path) -> None:
    def block(sha: str) -> dict[str, Any]:
        source = {"id": "own.jsonl", "split": "train", "revision": None, "files": {"own": sha}}
        return {"tasks": {"own": {"sources": [source]}}}

    new = api_record()
    with RunDirectory(tmp_path / "run", new) as book:
        book.commit(0, "evaluate", {}, data=block("a"))
        book.describe(data=block("a"))
        with pytest.raises(UserError, match=r"read own\.jsonl train whose files have changed"):
            book.describe(data=block("b"))


def api_record() -> Record:
    return Record.model_validate(
        {
            "identity": {"run_id": "r", "suite_version": "0"},
            "config": {"stream": "s", "strategy": "lora"},
            "model": {"id": "m", "dtype": "float32"},
            "matrix": {"tasks": ["own"], "task_evals": {"own": ["e"]}, "world": [], "rows": []},
        }
    )


# The command


def command(*arguments: str) -> Any:
    return CliRunner().invoke(main, list(arguments))


def test_the_command_fetches_a_gated_model_with_a_token(
    env: HubEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.hub.repos[f"models/{LLAMA}"].gated = True
    lock = tmp_path / "clbench.lock"
    arguments = ("fetch", "--stream", STREAM, "--model", LLAMA, "--lock", str(lock))
    refused = command(*arguments)
    assert refused.exit_code == 2
    assert refused.stderr.splitlines()[-1] == (
        f"clbench: model '{LLAMA}' is gated: accept its terms on {env.hub.url}/{LLAMA}, then log "
        "in with `hf auth login` or set HF_TOKEN"
    )
    assert not lock.exists()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = command(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["digest"] == Lock.load(lock).digest()
    assert {entry["id"] for entry in found["entries"]} == {SUMS, FACTS, LLAMA}


def test_a_lock_without_locked_is_refused() -> None:
    refused = command("run", "--stream", STREAM, "--strategy", "lora", "--data", "full", "--lock=x")
    assert (refused.exit_code, refused.stderr) == (
        2,
        "clbench: --lock is read with --locked only\n",
    )


def test_the_command_shows_its_progress_and_refuses_what_it_does_not_know(
    env: HubEnv, tmp_path: Path
) -> None:
    lock = str(tmp_path / "clbench.lock")
    done = command("fetch", "--stream", STREAM, "--data", "full", "--lock", lock)
    assert done.exit_code == 0, done.output
    assert f"fetch {SUMS} (2 kB)" in done.stderr
    assert "locked in" in done.stdout
    for option, value in (("--stream", "nothing"), ("--model", "./nothing"), ("--data", "huge")):
        given = {"--stream": STREAM, "--model": LLAMA, "--lock": lock} | {option: value}
        refused = command("fetch", *(part for pair in given.items() for part in pair))
        assert (refused.exit_code, value in refused.stderr) == (2, True)
