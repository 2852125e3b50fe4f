"""The contract catches what it is for: each planted bug breaks the check meant for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import planted
import pytest
import torch
from clbench_strategies.lora import Lora
from planted import Anchored, Null, Residual

from clbench.adapters import adapted
from clbench.errors import UserError
from clbench.strategy import Strategy
from clbench.testing import (
    CHECKS,
    CheckFailed,
    Course,
    check_name,
    check_strategy,
    examine,
    parametrize_with_checks,
    promise,
    subject,
    tiny_model,
)

BEGINS = {check_name(check) for check in CHECKS} - {
    "constructs_from_its_params",
    "constructor_is_pure",
}
RESUME, COMPOSES = {"state_round_trips"}, {"composes"}

# A bug, the check that must catch it, and which others may see it too: `composes` asks again for
# what only_trainables_move and the two about the function promise, and what is drawn or kept
# elsewhere differs after a resume.
EXACTLY = [
    (planted.HalvesItsStrength, "constructs_from_its_params", set()),
    (planted.DrawsAtOnce, "constructor_is_pure", RESUME | {"same_seed_same_weights"}),
    (planted.DoesNotSubtract, "begin_task_keeps_function", COMPOSES | {"does_not_drift"}),
    (planted.MergesEveryStep, "only_trainables_move", COMPOSES),
    (planted.Detaches, "penalty_has_gradient", set()),
    (planted.AveragesTheWrongCopy, "learns", set()),
    (planted.FoldsWithoutScale, "end_task_keeps_function", COMPOSES),
    (planted.LeavesAHook, "second_task_costs_no_more", set()),
    (planted.ReplaysUnseeded, "same_seed_same_weights", RESUME),
    (planted.CapsItsRank, "hyperparameters_survive_a_run", set()),
    (planted.ForgetsOnResume, "state_round_trips", set()),
    (planted.CachesByName, "uses_fresh_calibration", set()),
    (planted.DecaysTowardZero, "does_not_drift", set()),
    (planted.LiesToGuards, "composes", set()),
]
FURTHER = [
    (planted.IsNoDataclass, "constructs_from_its_params"),
    (planted.DecaysEverything, "only_trainables_move"),
    (planted.MovesItsAnchor, "penalty_has_gradient"),
    (planted.OverwritesItsFisher, "penalty_has_gradient"),
    (planted.Ascends, "learns"),
    (planted.LosesItsChange, "end_task_keeps_function"),
    (planted.FoldsSidewaysOnConv1D, "end_task_keeps_function"),
    (planted.GrowsItsRank, "second_task_costs_no_more"),
    (planted.HoldsOnToLayers, "state_round_trips"),
    (planted.TakesTheWeightForTheInputs, "uses_fresh_calibration"),
    (planted.DoesWithoutCovariances, "uses_fresh_calibration"),
    (planted.RoundsTwice, "does_not_drift"),
    (planted.IsMuteToGuards, "composes"),
    (planted.TellsGuardsNothing, "composes"),
]
REASONS = {
    planted.IsNoDataclass: "temperature is annotated but is no field",
    planted.DrawsAtOnce: "draws random numbers",
    planted.Detaches: "has no gradient",
    planted.MovesItsAnchor: "although the weights have moved",
    planted.LeavesAHook: "hooks after begin_task: 1 in the first task, 2 in the second",
    planted.HoldsOnToLayers: "layers_ of holds-on-to-layers does not load without pickle",
    planted.CachesByName: "task 2 starts the same whatever the 'world' covariances are",
    planted.DoesWithoutCovariances: "goes on without the 'world' covariances",
    planted.IsMuteToGuards: "no guard can pull",
}


def failures(strategy: Strategy) -> dict[str, str]:
    return {f.check: f.reason for f in examine(subject(strategy)) if f.status == "failed"}


def reason(strategy: Strategy, name: str) -> str:
    """Return why one check fails."""
    (check,) = [check for check in CHECKS if check_name(check) == name]
    with pytest.raises(CheckFailed) as caught:
        check(subject(strategy))
    return str(caught.value)


def name_of(value: object) -> str:
    return value.__name__ if isinstance(value, type) else ""


def test_every_check_has_a_planted_bug():
    assert [name for _, name, _ in EXACTLY] == [check_name(check) for check in CHECKS]


@pytest.mark.parametrize(("bug", "check", "others"), EXACTLY, ids=name_of)
def test_a_bug_breaks_the_check_meant_for_it_and_no_other(
    bug: type[Strategy], check: str, others: set[str]
):
    found = failures(bug())
    assert {check} <= set(found) <= {check} | others
    assert REASONS.get(bug, "") in found[check]


@pytest.mark.parametrize(("bug", "check"), FURTHER, ids=name_of)
def test_a_further_bug_breaks_the_check_meant_for_it(bug: type[Strategy], check: str):
    assert REASONS.get(bug, "") in reason(bug(), check)


def test_the_wrong_side_of_a_narrow_layer_cannot_go_unnoticed():
    """On square layers it would run: the tiny model has others too."""
    assert set(failures(planted.TakesTheWrongSide())) == BEGINS


@pytest.mark.parametrize("sound", [Residual, Null, Anchored])
def test_without_the_bug_all_holds(sound: type[Strategy]):
    findings = check_strategy(sound())
    assert [f.check for f in findings] == [check_name(check) for check in CHECKS]
    statuses = {f.check: f.status for f in findings}
    fresh = statuses.pop("uses_fresh_calibration")
    assert set(statuses.values()) == {"held"}
    assert fresh == ("held" if sound is Null else "unneeded")


# Expected failures


@dataclass
class Declared(Residual):
    check: str = "end_task_keeps_function"
    reason: str = "half of the change is meant to go"

    def expected_failures(self) -> dict[str, str]:
        return {self.check: self.reason}

    def end_task(self, model, task):
        for layer in adapted(model).values():
            layer.scale_delta(0.5)
        return super().end_task(model, task)


def test_an_expected_failure_is_reported_as_such():
    found = {f.check: f for f in check_strategy(Declared())}
    declared = found["end_task_keeps_function"]
    assert (declared.status, declared.reason) == ("expected", Declared.reason)
    assert found["composes"].status == "held"


def test_composes_leaves_out_what_is_declared():
    @dataclass
    class Nudges(Residual):
        def expected_failures(self):
            return {"only_trainables_move": "the embedding is nudged after each step"}

        def after_step(self, model, step):
            model.get_input_embeddings().weight.data.mul_(1 + 1e-6)

    found = {f.check: f.status for f in check_strategy(Nudges())}
    assert found["only_trainables_move"] == "expected"
    assert found["composes"] == "held"


def test_an_expected_failure_that_passes_is_an_error():
    @dataclass
    class TooModest(Residual):
        def expected_failures(self):
            return {"learns": "it is slow"}

    assert failures(TooModest()) == {"learns": "passes although it is declared to fail"}


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        (Declared(check="lerns"), "unknown expected failure of declared 'lerns'; did you mean lea"),
        (Declared(reason=" "), "declares that end_task_keeps_function fails, and gives no reason"),
    ],
)
def test_a_wrong_declaration_is_refused(declared: Strategy, sentence: str):
    with pytest.raises(UserError, match=sentence):
        check_strategy(declared)
    with pytest.raises(UserError, match=sentence):
        parametrize_with_checks([declared])


# How a strategy is given


def test_a_failure_is_raised_with_all_that_does_not_hold():
    with pytest.raises(CheckFailed) as caught:
        check_strategy(planted.LosesItsChange())
    first, *rest = str(caught.value).splitlines()
    assert first == "loses-its-change breaks the contract"
    assert [line.split(":")[0] for line in rest] == [
        "learns",
        "end_task_keeps_function",
        "composes",
    ]


def test_a_name_takes_its_hyperparameters_from_the_preset_and_from_the_caller():
    assert subject("lora").build().params()["rank"] == 16
    assert subject("lora", {"lora": {"rank": 3}}).build() == Lora(rank=3)
    assert subject(Lora(rank=5)).build() == Lora(rank=5)
    with pytest.raises(UserError, match="unknown field of lora 'rnak'"):
        subject("lora", {"lora": {"rnak": 3}})


def test_a_guard_brings_its_adapter_and_every_build_is_new():
    guarded = subject(Anchored(strength=3.0))
    assert [part.name() for part in guarded.parts()] == ["lora", "anchored"]
    assert guarded.parts()[1] == Anchored(strength=3.0)
    assert guarded.parts()[1] is not guarded.parts()[1]


def test_a_strategy_that_refuses_company_composes():
    @dataclass
    class Hermit(planted.LiesToGuards):
        def refuses(self, others):
            return "it works alone" if others else None

    assert failures(Hermit()) == {}


CASES = parametrize_with_checks(["lora", Declared(), Null()]).args[1]


def test_pytest_cases_are_one_per_strategy_and_check_that_applies():
    ids = [case.id for case in CASES]
    assert ids[0] == "lora-constructs_from_its_params"
    assert len(ids) == 13 + 13 + 14
    assert "lora-uses_fresh_calibration" not in ids
    marked = {case.id: case.marks[0].kwargs for case in CASES if case.marks}
    assert marked == {
        "declared-end_task_keeps_function": {"reason": Declared.reason, "strict": True}
    }


def test_a_check_leaves_threads_and_generators_as_they_were():
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    case = next(case.values[0] for case in CASES if case.id == "lora-learns")
    case()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


# The course


def test_the_tiny_model_is_the_same_at_every_call_and_has_all_that_is_difficult():
    one, other = tiny_model(), tiny_model()
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert one.get_input_embeddings().weight is one.get_output_embeddings().weight
    attention = one.model.layers[0].self_attn
    assert attention.k_proj.weight.shape == (8, 32)
    assert attention.k_proj.bias is not None
    assert type(tiny_model("gpt2").transformer.h[0].mlp.c_fc).__name__ == "Conv1D"


def test_a_course_closes_its_calibration_as_the_driver_does():
    @dataclass
    class Keeps(Null):
        def begin_task(self, model, task):
            self.kept = task.covariances["world"]
            return super().begin_task(model, task)

    course = Course(Keeps())
    course.begin()
    with pytest.raises(RuntimeError, match="closed"):
        course.strategy.kept[course.targets[-1]], course.strategy.kept[course.targets[0]]


def test_the_page_lists_the_checks_with_their_promises():
    page = (Path(__file__).parent.parent / "docs" / "contract.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    told = {row[0].strip("|` "): row[1].strip("| ") for row in rows}
    promises = {check_name(check): promise(check).rstrip(".") for check in CHECKS}
    assert told == {name: text[0].lower() + text[1:] for name, text in promises.items()}
