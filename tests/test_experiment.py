"""The whole experiment on a random model: what it records, repeats, refuses and shares."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import toy_runs
from safetensors.torch import load_file

from clbench import evaluation, experiment, preparation, recording
from clbench.checkpoint import Checkpoints
from clbench.comparison import compare
from clbench.config import EvalConfig, TrainConfig
from clbench.digests import digest
from clbench.errors import RunFailed, UserError
from clbench.models import weights_digest
from clbench.rescoring import rescore
from clbench.results import Record, read_items
from clbench.rundir import RunDirectory

IDLE = f"{Path(__file__).parent / 'idle.py'}:Idle"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy_runs.save_toy_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLBENCH_CACHE", str(place / "cache"))
        experiment.run(toy_runs.toy_config(model), out=place / "run")
    return place / "run"


def outcomes(run):
    return {path.name: path.read_bytes() for path in (run / "items").iterdir()}


def test_a_run_scores_every_cell_and_records_how(finished):
    record = Record.load(finished)
    assert record.status == "complete"
    assert len(record.matrix.rows) == 4
    assert all(record.matrix.score(k, e) is not None for k in range(4) for e in record.matrix.evals)
    assert len(outcomes(finished)) == 4 * 5
    phases = [(p["row"], p["phase"]) for p in record.provenance["phases"]]
    steps = ("calibrate", "train", "fold", "evaluate")
    assert phases == [(0, "evaluate"), *((k, s) for k in (1, 2, 3) for s in steps)]
    assert record.metrics["bwt.v1"].value is not None
    assert record.cost["tokens.seen.v1"] > 0
    assert record.cost["trainable.v1"] < record.cost["parameters.v1"]
    assert record.model.weights_digest == record.matrix.rows[0]["tiny_math"].weights_digest


def test_covariances_are_measured_again_before_every_task(finished):
    phases = [p for p in Record.load(finished).provenance["phases"] if p["phase"] == "calibrate"]
    traces = [json.dumps(p["calibration"]["world"]["layers"]) for p in phases]
    assert len(set(traces)) == 3
    assert all(p["tokens_calibrated"] == 8 * 64 for p in phases)
    assert all(p["held_out_energy"] for p in phases)


def test_a_record_says_at_which_rate_after_how_many_trials_how_far_weights_moved(finished, model):
    """Without these a row that forgot little may be one that learned little."""
    record = Record.load(finished)
    run = record.config.model_dump()["run"]
    assert run["train"]["lr"] == 0.01
    assert record.config.trials == 1
    folds = [p for p in record.provenance["phases"] if p["phase"] == "fold"]
    assert len(folds) == 3
    assert all(p["dw_rel"]["all"] > 0 and p["dw_rel_task"] > 0 for p in folds)
    trials = recording.new_record(preparation.prepare(toy_runs.toy_config(model, trials=7)))
    assert trials.config.trials == 7


def test_every_row_is_scored_by_one_harness_on_weights_of_one_dtype(finished):
    record = Record.load(finished)
    assert record.config.model_dump()["run"]["dtype"] == "auto"
    assert record.model.dtype == "float32"  # that of the weights, not what was asked for
    harness = {digest(block.engine) for block in record.evals.values()}
    assert len(harness) == 1
    assert record.evals["tiny_facts"].engine["lm_eval"] == version("lm-eval")
    assert {cell.engine for row in record.matrix.rows for cell in row.values()} == {"hf"}


def test_an_interrupted_run_does_not_go_on_with_other_versions(finished, tmp_path):
    record = Record.load(finished)
    older = record.provenance["packages"] | {"lm-eval": "0.0.1"}
    begun = record.replace(status="partial", provenance=record.provenance | {"packages": older})
    begun.save(tmp_path)
    here = version("lm-eval")
    with pytest.raises(UserError, match=rf"\(lm-eval 0\.0\.1 there, {here} here\)"):
        RunDirectory(tmp_path, record)
    begun.replace(status="complete").save(tmp_path)
    RunDirectory(tmp_path, record).close()  # nothing is left to be scored


def test_tasks_come_in_the_order_of_the_configuration(model):
    for order, names in ((None, ("math", "code", "if")), ((2, 0, 1), ("if", "math", "code"))):
        plan = preparation.prepare(toy_runs.toy_config(model, order=order))
        record = recording.new_record(plan)
        assert tuple(task.name for task in plan.edition.tasks) == names
        assert record.matrix.tasks == names
        assert tuple(record.matrix.task_evals) == names
        assert record.config.order == order


def test_batches_are_checked_once_per_model_and_a_difference_flags_the_run(finished):
    record = Record.load(finished)
    found = {e: block.batch_agreement for e, block in record.evals.items()}
    assert all(each["passed"] and each["num_items"] == 4 for each in found.values())
    assert "batch_dependent" not in record.flags
    math = record.evals["tiny_math"].model_dump()
    math["batch_agreement"] |= {"passed": False}
    changed = record.replace(evals=record.evals | {"tiny_math": math})
    assert "batch_dependent" in recording.flags(changed)
    assert changed.comparison_key() == record.comparison_key()


def test_two_runs_of_one_seed_agree_and_another_seed_differs(finished, model, tmp_path):
    again = experiment.run(toy_runs.toy_config(model), out=tmp_path / "again")
    assert scores(again) == scores(Record.load(finished))
    assert outcomes(tmp_path / "again") == outcomes(finished)
    other = experiment.run(toy_runs.toy_config(model, seed=1), out=tmp_path / "other")
    assert other.matrix.rows[0]["tiny_math"].weights_digest == base_digest(finished)
    assert digests(other)[1:] != digests(again)[1:]


def scores(record):
    return [{e: cell.score for e, cell in row.items()} for row in record.matrix.rows]


def digests(record):
    return [row["tiny_math"].weights_digest for row in record.matrix.rows]


def base_digest(run):
    return digests(Record.load(run))[0]


def test_weights_that_did_not_change_are_not_scored_again(model, tmp_path):
    config = toy_runs.toy_config(model, strategy=IDLE, eval=EvalConfig.of({"samples": 2}))
    record = experiment.run(config, out=tmp_path / "idle")
    rows = [p for p in record.provenance["phases"] if p["phase"] == "evaluate"]
    assert rows[0]["tokens_generated"] > 0
    for later in rows[1:]:
        assert later["weights_digest"] == rows[0]["weights_digest"]
        assert all(found["cached"] for found in later["evals"].values())
        assert later["tokens_generated"] == sum(later["seconds_by_kind"].values()) == 0
    assert scores(record) == [scores(record)[0]] * 4


def test_what_is_kept_is_what_was_scored(finished, model):
    """Reloading the saved artifact reproduces the last row's weights and items."""
    plan = preparation.prepare(toy_runs.toy_config(model))
    base = plan.loaded.model
    kept = Checkpoints(finished / "weights", base).load("3-fold", base, plan.strategy)
    assert weights_digest(kept) == digests(Record.load(finished))[-1]
    results = plan.evaluator.evaluate(kept, ["tiny_math"])
    stored = read_items(finished, 3, "tiny_math")
    assert [i["output"] for i in results["tiny_math"].items] == [i["output"] for i in stored]
    assert sorted(p.name for p in (finished / "weights").glob("*.json")) == ["3-fold.json"]


