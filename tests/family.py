"""The spectral family and DoRA, one object per variant, with covariances of two sources."""

from __future__ import annotations

from clbench_strategies.corda import Corda, ScLora
from clbench_strategies.dora import Dora
from clbench_strategies.factors import FactorStrategy
from clbench_strategies.lora import Lora
from clbench_strategies.spectral import (
    LoraNull,
    LoraNullV2,
    LoraNullZero,
    Mica,
    Middle,
    Milora,
    Pissa,
    RandomDown,
    RandomNull,
    RandomSlice,
)
from torch import nn
from toys import toy_context, toy_windows

from clbench.adapters import find_targets
from clbench.calibration import calibrate
from clbench.strategy import TaskContext

WINDOWS = {"world": toy_windows(16, 24), "task": toy_windows(16, 24, seed=2)}
HELD_OUT = toy_windows(8, 24, seed=1)

NEW: dict[str, FactorStrategy] = {
    "lora-null-zero": LoraNullZero(rank=4),
    "lora-null-zero up": LoraNullZero(rank=4, trains="up"),
    "pissa": Pissa(rank=4),
    "milora": Milora(rank=4),
    "middle": Middle(rank=4),
    "corda": Corda(rank=4),
    "corda ipm": Corda(rank=4, mode="ipm"),
    "corda published": Corda(rank=4, split="published"),
    "mica": Mica(rank=4),
    "sc-lora": ScLora(rank=4),
    "random-slice": RandomSlice(rank=4),
    "random-null": RandomNull(rank=4),
    "random-down": RandomDown(rank=4),
    "dora": Dora(rank=4),
}
FAMILY = {"lora": Lora(rank=4), "lora-null": LoraNull(rank=4), "v2": LoraNullV2(rank=4)} | NEW
FACTORS = {name: strategy for name, strategy in FAMILY.items() if name != "dora"}


def measured_context(
    model: nn.Module, strategy: FactorStrategy, *, accumulate: str = "float32", **options
) -> TaskContext:
    """Return a task context with the covariances of exactly this model that are asked for."""
    targets = find_targets(model, options.get("targets"))
    found = {
        source: calibrate(
            model, WINDOWS[source], targets, budget_bytes=2**20, accumulate=accumulate
        ).covariances
        for source in strategy.calibration_sources()
    }
    return toy_context(model, found, **options)
