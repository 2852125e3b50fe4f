"""A strategy that trains everything and takes it all back at the end of each task."""

from __future__ import annotations

from dataclasses import dataclass

from clbench.strategy import Strategy


@dataclass
class Idle(Strategy):
    def begin_task(self, model, task):
        self.start_ = {name: value.clone() for name, value in model.state_dict().items()}
        return model.requires_grad_(True)

    def end_task(self, model, task):
        model.load_state_dict(self.start_)
        return model