def test_rescoring_needs_no_model(finished):
    assert rescore(finished).changed == ()


def test_a_finished_run_is_read_back_and_not_touched(finished, model):
    before = (finished / "record.json").stat().st_mtime_ns
    record = experiment.run(toy_runs.toy_config(model), out=finished)
    assert record == Record.load(finished)
    assert (finished / "record.json").stat().st_mtime_ns == before


def test_another_configuration_in_the_same_place_is_refused_by_name(finished, model):
    with pytest.raises(UserError, match=r"another configuration \(seed 0 there, 5 here\)"):
        experiment.run(toy_runs.toy_config(model, seed=5), out=finished)


def test_a_folder_that_is_no_run_is_left_alone(model, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(UserError, match=r"holds files that are not a run \(thesis.tex\)"):
            experiment.run(toy_runs.toy_config(model), out=tmp_path / "mine", fresh=fresh)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_what_cannot_begin_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="no-such-model"):
        experiment.run(toy_runs.toy_config(tmp_path / "no-such-model"), out=tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_an_eval_that_cannot_fit_the_model_is_refused_before_the_run(tmp_path):
    small = toy_runs.save_toy_model(tmp_path / "small")
    file = small / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 48}))
    said = "eval tiny_math writes up to 48 new tokens, and the model reads no more than 48, its"
    with pytest.raises(UserError, match=said):
        experiment.run(toy_runs.toy_config(small), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_processes_do_not_write_one_run(finished, model):
    with RunDirectory(finished, Record.load(finished)) as book:
        assert book.record.status == "complete"
        with pytest.raises(UserError, match="another process is writing"):
            experiment.run(toy_runs.toy_config(model), out=finished)


def test_a_loss_that_is_not_finite_keeps_its_record_as_diverged(model, tmp_path):
    hot = TrainConfig.of({"steps": 4, "batch_size": 4, "lr": 1e30, "clip": "none"})
    config = toy_runs.toy_config(model, strategy="full", train=hot)
    for _ in range(2):  # the second time it is read back
        with pytest.raises(RunFailed, match=r"loss of task math was not finite at step \d+"):
            experiment.run(config, out=tmp_path / "hot")
    record = Record.load(tmp_path / "hot")
    assert record.status == "diverged"
    assert record.matrix.score(0, "tiny_math") is not None
    assert {c.reason for row in record.matrix.rows[1:] for c in row.values()} == {"diverged"}
    assert record.metrics["bwt.v1"].value is None


@pytest.mark.parametrize(
    ("schedule", "num_cells"), [("full", 20), ("band", 19), ("lower", 17), ("ends", 12)]
)
def test_a_schedule_scores_the_cells_it_says(model, schedule, num_cells, tmp_path):
    few = EvalConfig.of({"samples": 2, "rank_items": 0, "schedule": schedule})
    config = toy_runs.toy_config(model, strategy="lora", eval=few)
    record = experiment.run(config, out=tmp_path / "run")
    cells = [cell for row in record.matrix.rows for cell in row.values()]
    assert sum(cell.score is not None for cell in cells) == num_cells
    assert {cell.reason for cell in cells} <= {None, "not_scheduled"}


def test_references_are_shared_by_every_strategy(model, tmp_path):
    few = EvalConfig.of({"samples": 2, "rank_items": 0})
    config = toy_runs.toy_config(model, eval=few, reference=("single", "joint"), preset=None)
    record = experiment.run(config, out=tmp_path / "null")
    assert set(record.references.single) == set(record.references.joint) == {"math", "code", "if"}
    runs = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("record.json")}
    assert len(runs) == 4
    other = config.model_copy(update={"strategy": "full"})
    assert experiment.run(other, out=tmp_path / "full").references == record.references
    assert runs == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("record.json")}
    assert rescore(tmp_path / "null").changed == ()


