"""The cache of the hub's library: what it holds, whether it is whole, and errors as sentences."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from clbench.errors import UserError
from clbench.lock import LockedFile, readable

T = TypeVar("T")
ATTEMPTS = 5  # at an answer that says that the hub is busy
BUSY = frozenset({500, 502, 503, 504})
UNUSABLE = frozenset({errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS})
CHUNK = 2**20


class Unavailable(UserError):
    """A repository that is not there, or that cannot be reached."""


class Repository(NamedTuple):
    """A model or data set of the hub, at a branch, tag or commit."""

    kind: Literal["model", "dataset"]
    id: str
    asked: str = "main"

    @property
    def name(self) -> str:
        """Return what messages call it."""
        return f"{'model' if self.kind == 'model' else 'data set'} {self.id!r}"

    @property
    def page(self) -> str:
        """Return the address of its page."""
        from huggingface_hub import constants

        prefix = "" if self.kind == "model" else "datasets/"
        return f"{constants.ENDPOINT}/{prefix}{self.id}"


@contextlib.contextmanager
def network_off() -> Iterator[None]:
    """Refuse the hub's libraries every request until the end, as HF_HUB_OFFLINE=1 does."""
    import datasets.config
    from huggingface_hub import constants

    places = [(constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")]
    before = [getattr(*place) for place in places]
    for module, name in places:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


def is_offline() -> bool:
    """Tell whether HF_HUB_OFFLINE, or a locked run, forbids requests."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def cache_folder() -> Path:
    """Return where the hub's library keeps what it fetched."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def check_space(what: str, num_bytes: int) -> None:
    """Raise UserError when the disk of the hub's cache has no room for so many bytes."""
    folder = cache_folder()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise UserError(
            f"{what} needs {readable(num_bytes)} in {folder}, and {readable(free)} are free; free "
            "some, or set HF_HOME to a larger disk"
        )


def find_cached(repo: Repository, commit: str, name: str) -> Path | None:
    """Return a file of the cache, None where it is not there; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo.id, name, revision=commit, repo_type=repo.kind)
    return Path(found) if isinstance(found, str) else None


def cached_names(repo: Repository, commit: str, patterns: Sequence[str]) -> list[str]:
    """Return the files of a commit that are in the cache.

    Raises UserError if those of the patterns are known to be incomplete.
    """
    from huggingface_hub import snapshot_download

    with sentences(repo):
        root = Path(
            snapshot_download(
                repo.id,
                repo_type=repo.kind,
                revision=commit,
                allow_patterns=list(patterns),
                local_files_only=True,
            )
        )
    return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]


def fingerprint(path: Path) -> LockedFile:
    """Return the size and SHA-256 of a file, read once per process and change."""
    status = path.stat()
    return _fingerprint(str(path.resolve()), status.st_size, status.st_mtime_ns)


@functools.cache
def _fingerprint(path: str, size: int, changed: int) -> LockedFile:
    return LockedFile(size=size, sha256=_hashed(Path(path), hashlib.sha256()))


def _hashed(path: Path, hasher: Any) -> str:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return str(hasher.hexdigest())


def is_what_the_hub_said(path: Path) -> bool:
    """Compare a cached file with its etag, which the cache's link to it is named by.

    It is the SHA-256 of a large file, and git's blob id of a small one.
    """
    etag = Path(os.readlink(path)).name if path.is_symlink() else ""
    if len(etag) == 64:
        return fingerprint(path).sha256 == etag
    if len(etag) == 40:
        head = f"blob {path.stat().st_size}\0".encode()
        return _hashed(path, hashlib.sha1(head, usedforsecurity=False)) == etag
    return True


@contextlib.contextmanager
def sentences(repo: Repository) -> Iterator[None]:
    """Turn what goes wrong between here and the hub into one sentence that says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a download may fail in any way
        raise _sentence(repo, error) from error


def _sentence(repo: Repository, error: Exception) -> UserError:
    from huggingface_hub import constants, errors

    reason = str(error).strip().partition("\n")[0].partition(". ")[0]
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{repo.name} is gated: accept its terms on {repo.page}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{repo.name} has no revision {repo.asked!r}; {repo.page} lists them")
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return Unavailable(
            f"the hub has no {repo.name}, or it is private: check the id, or log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"no space left in {cache_folder()} for {repo.name}; free some, or set HF_HOME to a "
            "larger disk, and run the same command again"
        )
    if isinstance(error, OSError) and error.errno in UNUSABLE:
        return UserError(
            f"the folder {cache_folder()} for {repo.name} cannot be used ({error.strerror}); let "
            "HF_HOME name another folder"
        )
    if constants.is_offline_mode():
        return Unavailable(
            f"{repo.name} is not in the cache {cache_folder()}, and HF_HUB_OFFLINE forbids to "
            "fetch it; unset it, or fetch it where there is a network"
        )
    if _is_unreachable(error):
        return Unavailable(
            f"{repo.name} cannot be fetched, because {constants.ENDPOINT} does not answer; check "
            "the network, or set HF_HUB_OFFLINE=1 to use the cache as it is"
        )
    return UserError(
        f"the download of {repo.name} broke off ({reason}); the same command takes it up again"
    )


def _is_unreachable(error: BaseException | None) -> bool:
    """Tell whether an error is that of a connection that was never made."""
    while error is not None:
        if type(error).__name__ in ("ConnectError", "ConnectTimeout"):
            return True
        error = error.__cause__ or error.__context__
    return False


def patiently(call: Callable[[], T]) -> T:
    """Return what a call returns, made again for as long as the hub says that it is busy."""
    for attempt in range(1, ATTEMPTS):
        try:
            return call()
        except Exception as error:
            response = _busy_response(error)
            if response is None:
                raise
            asked = str(response.headers.get("Retry-After", ""))
            time.sleep(float(asked) if asked.isdigit() else 2.0**attempt / 2)
    return call()


def _busy_response(error: BaseException | None) -> Any:
    """Return the answer behind an error if it says that the hub is busy."""
    while error is not None:
        response = getattr(error, "response", None)
        if getattr(response, "status_code", None) in BUSY:
            return response
        error = error.__cause__
    return None
