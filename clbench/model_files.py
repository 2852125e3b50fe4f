"""Where a model's files are: a registered name, a directory, or a hub id. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from clbench import registry
from clbench.errors import UserError, unknown
from clbench.hubcache import Repository, Unavailable
from clbench.repositories import Repositories

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

# Top level only: repositories also hold other formats of the same weights in folders.
DESCRIPTION_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
WEIGHT_FILES = [WEIGHTS, "model-*-of-*.safetensors"]


class ModelFiles(NamedTuple):
    """A model on disk: its directory, and what the record calls it."""

    id: str
    directory: Path
    revision: str | None  # package version or commit; None for a directory of the user's


class ModelEntry(NamedTuple):
    """One model that needs no download."""

    name: str
    origin: str  # "package version", or "cache"
    num_bytes: int


def locate(
    name: str,
    revision: str | None = None,
    *,
    weights: bool = True,
    repositories: Repositories | None = None,
) -> ModelFiles:
    """Return the files of a model, fetched into the hub's cache if they are not there.

    `name` is a registered name, else a local directory, else a hub id. With `weights=False`
    only the small files are fetched. Pickled weights are never fetched. `repositories` are those
    of a run, where a hub id stays at one commit. Raises UserError.
    """
    repo = repository(name, revision)
    if repo is not None:
        return _fetch(repo, weights, repositories or Repositories())
    versions = {entry.name: entry.version for entry in registry.listing(registry.MODELS)}
    if name in versions:
        return ModelFiles(name, _registered(name), versions[name])
    return ModelFiles(name, Path(name).expanduser(), None)


def repository(name: str, revision: str | None = None) -> Repository | None:
    """Return the repository that a model's name stands for; None for one that is here.

    Raises UserError for what can only be a directory and is not there.
    """
    registered = {entry.name for entry in registry.listing(registry.MODELS)}
    if name in registered or Path(name).expanduser().is_dir():
        return None
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise UserError(f"there is no model directory {name!r}")
    return Repository("model", name, revision or "main")


def check_weights(files: ModelFiles) -> list[Path]:
    """Return the weight files of a model; raises UserError naming what is missing."""
    directory = files.directory
    index = directory / INDEX
    names = {WEIGHTS}
    if index.is_file() and not (directory / WEIGHTS).is_file():
        names = set(read_json(index)["weight_map"].values())
    missing = sorted(name for name in names if not (directory / name).is_file())
    if not missing:
        return sorted(directory / name for name in names)
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise UserError(
            f"model {files.id!r} holds its weights only as pickle ({pickles[0]}), which can run "
            f"code and is not loaded; convert them to {WEIGHTS}"
        )
    raise UserError(f"model {files.id!r} has no weights: {', '.join(missing)} is missing")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; raises UserError when the file is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{str(path.parent)!r} is no model directory: no {path.name}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{str(path)!r} does not hold a JSON object")
    return value


def list_models() -> list[ModelEntry]:
    """Return the models that need no download: the registered ones, then the hub's cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    entries = [
        ModelEntry(entry.name, f"{entry.package} {entry.version}", _size(_registered(entry.name)))
        for entry in registry.listing(registry.MODELS)
    ]
    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return entries
    cached = [
        ModelEntry(repo.repo_id, "cache", repo.size_on_disk)
        for repo in repos
        if repo.repo_type == "model" and _holds_weights(repo)
    ]
    return entries + sorted(cached)


def _registered(name: str) -> Path:
    value: str | Path | Callable[[], str | Path] = registry.load(registry.MODELS, name)
    return Path(value() if callable(value) else value)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*") if path.is_file())


def _holds_weights(repo: Any) -> bool:
    names = {file.file_name for revision in repo.revisions for file in revision.files}
    return bool(names & {WEIGHTS, INDEX})


def _fetch(repo: Repository, weights: bool, repositories: Repositories) -> ModelFiles:
    paths = repositories.fetch(repo, wanted_files(repo, repositories, weights=weights))
    if CONFIG not in paths:
        raise UserError(f"{repo.name} has no {CONFIG}; it holds no model that can be loaded")
    return ModelFiles(repo.id, paths[CONFIG].parent, repositories.commit(repo))


def wanted_files(
    repo: Repository, repositories: Repositories, *, weights: bool = True
) -> list[str]:
    """Return which files of a repository make a model: top level, described or safetensors."""
    patterns = DESCRIPTION_FILES + (WEIGHT_FILES if weights else [])
    try:
        names = repositories.names(repo)
    except Unavailable as error:
        raise _not_found(repo.id, error) from error
    return [
        name for name in names if "/" not in name and any(fnmatchcase(name, p) for p in patterns)
    ]


def _not_found(name: str, error: Unavailable) -> UserError:
    names = [entry.name for entry in registry.listing(registry.MODELS)]
    if "/" not in name:  # more likely a misspelt name than a hub id of the old kind
        return UserError(f"{unknown('model', name, names)}, a directory or a hub id ({error})")
    return UserError(
        f"model {name!r} is neither installed ({', '.join(names) or 'none is'}) nor a directory, "
        f"and the hub does not give it: {error}"
    )
