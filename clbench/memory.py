"""How much memory a device has left, as the process may use it."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from clbench.errors import UserError

CONTROL_GROUP = Path("/sys/fs/cgroup")


def available_memory(device: torch.device) -> int:
    """Return the bytes that a process may still take on a device, caches given back."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit = _control_group_room(CONTROL_GROUP)
    return free if limit is None else min(free, limit)


def check_memory(what: str, num_bytes: int, device: torch.device) -> None:
    """Raise UserError when so many bytes do not fit on the device."""
    available = available_memory(device)
    if num_bytes > available:
        raise UserError(
            f"{what} needs about {gigabytes(num_bytes)} of memory on {device}, and "
            f"{gigabytes(available)} are free"
        )


def gigabytes(num_bytes: float) -> str:
    """Return bytes as a reader wants them, e.g. "13.5 GB"."""
    return f"{num_bytes / 1e9:.1f} GB"


def _control_group_room(group: Path) -> int | None:
    """Return what a container's limit leaves, None without one; file caches count as free."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        rows = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    if limit == "max":
        return None
    stat = {key: int(value) for key, value in rows}
    return int(limit) - used + stat["active_file"] + stat["inactive_file"]
