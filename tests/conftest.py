"""One thread, no network: two busy threads on two cores can take ten times as long."""

from __future__ import annotations

import os

import pytest

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
