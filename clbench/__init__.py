"""clbench measures how much a language model forgets when it learns one task after another.

Names load on first use, so that `import clbench.metrics` does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clbench.api import run
    from clbench.config import CalibrationConfig, EvalConfig, RunConfig, TrainConfig
    from clbench.errors import RunFailed, UserError
    from clbench.results import Record, ScoreMatrix
    from clbench.strategy import Batch, Example, Step, Strategy, TaskContext, Trained
    from clbench.stream import Edition, Stream
    from clbench.task import Eval, Row, Task

__version__ = "0.1.0"

_HOMES = {
    "run": "clbench.api",
    "CalibrationConfig": "clbench.config",
    "EvalConfig": "clbench.config",
    "RunConfig": "clbench.config",
    "TrainConfig": "clbench.config",
    "RunFailed": "clbench.errors",
    "UserError": "clbench.errors",
    "Record": "clbench.results",
    "ScoreMatrix": "clbench.results",
    "Batch": "clbench.strategy",
    "Example": "clbench.strategy",
    "Step": "clbench.strategy",
    "Strategy": "clbench.strategy",
    "TaskContext": "clbench.strategy",
    "Trained": "clbench.strategy",
    "Edition": "clbench.stream",
    "Stream": "clbench.stream",
    "Eval": "clbench.task",
    "Row": "clbench.task",
    "Task": "clbench.task",
}

__all__ = [
    "Batch",
    "CalibrationConfig",
    "Edition",
    "Eval",
    "EvalConfig",
    "Example",
    "Record",
    "Row",
    "RunConfig",
    "RunFailed",
    "ScoreMatrix",
    "Step",
    "Strategy",
    "Stream",
    "Task",
    "TaskContext",
    "TrainConfig",
    "Trained",
    "UserError",
    "__version__",
    "run",
]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'clbench' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
