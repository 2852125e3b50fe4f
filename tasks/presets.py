"""Presets: the settings of an edition of a stream or of a paper, as TOML beside this file."""

from __future__ import annotations

from pathlib import Path

TINY = Path(__file__).with_name("preset_tiny.toml")
PAPER = Path(__file__).with_name("preset_paper.toml")
QUICK = Path(__file__).with_name("preset_quick.toml")
