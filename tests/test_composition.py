"""Several strategies as one: what a composition refuses, asks for and reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from clbench.composition import Composed, compose, label
from clbench.errors import UserError
from clbench.strategy import Strategy


@dataclass
class Attach(Strategy):
    def calibration_sources(self):
        return frozenset({"world"})


@dataclass
class Other(Strategy):
    keeps: bool = False


@dataclass
class Switching(Strategy):
    norm: str = "l2"

    def switches(self):
        return {"norm": self.norm}


@dataclass
class Guard(Strategy):
    kind: ClassVar = "guard"

    def calibration_sources(self):
        return frozenset({"seen"})

    def facts(self):
        return {"kept": 3}


@dataclass
class Implying(Strategy):
    kind: ClassVar = "guard"
    implies: ClassVar = "attach"


@dataclass
class Choosing(Strategy):
    kind: ClassVar = "guard"
    implies: ClassVar = "other"
    implies_params: ClassVar = {"keeps": True}


@dataclass
class Project(Strategy):
    kind: ClassVar = "guard"

    def before_step(self, model, step):
        pass


@dataclass
class Reflect(Project):
    def before_step(self, model, step):
        pass


@dataclass
class Jealous(Strategy):
    def refuses(self, others):
        kept = [other.name() for other in others if isinstance(other, Guard)]
        return f"jealous keeps a memory of its own, as {kept[0]} does" if kept else None


def composed(*parts: Strategy) -> Strategy:
    return compose(
        parts, lambda name, defaults: {"attach": Attach, "other": Other}[name](**defaults)
    )


def test_the_adapter_comes_first_and_the_parts_add_up():
    strategy = composed(Guard(), Attach())
    assert isinstance(strategy, Composed)
    assert label(strategy) == "attach+guard"
    assert strategy.calibration_sources() == {"world", "seen"}
    assert strategy.facts() == {"guard": {"kept": 3}}


def test_an_adapter_alone_stays_itself_and_a_guard_brings_its_adapter():
    alone = Attach()
    assert composed(alone) is alone
    assert label(composed(Implying())) == "attach+implying"


def test_a_label_carries_the_switches_of_each_part():
    assert label(Switching()) == "switching(norm=l2)"
    assert label(composed(Guard(), Switching(norm="l1"))) == "switching(norm=l1)+guard"


def test_a_guard_chooses_fields_of_the_adapter_it_brings():
    brought = composed(Choosing())
    assert isinstance(brought, Composed)
    assert brought.parts == (Other(keeps=True), Choosing())
    assert composed(Other(), Choosing()).parts == (Other(), Choosing())


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ((Attach(), Other()), "attach and other are both adapters"),
        ((Attach(), Guard(), Guard()), r"'attach\+guard\+guard' names guard twice"),
        ((Guard(),), r"'guard' has no adapter; write for example lora\+guard"),
        ((Attach(), Project(), Reflect()), "project and reflect both rewrite gradients"),
        ((Jealous(), Guard()), r"'jealous\+guard': jealous keeps a memory of its own, as guard"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(parts, sentence):
    with pytest.raises(UserError, match=sentence):
        composed(*parts)


def test_hooks_reach_the_parts_in_their_order():
    calls: list[str] = []

    @dataclass
    class Tell(Strategy):
        mark: str = ""

        def begin_task(self, model, task):
            calls.append(f"begin {self.mark}")
            return model

        def after_step(self, model, step):
            calls.append(f"after {self.mark}")

        def end_task(self, model, task):
            calls.append(f"end {self.mark}")
            return model

    strategy = Composed((Tell("a"), Tell("g"), Tell("h")))
    strategy.begin_task(None, None)
    strategy.after_step(None, None)
    strategy.end_task(None, None)
    order = ["begin a", "begin g", "begin h", "after a", "after g", "after h"]
    assert calls == [*order, "end h", "end g", "end a"]
