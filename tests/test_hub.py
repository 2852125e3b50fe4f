"""Data sets of the hub: pinned once, checked by content, and one sentence for what goes wrong."""

from __future__ import annotations

import gzip
import io
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_stream
import pyarrow.parquet
import pytest
from hub_fixtures import HubEnv
from hub_stream import FACTS, SUMS, sums, sums_files
from huggingface_hub import constants
from local_hub import TOKEN, Fault, Repo, json_lines, json_list, parquet

from clbench.dataset import DataSet
from clbench.errors import UserError
from clbench.hub import Hub
from clbench.lock import Lock
from clbench.repositories import Repositories

Serve = Callable[..., HubEnv]
TRAIN = DataSet(SUMS, "train", "plain")
FILES = DataSet(SUMS, "train", files=("plain/train-*",))
FIRST = "plain/train-00000-of-00002.parquet"
KEY = f"datasets/{SUMS}"


@pytest.fixture
def env(hub_env: Serve) -> HubEnv:
    return hub_env(hub_stream.repos())


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return how long the code would have waited, without waiting."""
    waits: list[float] = []
    sleep = time.sleep

    def wait(seconds: float) -> None:
        waits.append(seconds)
        sleep(min(seconds, 0.01))

    monkeypatch.setattr(time, "sleep", wait)
    return waits


def empty_parquet() -> bytes:
    sink = io.BytesIO()
    table = pyarrow.parquet.read_table(io.BytesIO(parquet(sums(0, 1))))
    pyarrow.parquet.write_table(table.slice(0, 0), sink)
    return sink.getvalue()


def refusal(data: DataSet, hub: Hub | None = None) -> str:
    with pytest.raises(UserError) as caught:
        (hub or Hub()).table(data)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def questions(table: Any) -> list[str]:
    return list(table["q"])


def blobs(env: HubEnv) -> list[Path]:
    return [path for path in env.home.rglob("blobs/*") if path.is_file()]


# One commit


def test_a_repository_that_moves_between_two_files_gives_no_mix(env: HubEnv) -> None:
    repo, hub = env.hub.repos[KEY], Hub()
    old = repo.sha()
    assert questions(hub.table(FILES)) == [row["q"] for row in sums(0, 16)]
    repo.commits.append(sums_files(seed=1))
    test = hub.find(DataSet(SUMS, "test", files=("plain/test-*",)))
    assert test.revision == old != repo.sha()
    assert env.hub.requests.count(f"GET /api/{KEY}/revision/main") == 1
    assert questions(Hub().table(FILES)) == [row["q"] for row in sums(1000, 16)]


def test_a_pinned_revision_is_a_tag_or_a_commit(env: HubEnv) -> None:
    repo = env.hub.repos[KEY]
    repo.commits.append(sums_files(seed=1))
    repo.tags["v1"] = 0
    for revision in ("v1", repo.sha(0)):
        data = DataSet(SUMS, files=("plain/train-*",), revision=revision)
        assert Hub().find(data).revision == repo.sha(0)
    assert refusal(DataSet(SUMS, files=("*",), revision="v2")) == (
        f"data set 'acme/sums' has no revision 'v2'; {env.hub.url}/datasets/acme/sums lists them"
    )


def test_the_sources_name_commit_and_bytes(env: HubEnv) -> None:
    (source,) = Hub().sources(TRAIN)
    assert (source["id"], source["config"], source["split"]) == (SUMS, "plain", "train")
    assert source["revision"] == env.hub.repos[KEY].sha()
    held = sums_files()[FIRST]
    assert source["files"][FIRST]["size"] == len(held)
    assert len(source["files"]) == 2


# Which files make a split


def test_the_repository_says_which_files_make_a_split(env: HubEnv) -> None:
    hub = Hub()
    assert hub.find(TRAIN).names == (FIRST, "plain/train-00001-of-00002.parquet")
    assert questions(hub.table(TRAIN)) == [row["q"] for row in sums(0, 16)]
    assert hub.find(DataSet(SUMS, "train", "hard")).names == ("hard/all.parquet",)
    assert not any("hard" in r for r in env.hub.requests if "GET" in r and "plain" in r)


def test_without_a_card_names_decide(env: HubEnv) -> None:
    files = {name: content for name, content in sums_files().items() if name.startswith("plain/")}
    env.hub.repos["datasets/acme/bare"] = Repo([files])
    assert Hub().find(DataSet("acme/bare", "test")).names == ("plain/test-00000-of-00001.parquet",)


def test_an_unknown_configuration_or_split_is_named_with_the_choices(env: HubEnv) -> None:
    assert "'easy'; choices: hard, plain" in refusal(DataSet(SUMS, "train", "easy"))
    assert refusal(DataSet(SUMS, "dev", "plain")) == (
        "unknown split of data set acme/sums 'dev'; choices: test, train"
    )
    assert refusal(DataSet(SUMS, files=("plain/dev-*",))) == (
        "data set acme/sums (train) has no file plain/dev-*"
    )


def test_a_loading_script_is_never_run(env: HubEnv) -> None:
    env.hub.repos["datasets/acme/old"] = Repo([{"old.py": b"raise SystemExit", "a.zip": b""}])
    assert "needs its own code old.py, which is not run" in refusal(DataSet("acme/old"))
    assert not any("resolve" in request for request in env.hub.requests)


def test_packed_and_tabbed_files_are_read(env: HubEnv) -> None:
    packed = gzip.compress(json_lines(sums(0, 3)), mtime=0)
    env.hub.repos["datasets/acme/kinds"] = Repo(
        [{"a.jsonl.gz": packed, "b.tsv": b"q\ta\nx, y\t1\n"}]
    )
    assert len(Hub().table(DataSet("acme/kinds", files=("*.gz",)))) == 3
    assert questions(Hub().table(DataSet("acme/kinds", files=("*.tsv",)))) == ["x, y"]


# What is in them


def test_a_missing_column_and_an_empty_split_are_named(env: HubEnv) -> None:
    wrong = DataSet(FACTS, "test", files=("data/test.jsonl",), columns=("question", "answers"))
    assert refusal(wrong) == (
        "unknown column of data set acme/facts (test) 'answers'; did you mean answer? "
        "choices: answer, question"
    )


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json", "csv"])
def test_an_empty_split_is_named_and_an_empty_file_of_several_left_out(
    env: HubEnv, kind: str
) -> None:
    nothing, some = {
        "parquet": (empty_parquet(), parquet(sums(0, 2))),
        "jsonl": (b"\n", json_lines(sums(0, 2))),
        "json": (b"[]\n", json_list(sums(0, 2))),
        "csv": (b"", b"q,a\n1,2\n3,4\n"),
    }[kind]
    env.hub.repos["datasets/acme/none"] = Repo([{f"0.{kind}": nothing, f"1.{kind}": some}])
    empty = DataSet("acme/none", files=("0.*",))
    assert refusal(empty) == "data set acme/none (train) is empty"
    assert len(Hub().table(DataSet("acme/none", files=("*",)))) == 2


def test_a_file_that_is_not_what_its_name_says_is_one_sentence(env: HubEnv) -> None:
    env.hub.repos["datasets/acme/junk"] = Repo([{"train.parquet": b"PAR1junk", "x.py": b""}])
    data = DataSet("acme/junk", files=("train.parquet",))
    assert refusal(data).startswith("data set acme/junk (train) cannot be read: ")
    assert "holds x.py; choices of its kind" in refusal(DataSet("acme/junk", files=("x.py",)))


# Who may read


def test_a_gated_repository_says_what_to_accept_where(env: HubEnv, monkeypatch) -> None:
    env.hub.repos[KEY].gated = True
    said = (
        f"data set 'acme/sums' is gated: accept its terms on {env.hub.url}/datasets/acme/sums, "
        "then log in with `hf auth login` or set HF_TOKEN"
    )
    assert refusal(FILES) == said
    monkeypatch.setenv("HF_TOKEN", "hf_somebody")
    assert refusal(FILES) == said
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(Hub().table(FILES)) == 16


@pytest.mark.parametrize("name", ["acme/nothing", "acme//sums", "acme/su ms"])
def test_a_repository_that_is_not_there(env: HubEnv, name: str) -> None:
    assert refusal(DataSet(name, files=("*",))).startswith(f"the hub has no data set {name!r}")


# Without a network


def test_a_hub_that_does_not_answer(env: HubEnv) -> None:
    env.hub.stop()
    said = f"because {env.hub.url} does not answer; check the network, or set HF_HUB_OFFLINE=1"
    assert said in refusal(FILES)


def test_offline_uses_the_cache_as_it_is(env: HubEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub().table(FILES)
    env.hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(Hub().table(FILES)) == 16
    assert "is not in the cache" in refusal(DataSet(FACTS, files=("data/test.jsonl",)))
    assert "HF_HUB_OFFLINE forbids to fetch it" in refusal(DataSet(SUMS, files=("hard/*",)))
    assert env.hub.requests == []


def test_a_split_that_is_only_partly_in_the_cache_is_refused_offline(
    env: HubEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub().table(DataSet(SUMS, files=(FIRST,)))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "is not in the cache" in refusal(FILES)


def test_files_of_ones_own_are_locked_too(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_bytes(json_lines(sums(0, 2)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.json").write_bytes(json_list(sums(0, 3)))
    own = DataSet("own.jsonl", place="file", base=str(tmp_path))
    folder = DataSet("TRACE", place="folder", files=("train.json",))
    free = Hub(data_dir=tmp_path / "folder")
    assert (len(free.table(own)), len(free.table(folder))) == (2, 3)
    lock = Lock().merged(free.repositories.used)

    def held() -> Hub:
        return Hub(Repositories(lock, locked=True), data_dir=tmp_path / "folder")

    assert (len(held().table(own)), len(held().table(folder))) == (2, 3)
    for path, data in ((tmp_path / "own.jsonl", own), (tmp_path / "folder/train.json", folder)):
        path.write_bytes(json_list(sums(9, 4)))
        assert refusal(data, held()) == f"{path} is not the file that the lock holds"
    other = DataSet("TRACE-2", place="folder", files=("train.json",))
    assert "the lock does not hold data folder 'TRACE-2'" in refusal(other, held())


# Downloads that go wrong


def test_a_broken_connection_goes_on_where_it_broke(
    env: HubEnv, monkeypatch: pytest.MonkeyPatch, no_waiting: list[float]
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    env.hub.faults.append(Fault(f"GET /{KEY}/resolve", cut=250))
    assert len(Hub().table(DataSet(SUMS, files=(FIRST,)))) == 8
    assert env.hub.ranges == ["bytes=200-"]


def test_a_busy_hub_is_asked_again_when_it_says(env: HubEnv, no_waiting: list[float]) -> None:
    busy = {"status": 503, "headers": {"Retry-After": "7"}, "times": 2}
    env.hub.faults += [Fault("/tree/", **busy), Fault(f"GET /{KEY}/resolve", **busy)]
    assert len(Hub().table(FILES)) == 16
    assert no_waiting.count(7) >= 2


def test_a_hub_that_stays_busy_is_given_up(env: HubEnv, no_waiting: list[float]) -> None:
    env.hub.faults.append(Fault(f"GET /{KEY}/resolve", status=503, times=99))
    assert "broke off" in refusal(FILES)
    assert blobs(env) == []


def test_a_slow_download_arrives_and_is_told(env: HubEnv) -> None:
    env.hub.faults.append(Fault(f"GET /{KEY}/resolve", pause=0.05))
    arrived: list[int] = []
    Hub(Repositories(advance=arrived.append)).table(FILES)
    content = sums_files()
    assert sum(arrived) == sum(len(c) for name, c in content.items() if "plain/train" in name)


def test_a_hub_that_dies_leaves_nothing_half_written(env: HubEnv, no_waiting: list[float]) -> None:
    env.hub.faults.append(Fault(f"GET /{KEY}/resolve", cut=100, stop=True))
    one = DataSet(SUMS, files=(FIRST,))
    assert "the same command takes it up again" in refusal(one) or "does not answer" in refusal(one)
    assert blobs(env) == []
    env.hub.start()
    assert len(Hub().table(one)) == 8


def test_an_interrupt_breaks_off_every_file_at_once(env: HubEnv) -> None:
    env.hub.faults.append(Fault(f"GET /{KEY}/resolve", pause=0.05, times=9))

    def interrupt(num_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Hub(Repositories(advance=interrupt)).table(FILES)
    assert blobs(env) == []


@pytest.mark.parametrize("times", [1, 2], ids=["shorter-than-announced", "short-throughout"])
def test_fewer_bytes_than_the_hub_said_are_refused(env: HubEnv, times: int) -> None:
    where = f"GET /{KEY}/resolve" if times == 1 else f"/{KEY}/resolve"
    env.hub.faults.append(Fault(where, content=sums_files()[FIRST][:-9], times=times))
    one = DataSet(SUMS, files=(FIRST,))
    said = refusal(one)
    if times == 1:
        assert "broke off" in said
        assert blobs(env) == []
    else:
        assert f"{FIRST} of data set 'acme/sums' is damaged" in said
        Path(said.partition("delete ")[2].partition(" and fetch")[0]).unlink()
    assert len(Hub().table(one)) == 8


@pytest.mark.parametrize("name", [FIRST, "README.md"])
def test_a_file_that_changed_in_the_cache_is_refused(env: HubEnv, name: str) -> None:
    Hub().find(TRAIN)
    (link,) = env.home.rglob(f"snapshots/*/{name}")
    blob = link.resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + b"?")
    said = refusal(TRAIN)
    assert said.startswith(f"{name} of data set 'acme/sums' is damaged: it has {len(content):,} b")
    assert said.endswith(f"delete {blob} and fetch it again")
    blob.unlink()
    assert len(Hub().table(TRAIN)) == 16


def test_no_space_is_said_before_and_while_it_is_fetched(
    env: HubEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        size = sum(len(c) for name, c in sums_files().items() if "plain/train" in name)
        assert f"needs {size / 1e3:.0f} kB in {env.home / 'hub'}, and 1 kB are free" in refusal(
            FILES
        )
        assert not any("resolve" in request for request in env.hub.requests)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    assert refusal(FILES).startswith(
        f"no space left in {env.home / 'hub'} for data set 'acme/sums'"
    )
    assert blobs(env) == []
