"""What is checked: a strategy by its parts and hyperparameters, built anew for each use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from clbench import config, registry
from clbench.composition import Composed, compose, label
from clbench.strategy import Strategy

PRESET = "tiny"


class CheckFailed(AssertionError):
    """A promise of the contract that a strategy does not keep."""


@dataclass(frozen=True)
class Subject:
    """A strategy that the checks can build as often as they need it."""

    name: str  # as it was asked for
    classes: tuple[type[Strategy], ...]  # an adapter, then guards
    params: tuple[dict[str, Any], ...]  # of each

    def parts(self) -> tuple[Strategy, ...]:
        """Return a new object of each part."""
        built = zip(self.classes, self.params, strict=True)
        return tuple(registry.build_part(cls, params) for cls, params in built)

    def build(self) -> Strategy:
        """Return a new strategy."""
        return compose(self.parts(), _implied)

    def beside(self, other: Strategy, adapter: Strategy | None) -> Strategy:
        """Return it composed with another guard, and with another adapter if one is given.

        Raises UserError, with the reason, where that cannot be.
        """
        own, *guards = self.parts()
        return compose([adapter or own, *guards, other], _implied)


def subject(
    strategy: str | Strategy, params: Mapping[str, Mapping[str, Any]] | None = None
) -> Subject:
    """Return the subject for "a+b", "file.py:Class" or an object; raises UserError.

    `params` holds hyperparameters by part. What it leaves out of a strategy that is given by
    name comes from preset tiny, which has a value for all that is required.
    """
    if isinstance(strategy, str):
        given = [(f"{p}.{f}", v) for p, table in (params or {}).items() for f, v in table.items()]
        return from_settings(strategy, [config.setting(*pair) for pair in given])
    return _of(label(strategy), strategy)


def from_settings(name: str, settings: list[config.Setting]) -> Subject:
    """Return the subject for a name with settings as after `--set`; raises UserError."""
    resolved = config.resolve(
        {"stream": "", "strategy": name},
        registry.parts(name),
        preset=registry.preset(PRESET),
        settings=settings,
    )
    return _of(name, registry.build_strategy(name, resolved.params))


def _of(name: str, strategy: Strategy) -> Subject:
    if not isinstance(strategy, Composed):
        strategy = compose([strategy], _implied)  # a guard brings its adapter
    parts = strategy.parts if isinstance(strategy, Composed) else (strategy,)
    return Subject(name, tuple(type(p) for p in parts), tuple(p.params() for p in parts))


def _implied(name: str, defaults: Mapping[str, Any] = MappingProxyType({})) -> Strategy:
    return registry.build_strategy(name, {name: dict(defaults)})
