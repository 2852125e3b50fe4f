"""How far a run is: a calm display on a terminal, plain lines elsewhere, nothing when asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

# Relative cost of a phase before one of its kind was timed; only the first estimates rest on it.
TYPICAL = {"calibrate": 1.0, "train": 8.0, "fold": 0.3, "evaluate": 6.0}


class Progress(Protocol):
    """What a run tells: its phases by name, "kind" or "kind what", e.g. "train math"."""

    def plan(self, phases: Sequence[str]) -> None:
        """Say which phases will come, in order; those that are finished are left out."""

    def note(self, text: str) -> None:
        """Say one sentence that is worth keeping on the screen."""

    def phase(self, name: str, total: float | None = None) -> None:
        """Begin a phase of `total` units of work; ends the phase before."""

    def advance(self, n: float = 1, **info: Any) -> None:
        """Finish `n` more units; `info` is shown, e.g. loss=0.7."""

    def done(self) -> None:
        """End the last phase and the display."""


class Silent:
    """Shows nothing."""

    def plan(self, phases: Sequence[str]) -> None:
        """Ignore the plan."""

    def note(self, text: str) -> None:
        """Ignore the sentence."""

    def phase(self, name: str, total: float | None = None) -> None:
        """Ignore the phase."""

    def advance(self, n: float = 1, **info: Any) -> None:
        """Ignore the step."""

    def done(self) -> None:
        """Show nothing to the end."""


@dataclass
class Clock:
    """Times phases and estimates the seconds left of the whole plan."""

    now: Callable[[], float] = time.monotonic
    plan: list[str] = field(default_factory=list)
    finished: list[tuple[str, float]] = field(default_factory=list)  # phase, seconds
    current: str | None = None
    total: float | None = None
    units: float = 0.0
    started: float = 0.0

    def begin(self, name: str, total: float | None) -> None:
        """Start the time of a phase, which leaves the plan."""
        self.current, self.total, self.units = name, total, 0.0
        self.started = self.now()
        if name in self.plan:
            self.plan = self.plan[self.plan.index(name) + 1 :]

    def end(self) -> tuple[str, float] | None:
        """Stop the phase under way; return its name and seconds."""
        if self.current is None:
            return None
        last = (self.current, self.now() - self.started)
        self.finished.append(last)
        self.current = None
        return last

    def left(self) -> float | None:
        """Return the seconds left, or None before anything is known.

        A phase takes as long as the mean of those of its kind; of a kind not timed yet, the
        typical share relative to what was timed.
        """
        timed = list(self.finished)
        rest = 0.0
        if self.current is not None:
            elapsed = self.now() - self.started
            share = self.units / self.total if self.total else 0.0
            if share > 0:
                timed.append((self.current, elapsed / share))
                rest = elapsed / share - elapsed
            else:
                rest = max(0.0, self._mean(self.current, timed) - elapsed)
        if not timed:
            return None
        return rest + sum(self._mean(name, timed) for name in self.plan)

    def _mean(self, name: str, timed: list[tuple[str, float]]) -> float:
        same = [seconds for other, seconds in timed if _kind(other) == _kind(name)]
        if same:
            return sum(same) / len(same)
        typical = sum(TYPICAL.get(_kind(other), 1.0) for other, _ in timed)
        if not typical:
            return 0.0
        return TYPICAL.get(_kind(name), 1.0) * sum(seconds for _, seconds in timed) / typical


class Lines:
    """One line when a phase ends, for logs; with `steps`, further lines while it runs."""

    def __init__(self, out: TextIO, *, steps: bool = False, clock: Clock | None = None) -> None:
        self.out, self.steps = out, steps
        self.clock = clock or Clock()
        self.shown = 0  # tenths of the phase that have their line

    def plan(self, phases: Sequence[str]) -> None:
        """Keep the plan for the estimate."""
        self.clock.plan = list(phases)

    def note(self, text: str) -> None:
        """Print the sentence."""
        self._print(text)

    def phase(self, name: str, total: float | None = None) -> None:
        """Print how long the phase before took."""
        self._end()
        self.clock.begin(name, total)
        self.shown = 0

    def advance(self, n: float = 1, **info: Any) -> None:
        """Print a line per tenth of the phase, if steps are wanted."""
        self.clock.units += n
        if not self.steps or not self.clock.total:
            return
        tenths = int(10 * self.clock.units / self.clock.total)
        if tenths > self.shown:
            self.shown = tenths
            self._print(f"  {self.clock.current} {10 * tenths} %{_details(info)}")

    def done(self) -> None:
        """Print how long the last phase took."""
        self._end()

    def _end(self) -> None:
        last = self.clock.end()
        if last is not None:
            left = self.clock.left() if self.clock.plan else None
            tail = "" if left is None else f", about {duration(left)} left"
            self._print(f"{last[0]}: {duration(last[1])}{tail}")

    def _print(self, line: str) -> None:
        print(line, file=self.out, flush=True)


class Live:
    """One moving bar for the phase under way, with the time left of the whole run."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.clock = Clock()
        self.bars: Bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[details]}"),
            TextColumn("{task.fields[left]}", style="dim"),
            console=Console(file=out),
            transient=True,
            refresh_per_second=4,
        )
        self.bar = self.bars.add_task("starting", total=None, details="", left="")
        self.bars.start()

    def plan(self, phases: Sequence[str]) -> None:
        """Keep the plan for the estimate."""
        self.clock.plan = list(phases)

    def note(self, text: str) -> None:
        """Leave the sentence above the bar."""
        self.bars.console.print(text, style="dim", highlight=False)

    def phase(self, name: str, total: float | None = None) -> None:
        """Leave a line for the phase before and begin a new bar."""
        self._end()
        self.clock.begin(name, total)
        self.bars.start()  # a reference run goes on after the end of the run before it
        self.bars.reset(self.bar, total=total, description=name, details="", left=self._left())

    def advance(self, n: float = 1, **info: Any) -> None:
        """Move the bar."""
        self.clock.units += n
        self.bars.update(self.bar, advance=n, details=_details(info).strip(), left=self._left())

    def done(self) -> None:
        """Take the bar away; the lines of the phases stay."""
        self._end()
        self.bars.stop()

    def _end(self) -> None:
        last = self.clock.end()
        if last is not None:
            self.bars.console.print(f"{last[0]}: {duration(last[1])}", style="dim", highlight=False)

    def _left(self) -> str:
        left = self.clock.left()
        return "" if left is None else f"about {duration(left)} left"


def choose(verbosity: int = 0, out: TextIO | None = None) -> Progress:
    """Return the display for an output: nothing if quiet, lines unless it is a terminal."""
    out = sys.stderr if out is None else out
    if verbosity < 0:
        return Silent()
    if verbosity == 0 and out.isatty():
        return Live(out)
    return Lines(out, steps=verbosity > 0)


def duration(seconds: float) -> str:
    """Return a duration for people: "0.4 s", "75 s", "12 min", "3.5 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _kind(name: str) -> str:
    return name.split(" ", 1)[0]


def _details(info: dict[str, Any]) -> str:
    shown = [f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in info.items()]
    return "".join(f"  {text}" for text in shown)
