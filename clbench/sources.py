"""Whose inputs are measured before a task: the world's, those of tasks seen, the task's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from clbench.calibration import Calibration, Windows, calibrate, draw_windows, held_out_energy
from clbench.strategy import Covariances

if TYPE_CHECKING:
    from clbench.preparation import Plan


@dataclass
class Measured:
    """The covariances of the present model by source, and what is known of them."""

    covariances: dict[str, Covariances] = field(default_factory=dict)
    calibrations: dict[str, Calibration] = field(default_factory=dict)  # by what was read
    held_out: Tensor | None = None  # windows that no covariance has seen

    @property
    def notes(self) -> list[str]:
        """Return what a user should be warned of."""
        return sorted({note for c in self.calibrations.values() for note in c.notes})

    def finish(self, model: nn.Module) -> dict[str, Any]:
        """Free the sums and return what calibration measured, ready for JSON.

        `model` has its adapters attached: the energy of held-out inputs that their input side
        lets through stands beside a random subspace's share.
        """
        facts: dict[str, Any] = {
            "tokens_calibrated": sum(c.tokens_forwarded for c in self.calibrations.values()),
            "calibration": {
                name: {
                    "tokens": c.tokens,
                    "passes": len(c.passes),
                    "notes": list(c.notes),
                    "layers": c.diagnostics(),
                }
                for name, c in self.calibrations.items()
            },
        }
        for calibration in self.calibrations.values():
            calibration.close()
        if self.held_out is not None and len(self.held_out):
            facts["held_out_energy"] = held_out_energy(model, self.held_out)
        return facts


def measure(plan: Plan, model: nn.Module, index: int, targets: Sequence[str]) -> Measured:
    """Return the covariances that the strategy asks for, of exactly this model.

    What it calls "world" is what the configuration protects: world text, the tasks already
    seen, or both with equal weight. Before the first task nothing has been seen: world text
    stands in for what is protected, and a strategy that asks for "seen" itself gets no layer.
    Raises UserError if a source is too short.
    """
    wanted = plan.strategy.calibration_sources()
    measured = Measured()
    protected = ["world"]
    if index > 0 and plan.config.calibration.source != "world":
        protected = {"seen": ["seen"], "both": ["world", "seen"]}[plan.config.calibration.source]
    reads = {source: protected if source == "world" else [source] for source in sorted(wanted)}
    if index == 0 and "seen" in reads:
        measured.covariances["seen"] = {}
        del reads["seen"]
    for name in sorted({name for names in reads.values() for name in names}):
        windows = _windows(plan, index, name)
        measured.calibrations[name] = calibrate(
            model,
            windows.calibration.to(plan.device),
            targets,
            budget_bytes=plan.config.calibration.budget_bytes,
            accumulate=plan.config.calibration.accumulate,
            window_scaling=plan.config.calibration.window_scaling,
        )
        if name in reads.get("world", ()) and measured.held_out is None:
            measured.held_out = windows.held_out.to(plan.device)
    for source, names in reads.items():
        parts = [measured.calibrations[name].covariances for name in names]
        measured.covariances[source] = parts[0] if len(parts) == 1 else Mean(parts)
    return measured


class Mean(Mapping[str, Tensor]):
    """The mean of several sources' covariances, each divided by its own token count."""

    def __init__(self, parts: Sequence[Covariances]) -> None:
        self.parts = parts
        self._last: tuple[list[Tensor], Tensor] | None = None  # what was averaged, and the mean

    def __getitem__(self, layer: str) -> Tensor:
        found = [part[layer] for part in self.parts]
        if self._last is not None and all(
            a is b for a, b in zip(found, self._last[0], strict=True)
        ):
            return self._last[1]  # layers that read one input share one tensor
        self._last = (found, sum(found[1:], found[0]) / len(found))
        return self._last[1]

    def __contains__(self, layer: object) -> bool:
        return layer in set(self.parts[0])  # Mapping's own would run a pass to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts[0])

    def __len__(self) -> int:
        return len(self.parts[0])


def _windows(plan: Plan, index: int, source: str) -> Windows:
    config, tasks = plan.config.calibration, plan.edition.tasks
    texts: Sequence[str]
    if source == "world":
        texts = plan.calibration_texts
    else:
        chosen = [tasks[index]] if source == "task" else tasks[:index]
        texts = [text for task in chosen for text in plan.texts(task)]
    return draw_windows(
        texts,
        plan.loaded.tokenizer,
        config.num_windows,
        config.window,
        seed=plan.config.seed,
        index=index,
        held_out=config.held_out,
    )
