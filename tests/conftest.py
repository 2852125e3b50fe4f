"""One thread, no network: two busy threads on two cores can take ten times as long."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hub_fixtures import HubEnv
    from local_hub import Repo

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch loads, also by children
    os.environ[name] = "1"
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture
def hub_env(tmp_path: Path) -> Iterator[Callable[..., HubEnv]]:
    """Return a function that serves repositories and points the hub's libraries at them."""
    from hub_fixtures import hub_environment

    with contextlib.ExitStack() as stack:

        def serve(repos: dict[str, Repo], token: str = "") -> HubEnv:
            return stack.enter_context(hub_environment(repos, tmp_path / "hf", token))

        yield serve
