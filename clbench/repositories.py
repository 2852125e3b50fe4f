"""Repositories of the hub: pinned once per run, fetched into its cache, and checked by content."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from clbench.errors import UserError
from clbench.hubcache import (
    Repository,
    cache_folder,
    cached_names,
    check_space,
    find_cached,
    fingerprint,
    is_offline,
    is_what_the_hub_said,
    patiently,
    sentences,
)
from clbench.lock import UNSTATED, Entry, Lock, LockedFile

WORKERS = 4  # files that are downloaded at one time


class Repositories:
    """What one run reads of the hub: every repository at one commit, however often it is asked.

    With `lock`, repositories that it holds stay at its commits and its files are compared with
    it. `locked` goes further: nothing is asked of the network, and what the lock does not hold
    is refused with the command `remedy`. `advance` is told the bytes that arrive.
    """

    def __init__(
        self,
        lock: Lock | None = None,
        *,
        locked: bool = False,
        remedy: str = "clbench fetch",
        advance: Callable[[int], None] | None = None,
    ) -> None:
        self.lock = lock or Lock()
        self.locked = locked
        self.remedy = remedy
        self.advance = advance or (lambda num_bytes: None)
        self.used: dict[tuple[str, str, str], Entry] = {}
        self._commits: dict[Repository, str] = {}
        self._sizes: dict[Repository, dict[str, int]] = {}

    def commit(self, repo: Repository) -> str:
        """Return the commit that a repository is read at, the same for the whole run."""
        if repo not in self._commits:
            held = self.entry(repo) if self.locked else self.lock.find(*repo)
            pinned = held.revision if held is not None else None
            self._commits[repo] = pinned or self._resolve(repo)
        return self._commits[repo]

    def names(self, repo: Repository, patterns: Sequence[str] = ()) -> list[str]:
        """Return the files of a repository: as the lock, the hub or, offline, its cache has them.

        A cache that is known to lack files of these patterns is refused.
        """
        commit = self.commit(repo)
        if self.locked:
            return sorted(self.entry(repo).files)
        return sorted(cached_names(repo, commit, patterns) if is_offline() else self._listing(repo))

    def entry(self, repo: Repository) -> Entry:
        """Return what the lock holds of a repository; raises UserError where that is nothing."""
        entry = self.lock.find(*repo)
        if entry is None:
            raise self.refusal(repo.name)
        return entry

    def num_missing(self, repo: Repository, names: Iterable[str]) -> int:
        """Return the bytes of these files that are not in the cache."""
        commit = self.commit(repo)
        absent = [name for name in names if find_cached(repo, commit, name) is None]
        return sum(self._listing(repo)[name] for name in absent)

    def fetch(self, repo: Repository, names: Iterable[str]) -> dict[str, Path]:
        """Return files by name, fetched where they are not in the cache; raises UserError.

        A file whose bytes are not those that the hub, or the lock, says is refused.
        """
        names, commit = sorted(names), self.commit(repo)
        if self.locked:
            paths = {name: self._locked_file(repo, name) for name in names}
        else:
            if not is_offline():
                check_space(repo.name, self.num_missing(repo, names))
            paths = self._download(repo, commit, names)
        files = {name: self._checked(repo, name, path) for name, path in paths.items()}
        self.note(Entry(kind=repo.kind, id=repo.id, asked=repo.asked, revision=commit, files=files))
        return paths

    def note(self, entry: Entry) -> None:
        """Remember what was used, for the record and the lock."""
        before = self.used.get(entry.key)
        self.used[entry.key] = entry if before is None else before.joined(entry)

    def note_local(
        self, kind: Literal["file", "folder"], name: str, files: dict[str, Path]
    ) -> None:
        """Remember files of the user's; raises UserError where they are not what the lock says."""
        held = self.lock.find(kind, name, "main")
        if held is None and self.locked:
            raise self.refusal(f"data {kind} {name!r}")
        found = {part: fingerprint(path) for part, path in files.items()}
        for part, file in found.items():
            if self.locked and held is not None and held.files.get(part) != file:
                raise UserError(f"{files[part]} is not the file that the lock holds")
        self.note(Entry(kind=kind, id=name, files=found))

    def license(self, repo: Repository) -> str:
        """Return the license that a repository states; offline there is nobody to ask."""
        from huggingface_hub import HfApi

        if is_offline():
            return UNSTATED
        with sentences(repo):
            info = patiently(
                lambda: HfApi().repo_info(repo.id, revision=self.commit(repo), repo_type=repo.kind)
            )
        card: Any = info.card_data or {}  # type: ignore[union-attr]
        return str(card.get("license") or UNSTATED)

    def _resolve(self, repo: Repository) -> str:
        """Ask the hub for the commit of a revision, and have its cache remember it."""
        from huggingface_hub import snapshot_download

        with sentences(repo):
            folder = patiently(
                lambda: snapshot_download(
                    repo.id,
                    repo_type=repo.kind,
                    revision=repo.asked,
                    allow_patterns=[],
                    tqdm_class=_silent_bar(lambda num_bytes: None),
                )
            )
        return Path(folder).name

    def _listing(self, repo: Repository) -> dict[str, int]:
        """Return sizes by name, as the hub lists them."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        if repo not in self._sizes:
            commit = self.commit(repo)
            with sentences(repo):
                entries = patiently(
                    lambda: list(
                        HfApi().list_repo_tree(
                            repo.id, recursive=True, revision=commit, repo_type=repo.kind
                        )
                    )
                )
            self._sizes[repo] = {e.path: e.size for e in entries if isinstance(e, RepoFile)}
        return self._sizes[repo]

    def _download(self, repo: Repository, commit: str, names: Sequence[str]) -> dict[str, Path]:
        """Fetch several files at one time; where one fails, the others break off too."""
        from huggingface_hub import hf_hub_download

        over = threading.Event()

        def arrive(num_bytes: int) -> None:
            if over.is_set():
                raise InterruptedError("another file failed")
            self.advance(num_bytes)

        def download(name: str) -> Path:
            options: Any = {"repo_type": repo.kind, "revision": commit}
            options["tqdm_class"] = _silent_bar(arrive)
            return Path(patiently(lambda: hf_hub_download(repo.id, name, **options)))

        with ThreadPoolExecutor(WORKERS) as pool, sentences(repo):
            try:
                return dict(zip(names, pool.map(download, names), strict=True))
            finally:
                over.set()

    def _locked_file(self, repo: Repository, name: str) -> Path:
        if name not in self.entry(repo).files:
            raise self.refusal(f"{name} of {repo.name}")
        path = find_cached(repo, self.commit(repo), name)
        if path is None:
            raise UserError(
                f"{name} of {repo.name} is locked but not in the cache {cache_folder()}; "
                f"`{self.remedy}` fetches it"
            )
        return path

    def _checked(self, repo: Repository, name: str, path: Path) -> LockedFile:
        """Return what is in a file; raises UserError where it is not what it has to be."""
        found = fingerprint(path)
        entry = self.lock.find(*repo)
        held = entry.files.get(name) if entry is not None else None
        if (held is not None and held != found) or not is_what_the_hub_said(path):
            raise UserError(
                f"{name} of {repo.name} is damaged: it has {found.size:,} bytes with SHA-256 "
                f"{found.sha256[:12]}..., which is not what the {'lock' if held else 'hub'} says; "
                f"delete {path.resolve()} and fetch it again"
            )
        return found

    def refusal(self, what: str) -> UserError:
        """Return the error for what the lock does not hold."""
        return UserError(f"the lock does not hold {what}; `{self.remedy}` fetches and locks it")


def _silent_bar(advance: Callable[[int], None]) -> type[Any]:
    """Return a progress bar of the kind that the hub's library takes; it tells `advance`."""
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[misc]  # untyped
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            advance(int(n or 0))
            return None

    return Bar
