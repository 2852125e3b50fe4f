"""Results of evaluations kept on disk under everything that decides them, never under a name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clbench.digests import canonical_json, digest
from clbench.results import write_atomic


def cache_path(folder: Path, identity: Mapping[str, Any]) -> Path:
    """Return where the result of exactly this evaluation lies."""
    return folder / f"{digest(identity)}.json"


def load(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the stored result, or None if there is none."""
    path = cache_path(folder, identity)
    if not path.exists():
        return None
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored


def store(folder: Path, identity: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Keep a result, per-item outputs included."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(cache_path(folder, identity), canonical_json(result))
