"""Fetches everything that the runs of a stream and model read, and locks what it found."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from clbench import evalkeys, model_files, registry
from clbench.config import RunConfig
from clbench.evaluation import Evaluator
from clbench.hub import Hub, check_data_dir
from clbench.hubcache import Repository, check_space
from clbench.lock import UNSTATED, Entry, Lock, readable
from clbench.preparation import Plan, check_cache, quiet_libraries
from clbench.progress import Progress, Silent
from clbench.report.data import leaks
from clbench.repositories import Repositories
from clbench.results import check_writable
from clbench.strategy import Strategy


class Fetched(NamedTuple):
    """What was fetched, the lock that holds it now, and what the leak check found."""

    path: Path
    lock: Lock
    entries: tuple[Entry, ...]
    leaks: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return everything ready for JSON."""
        return {
            "path": str(self.path),
            "digest": self.lock.digest(),
            "entries": [entry.model_dump(mode="json") for entry in self.entries],
            "leak": self.leaks,
        }


class _Contents(Plan):
    """What a run would read, without the model in memory."""

    @cached_property
    def evaluator(self) -> Evaluator:
        """Return what knows the questions; it scores nothing."""
        return Evaluator({}, None, self.edition.measured, self.config.eval, hub=self.hub)


def fetch(config: RunConfig, *, update: bool = False, progress: Progress | None = None) -> Fetched:
    """Fetch the model and every data set of a stream into the hub's cache, and write the lock.

    What the lock in `config.lock` holds stays at its commits unless `update` is asked for; what
    is new is added. Raises UserError; fetching again goes on with what is missing.
    """
    quiet_libraries()
    progress = progress or Silent()
    path = Path(config.lock)
    check_cache()
    check_writable(path.parent, "the folder of the lock", "choose another --lock")
    before = Lock.load(path) if path.exists() else Lock()
    kept = Lock() if update else before
    repositories = Repositories(kept, remedy="clbench fetch --update", advance=progress.advance)
    edition = registry.stream(config.stream).edition(config.data or "full")
    check_data_dir(config, *edition.data_sets)
    evalkeys.check_needs(*edition.measured)
    data_dir = None if config.data_dir is None else Path(config.data_dir)
    hub = Hub(repositories, data_dir=data_dir)
    contents = _Contents(config, edition, Strategy(), torch.device("cpu"), None, hub)
    try:
        _download(contents, repositories, progress)
        for data in edition.data_sets:
            hub.find(data)
        entries = tuple(_licensed(contents, entry) for entry in repositories.used.values())
        lock = before.merged({entry.key: entry for entry in entries})
        lock.save(path)
        progress.phase("check leaks")
        return Fetched(path, lock, entries, contents.leaks())
    finally:
        progress.done()


def _download(contents: Plan, repositories: Repositories, progress: Progress) -> None:
    """Download what is not in the cache, after a look at the room for all of it."""
    progress.phase("ask the hub")
    wanted: dict[Repository, set[str]] = {}
    model = model_files.repository(contents.config.model, contents.config.revision)
    if model is not None:
        wanted[model] = set(model_files.wanted_files(model, repositories))
    for data in contents.edition.data_sets:
        if data.place == "hub":
            repo, names = contents.hub.wanted(data)
            wanted.setdefault(repo, set()).update(names)
    missing = {repo: repositories.num_missing(repo, names) for repo, names in wanted.items()}
    check_space(f"stream {contents.config.stream}", sum(missing.values()))
    for repo, num_bytes in missing.items():
        progress.phase(f"fetch {repo.id} ({readable(num_bytes)})", num_bytes or None)
        repositories.fetch(repo, wanted[repo])


def _licensed(contents: Plan, entry: Entry) -> Entry:
    """Return an entry with the license that the stream names, else that the repository states."""
    stated = [data.license for data in contents.edition.data_sets if data.id == entry.id]
    named = next((license for license in stated if license != UNSTATED), UNSTATED)
    if named == UNSTATED and entry.kind in ("model", "dataset"):
        repo = Repository("model" if entry.kind == "model" else "dataset", entry.id, entry.asked)
        named = contents.hub.repositories.license(repo)
    return entry.model_copy(update={"license": named})


def as_text(fetched: Fetched) -> str:
    """Return what the lock holds of this stream, one line each, and what the leak check found."""
    width = max((len(entry.id) for entry in fetched.entries), default=0)
    lines = [_line(entry, width) for entry in fetched.entries]
    size = sum(file.size for entry in fetched.entries for file in entry.files.values())
    lines.append(f"{readable(size)} locked in {fetched.path}; run with --locked to use no others")
    return "\n".join([*lines, *leaks(fetched.leaks)])


def _line(entry: Entry, width: int) -> str:
    size = readable(sum(file.size for file in entry.files.values()))
    commit = (entry.revision or "of yours")[:12]
    return (
        f"{entry.kind:7}  {entry.id:{width}}  {commit:12}  {len(entry.files):3} files  "
        f"{size:>8}  license {entry.license}"
    )