@pytest.mark.parametrize("layout", ["qwen2", "gemma", "gpt2"])
def test_other_layouts_run_whole(layout, tmp_path):
    model = toy_runs.save_toy_model(tmp_path / "model", layout)
    few = EvalConfig.of({"samples": 2, "rank_items": 2, "schedule": "ends"})
    config = toy_runs.toy_config(model, eval=few, tasks=("math", "if"))
    record = experiment.run(config, out=tmp_path / "run")
    assert record.status == "complete"
    folds = [p for p in record.provenance["phases"] if p["phase"] == "fold"]
    assert all(p["dw_rel"]["all"] > 0 for p in folds)


def test_strategies_of_one_key_compare_and_other_budgets_do_not(finished, model, tmp_path):
    experiment.run(toy_runs.toy_config(model, strategy="lora"), out=tmp_path / "lora")
    found = compare(finished, tmp_path / "lora")
    base = [cell for cell in found.cells if cell.name.startswith("R[0,")]
    assert len(found.cells) == 20
    assert [(cell.difference, cell.interval) for cell in base] == [(0.0, (0.0, 0.0))] * 5
    longer = TrainConfig.of({"steps": 5, "batch_size": 4, "lr": 0.01})
    experiment.run(toy_runs.toy_config(model, train=longer), out=tmp_path / "longer")
    with pytest.raises(UserError, match="token_budget"):
        compare(finished, tmp_path / "longer")


def test_full_writes_only_the_targets(model, tmp_path):
    experiment.run(toy_runs.toy_config(model, strategy="full"), out=tmp_path / "run")
    files = (tmp_path / "run" / "weights").glob("*.safetensors")
    moved = {name: t for file in files for name, t in load_file(file).items()}
    assert moved
    assert all(name.split(".")[-2].endswith("_proj") for name in moved)
    assert all(tensor.dtype == torch.float32 for tensor in moved.values())


def test_the_estimate_and_the_run_prepare_each_eval_once(model, monkeypatch):
    built = []
    build = evaluation.build_task

    def counted(spec, hub, **how):
        built.append(spec.id)
        return build(spec, hub, **how)

    monkeypatch.setattr(evaluation, "build_task", counted)
    plan = preparation.prepare(toy_runs.toy_config(model))
    assert plan.workload().eval_tokens > 0
    plan.evaluator.probes()
    assert sorted(built) == sorted(spec.id for spec in plan.edition.evals)
