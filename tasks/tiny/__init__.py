"""The embedded default: a small model, its recipe, and data that mirrors each real task."""

from __future__ import annotations

from pathlib import Path


def model_path() -> Path:
    """Return the directory of the shipped model and its tokenizer."""
    return Path(__file__).with_name("model")
