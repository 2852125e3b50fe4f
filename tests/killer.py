"""A strategy that kills its own process, once, in the phase that $KILL_AT names."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import ClassVar

from clbench_strategies.spectral import LoraNull


@dataclass
class Killer(LoraNull):
    steps: ClassVar[int] = 0

    def begin_task(self, model, task):
        model = super().begin_task(model, task)
        kill_in(f"calibrate {task.name}")
        return model

    def after_step(self, model, step):
        super().after_step(model, step)
        if step.index == 2:
            kill_in("train")

    def end_task(self, model, task):
        model = super().end_task(model, task)
        kill_in(f"fold {task.name}")
        return model


def kill_in(place):
    if os.environ.get("KILL_AT") == place:
        os.kill(os.getpid(), signal.SIGKILL)
