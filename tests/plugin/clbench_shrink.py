"""Shrink: keep a part of what each task changed."""

from dataclasses import dataclass
from typing import ClassVar

from clbench import Strategy


@dataclass
class Shrink(Strategy):
    """Scale the change of every trained weight by `keep` at the end of its task."""

    kind: ClassVar = "guard"
    implies: ClassVar = "lora"
    keep: float = 0.5

    def end_task(self, model, task):
        for trained in task.trained.values():
            trained.scale_delta(self.keep)
        return model
