"""Points the hub's libraries at a local hub with an empty cache, here and in child processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from local_hub import LocalHub, Repo


@dataclass(frozen=True)
class HubEnv:
    """A running local hub, the folder of its caches, and the environment of a child process."""

    hub: LocalHub
    home: Path
    env: Mapping[str, str]


@contextlib.contextmanager
def hub_environment(repos: dict[str, Repo], home: Path, token: str = "") -> Iterator[HubEnv]:
    """Serve repositories until the end of the block; for fixtures of any scope.

    `home` becomes HF_HOME and holds clbench's own cache too. Without `token` nobody is logged in.
    """
    with LocalHub(repos) as hub, pytest.MonkeyPatch.context() as patch:
        changes = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_TOKEN": token,
            "CLBENCH_CACHE": str(home / "clbench"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN_PATH"):
            patch.delenv(name, raising=False)
        for name, value in changes.items():
            patch.setenv(name, value)
        point_libraries(patch, hub.url, home)
        yield HubEnv(hub, home, dict(os.environ))
    _forget_connections()


def point_libraries(patch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """Replace what the libraries read from the environment when they are imported.

    Tokens and proxies they read at each call; addresses, folders and whether they are offline
    are constants.
    """
    import datasets.config
    from huggingface_hub import constants

    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HUGGINGFACE_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_XET_CACHE": str(home / "xet"),
    }.items():
        patch.setattr(constants, name, value)
    for name, place in {
        "HF_ENDPOINT": url,
        "HUB_DATASETS_URL": url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_OFFLINE": False,
        "HF_CACHE_HOME": str(home),
        "HF_DATASETS_CACHE": home / "datasets",
        "HF_MODULES_CACHE": str(home / "modules"),
        "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
    }.items():
        patch.setattr(datasets.config, name, place)
    _forget_connections()


def _forget_connections() -> None:
    """Let the next request open its own connection, without what an earlier hub answered."""
    from huggingface_hub import HfFileSystem, close_session

    close_session()
    HfFileSystem.clear_instance_cache()
