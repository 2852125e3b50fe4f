"""Presets: the settings that belong to an edition of a stream, as TOML beside this file."""

from __future__ import annotations

from pathlib import Path

TINY = Path(__file__).with_name("preset_tiny.toml")
