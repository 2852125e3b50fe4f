"""What this machine has for a run: isolation, device, threads, memory, caches, plugins."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from clbench import engines, provenance, registry, sandbox
from clbench.errors import UserError


class Finding(NamedTuple):
    """One line of the report; `ok` is False where something wants attention."""

    topic: str
    ok: bool
    text: str


def examine() -> list[Finding]:
    """Return everything worth knowing before a run; probes the isolation."""
    return [*_isolation(), *_compute(), *_space(), *_versions(), *_plugins()]


def as_text(findings: list[Finding]) -> str:
    """Return the findings as lines; those that want attention begin with an exclamation mark."""
    width = max(len(finding.topic) for finding in findings)
    return "\n".join(
        f"{' ' if finding.ok else '!'} {finding.topic:{width}}  {finding.text}"
        for finding in findings
    )


def _isolation() -> Iterator[Finding]:
    search = sandbox.search_isolation()
    yield Finding("isolation", search.isolation is not None, search.sentence)
    for attempt in search.attempts:
        for row in attempt.rows:
            name = f"  {attempt.backend}: {row.name}"
            yield Finding(name, row.blocked, "blocked" if row.blocked else row.found)


def _compute() -> Iterator[Finding]:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("device", True, ", ".join(names) if names else "cpu")
    cores = provenance.hardware()["cores"]
    yield Finding("threads", True, f"{torch.get_num_threads()} of torch, {cores} cores")
    memory = psutil.virtual_memory()
    low = memory.available < 2e9
    text = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    yield Finding("memory", not low, text + (", the default run needs 2 GB" if low else ""))


def _space() -> Iterator[Finding]:
    here = shutil.disk_usage(Path.cwd())
    yield Finding("disk", here.free > 1e9, f"{here.free / 1e9:.1f} GB free for runs/")
    cache = registry.hub_cache()
    cached = len(registry.cached_models())
    yield Finding("cache", True, f"{cache}, {cached} models")
    offline = os.environ.get("HF_HUB_OFFLINE")
    if offline:
        yield Finding("network", True, f"HF_HUB_OFFLINE={offline}: nothing is downloaded")


def _versions() -> Iterator[Finding]:
    for name, version in provenance.versions().items():
        yield Finding(name, version is not None, version or "not installed")
    yield Finding("vllm", True, engines.version("vllm") or "not installed; for --engine vllm")


def _plugins() -> Iterator[Finding]:
    for group in (registry.STRATEGIES, registry.STREAMS, registry.PRESETS):
        for entry in registry.listing(group):
            try:
                registry.load(group, entry.name)
            except UserError as error:
                yield Finding("plugin", False, str(error))
