"""The time left, and lines for outputs that are no terminal."""

from __future__ import annotations

import io

import pytest

from clbench.progress import Clock, Lines, Live, Silent, choose, duration


class Hands:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def hands() -> Hands:
    return Hands()


def test_nothing_is_known_before_anything_was_timed(hands: Hands):
    clock = Clock(hands, plan=["train a", "train b"])
    clock.begin("train a", 10)
    assert clock.left() is None


def test_a_phase_half_done_takes_as_long_again(hands: Hands):
    clock = Clock(hands, plan=["train a"])
    clock.begin("train a", 10)
    hands.time, clock.units = 4.0, 5
    assert clock.left() == pytest.approx(4.0)


def test_later_phases_take_the_mean_of_their_kind(hands: Hands):
    clock = Clock(hands, plan=["train a", "train b", "train c"])
    for name, seconds in (("train a", 10.0), ("train b", 20.0)):
        clock.begin(name, None)
        hands.time += seconds
        clock.end()
    assert clock.left() == pytest.approx(15.0)


def test_a_kind_not_timed_yet_takes_its_typical_share(hands: Hands):
    clock = Clock(hands, plan=["train a", "evaluate a"])
    clock.begin("train a", None)
    hands.time = 8.0
    clock.end()
    assert clock.left() == pytest.approx(6.0)


def test_a_phase_without_units_is_expected_to_take_what_its_kind_took(hands: Hands):
    clock = Clock(hands, plan=["evaluate base", "evaluate a"])
    clock.begin("evaluate base", None)
    hands.time = 6.0
    clock.end()
    clock.begin("evaluate a", None)
    hands.time = 8.0
    assert clock.left() == pytest.approx(4.0)
    hands.time = 20.0
    assert clock.left() == 0.0


def test_lines_say_what_took_how_long_and_what_is_left(hands: Hands):
    out = io.StringIO()
    lines = Lines(out, clock=Clock(hands))
    lines.plan(["train a", "train b"])
    lines.phase("train a", 100)
    hands.time = 30.0
    lines.advance(100, loss=0.5)
    lines.phase("train b", 100)
    hands.time = 62.0
    lines.done()
    assert out.getvalue() == "train a: 30 s, about 30 s left\ntrain b: 32 s\n"


def test_steps_are_lines_too_when_wanted(hands: Hands):
    out = io.StringIO()
    lines = Lines(out, steps=True, clock=Clock(hands))
    lines.phase("train a", 20)
    for step in range(20):
        lines.advance(1, loss=1.0 / (step + 1))
    assert len(out.getvalue().splitlines()) == 10
    assert "train a 50 %  loss 0.1" in out.getvalue()


def test_a_live_display_leaves_a_line_per_phase():
    out = io.StringIO()
    live = Live(out)
    live.plan(["train a"])
    live.phase("train a", 2)
    live.advance(2, loss=0.5)
    live.done()
    assert "train a: 0.0 s" in out.getvalue()


def test_the_display_follows_the_output():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(choose(-1, Terminal()), Silent)
    assert isinstance(choose(0, io.StringIO()), Lines)
    assert isinstance(choose(1, Terminal()), Lines)
    live = choose(0, Terminal())
    assert isinstance(live, Live)
    live.done()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (75, "75 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations_are_for_people(seconds: float, text: str):
    assert duration(seconds) == text
