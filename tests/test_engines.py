"""Engines: another one answers as the model itself does, or is not used; a stub stands for vLLM."""

from __future__ import annotations

import copy
import dataclasses
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import toy_runs
from click.testing import CliRunner
from evaltoys import (
    FACTS,
    char_tokenizer,
    choice_eval,
    code_eval,
    evaluator,
    facts_eval,
    prompt_of,
    teach,
)
from test_diagnostics import LONG, by_hand, perplexity
from toys import toy_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from clbench import doctor, engines, evalchecks, experiment, registry, sandbox
from clbench.adapters import attach, find_targets, fold, folded_state
from clbench.cli import main
from clbench.config import EvalConfig
from clbench.errors import UserError
from clbench.layers import FactorLinear
from clbench.models import weights_digest
from clbench.progress import Silent
from clbench.results import Record
from clbench.stream import Edition, Stream
from clbench.task import Row, Task

STUB = Path(__file__).parent / "vllm_stub"


@pytest.fixture(autouse=True)
def _as_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.delitem(sys.modules, "vllm", raising=False)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the stub, installed."""
    monkeypatch.syspath_prepend(str(STUB))
    import vllm

    monkeypatch.setitem(sys.modules, "vllm", vllm)
    return vllm


@pytest.fixture(scope="module")
def knowing() -> PreTrainedModel:
    """Return a model that says two facts plainly and the others in a sentence."""
    plain = ("red", "blue")
    return teach(
        [(prompt_of(w), f" {a}" if w in plain else f" it is, {a}") for w, a in FACTS.items()]
    )


def outcomes(found: dict[str, Any]) -> Any:
    """Return what must be equal, and what is equal up to rounding."""
    exact, close = [], []
    for result in found.values():
        for item in result.items:
            lls = item["lls"] or []
            close += [*lls, *([] if item["gold_ll"] is None else [item["gold_ll"]])]
            exact.append({k: v for k, v in item.items() if k not in ("lls", "gold_ll")})
        exact.append((result.score, result.flags, result.counts, result.tokens_generated))
    return exact, close


# One row


def test_vllm_answers_as_the_model_does(knowing: PreTrainedModel, vllm: ModuleType) -> None:
    evals = (facts_eval(), choice_eval(), code_eval())
    isolation = sandbox.find_isolation("none")
    run = evaluator(*evals, engine="vllm", isolation=isolation, batch_size=7)
    ours = evaluator(*evals, isolation=isolation).evaluate(knowing)
    theirs = run.evaluate(knowing)
    (exact, close), (expected, nearly) = outcomes(theirs), outcomes(ours)
    assert exact == expected
    assert close == pytest.approx(nearly, abs=1e-4)
    assert len(close) == 10
    assert {result.engine for result in theirs.values()} == {"vllm 0.0.1"}
    assert {result.engine for result in ours.values()} == {"hf"}
    assert set(ours["toy_facts"].counts) == {"eos", "stop"}


def test_vllm_reads_texts_in_windows_that_it_has_room_for(
    knowing: PreTrainedModel, vllm: ModuleType
) -> None:
    """It reads a window's last token too and writes one more: two tokens less than the model."""
    ours = evaluator(perplexity()).evaluate(knowing)["pages"]
    theirs = evaluator(perplexity(), engine="vllm").evaluate(knowing)["pages"]
    assert theirs.num_items == 3
    long, *short = (
        [a["lls"][0], b["lls"][0]] for a, b in zip(theirs.items, ours.items, strict=True)
    )
    assert all(a == pytest.approx(b, abs=1e-3) for a, b in short)  # one window each
    assert long[0] == pytest.approx(by_hand(knowing, LONG, 62), abs=1e-3)
    assert "truncated" not in theirs.flags


def test_it_is_started_once_per_row_with_exactly_these_weights_and_freed(
    knowing: PreTrainedModel, vllm: ModuleType
) -> None:
    run = evaluator(facts_eval(), choice_eval(), engine="vllm", batch_size=7)
    before = len(vllm.loaded)
    run.evaluate(knowing)
    (settings,) = vllm.loaded[before:]
    assert (settings["dtype"], settings["seed"], settings["max_num_seqs"]) == ("float32", 0, 7)
    assert settings["max_model_len"] == knowing.config.max_position_embeddings
    assert settings["generation_config"] == "vllm"
    assert settings["trust_remote_code"] is False
    assert "model.safetensors" in settings["files"]
    assert not Path(settings["model"]).exists()
    assert not vllm.living


def test_a_row_that_is_recalled_starts_nothing(
    knowing: PreTrainedModel, vllm: ModuleType, tmp_path: Path
) -> None:
    run = evaluator(facts_eval(), engine="vllm", cache_dir=tmp_path / "evals")
    first = run.evaluate(knowing, weights_digest="w")["toy_facts"]
    before = len(vllm.loaded)
    again = run.evaluate(knowing, weights_digest="w")["toy_facts"]
    assert again.cached
    assert again.items == first.items
    assert len(vllm.loaded) == before
    ours = evaluator(facts_eval(), cache_dir=tmp_path / "evals")
    assert not ours.evaluate(knowing, weights_digest="w")["toy_facts"].cached


def test_what_is_attached_is_scored_folded(knowing: PreTrainedModel, vllm: ModuleType) -> None:
    model = copy.deepcopy(knowing)
    for name in find_targets(model):
        layer = attach(model, name, *_factors(model, name), scale=1.0)
        with torch.no_grad():
            layer.up.add_(torch.randn_like(layer.up) * 0.02)
    theirs = evaluator(facts_eval(), engine="vllm").evaluate(model)["toy_facts"]
    plain = fold(copy.deepcopy(model))
    ours = evaluator(facts_eval()).evaluate(plain)["toy_facts"]
    assert [item["output"] for item in theirs.items] == [item["output"] for item in ours.items]
    lls = [item["gold_ll"] for item in ours.items]
    assert [item["gold_ll"] for item in theirs.items] == pytest.approx(lls, abs=1e-4)
    untouched = evaluator(facts_eval()).evaluate(knowing)["toy_facts"]
    assert lls != pytest.approx([item["gold_ll"] for item in untouched.items], abs=1e-2)


def _factors(model: torch.nn.Module, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = model.get_submodule(name).weight.shape
    return torch.randn(rows, 2) * 0.1, torch.randn(2, columns)


@pytest.mark.parametrize("layout", sorted(toy_runs.LAYOUTS))
def test_every_layout_is_saved_as_its_folded_self(
    layout: str, vllm: ModuleType, tmp_path: Path
) -> None:
    place = toy_runs.save_toy_model(tmp_path / layout, layout)
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16)
    for name in find_targets(model):
        shape = model.get_submodule(name).weight.shape
        out, width = reversed(shape) if layout == "gpt2" else shape
        layer = attach(model, name, torch.zeros(out, 2), torch.randn(2, width), scale=1.0)
        with torch.no_grad():
            layer.up.add_(torch.randn_like(layer.up) * 0.1)
    engine = engines.Vllm(model, AutoTokenizer.from_pretrained(place), 4)
    engine.write([[5, 6, 7]], [], 2)
    (held,) = [llm.model for llm in vllm.living]
    state = folded_state(model)
    engine.close()
    assert weights_digest(held) == weights_digest(fold(model))
    assert state.keys() == model.state_dict().keys()


def test_a_layer_that_is_no_weight_is_refused(
    knowing: PreTrainedModel, vllm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(knowing)
    name = find_targets(model)[0]
    attach(model, name, *_factors(model, name), scale=1.0)
    monkeypatch.setattr(FactorLinear, "not_a_weight", lambda _: "its output is divided by a norm")
    with pytest.raises(UserError, match=r"q_proj cannot be folded .* divided by a norm"):
        evaluator(facts_eval(), engine="vllm").evaluate(model)


def test_a_prompt_that_does_not_fit_is_cut_and_flagged(
    knowing: PreTrainedModel, vllm: ModuleType
) -> None:
    docs = [{"id": "long", "prompt": "red " * 30 + "red:", "golds": ["rose"]}]
    for spec in (facts_eval(rank_items=0), choice_eval()):
        long = dataclasses.replace(spec, config={**spec.config, "docs": lambda: docs})
        found = evaluator(long, engine="vllm").evaluate(knowing)[spec.id]
        assert "truncated" in found.flags


def test_the_context_of_a_large_model_is_bounded(vllm: ModuleType) -> None:
    model = toy_model()
    model.config.max_position_embeddings = 131072
    assert engines.Vllm(model, None, 4).max_length == engines.MOST_CONTEXT
    assert not vllm.living


# Agreement


def test_engines_that_agree_pass(knowing: PreTrainedModel, vllm: ModuleType) -> None:
    found = evalchecks.check_engine(knowing, evaluator(facts_eval(), choice_eval(), engine="vllm"))
    assert found["toy_facts"] == (5, 1.0, 1.0, 0.0, True)
    assert found["toy_choice"].passed


def test_engines_that_disagree_do_not(
    knowing: PreTrainedModel, vllm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "wrong", True)
    found = evalchecks.check_engine(knowing, evaluator(choice_eval(), engine="vllm"))["toy_choice"]
    assert found.same_outcome < 0.98
    assert found.score_difference == pytest.approx(0.4)
    assert not found.passed


@pytest.mark.parametrize(
    ("scores", "passed"),
    [
        ((0, 0), True),
        ((1, 0), True),
        ((1, 1), True),
        ((2, 1), False),
        ((2, 0), False),
        ((3, 2), False),
    ],
)
def test_the_limits_of_agreement(
    knowing: PreTrainedModel, scores: tuple[int, int], passed: bool
) -> None:
    """Of 100 items, `scores` of them are right by one engine only."""
    found = evaluator(facts_eval()).evaluate(knowing)["toy_facts"]
    blank = found.items[0]

    def result(right: range) -> Any:
        items = [{**blank, "score": float(i in right)} for i in range(100)]
        return dataclasses.replace(found, items=items, score=len(right) / 100)

    ours, theirs = result(range(50, 50 + scores[0])), result(range(60, 60 + scores[1]))
    assert evalchecks.compare_engines(theirs, ours).passed is passed


# A run


@pytest.fixture
def model(knowing: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the place of a model, with the stream `toys` that asks what it knows."""
    rows = [Row(word, prompt_of(word), f" {answer}") for word, answer in FACTS.items()]
    edition = Edition(
        tasks=(Task("facts", lambda: rows, (facts_eval(),)),),
        world=(choice_eval(),),
        calibration=lambda: ["rose sky leaf sun snow " * 40],
        calibration_id="toys",
    )
    stream = Stream("toys", "five facts", {"tiny": lambda: edition})
    monkeypatch.setattr(registry, "stream", lambda _: stream)
    knowing.save_pretrained(tmp_path / "model")
    char_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def run(model: Path, out: str, engine: str, **changes: Any) -> tuple[Record, list[str]]:
    config = toy_runs.toy_config(
        model, stream="toys", strategy="lora", eval=EvalConfig(engine=engine), **changes
    )
    notes = Notes()
    return experiment.run(config, out=Path(out), progress=notes), notes.said


def engines_of(record: Record) -> set[Any]:
    return {cell.engine for row in record.matrix.rows for cell in row.values()}


def test_a_run_names_its_engine_and_how_it_agrees(model: Path, vllm: ModuleType) -> None:
    ours, said = run(model, "hf", "hf")
    theirs, also = run(model, "vllm", "vllm")
    assert engines_of(ours) == {"hf"}
    assert engines_of(theirs) == {"vllm 0.0.1"}
    assert theirs.status == "complete"
    assert also == [*said, "engine vllm is compared with the reference first"]
    for name, block in theirs.evals.items():
        assert block.engine["name"] == "vllm"
        assert block.engine["vllm"] == "0.0.1"
        agreement = block.engine_agreement
        assert agreement["passed"]
        assert agreement["num_items"] == 5
        assert not hasattr(ours.evals[name], "engine_agreement")
    assert theirs.provenance["packages"]["vllm"] == "0.0.1"
    assert "vllm" not in ours.provenance["packages"]
    assert theirs.comparison_key() != ours.comparison_key()
    blocks = {e: b.model_dump() | {"engine_agreement": None} for e, b in theirs.evals.items()}
    assert theirs.replace(evals=blocks).comparison_key() == theirs.comparison_key()


def test_an_engine_that_disagrees_scores_nothing(
    model: Path, vllm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "wrong", True)
    record, said = run(model, "run", "vllm", reference=("single",))
    assert "engine_disagrees" in record.flags
    assert any("hf scores the whole run" in note for note in said)
    assert engines_of(record) == {"hf"}
    assert {block.engine["name"] for block in record.evals.values()} == {"hf"}
    assert not all(block.engine_agreement["passed"] for block in record.evals.values())
    ours, _ = run(model, "hf", "hf")
    assert record.comparison_key() == ours.comparison_key()
    for row, other in zip(record.matrix.rows, ours.matrix.rows, strict=True):
        assert {e: cell.score for e, cell in row.items()} == {e: c.score for e, c in other.items()}
    assert record.references.single.keys() == {"facts"}
    (single,) = Path("runs").rglob("record.json")
    reference = Record.load(single)
    assert engines_of(reference) == {"hf"}
    assert "engine_disagrees" not in reference.flags


def test_a_run_goes_on_with_the_engine_that_it_began_with(
    model: Path, vllm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vllm, "wrong", True)
        patch.setattr("clbench.training.train", lambda *_, **__: stop())
        with pytest.raises(KeyboardInterrupt):
            run(model, "run", "vllm")
    monkeypatch.setenv("CLBENCH_CACHE", "another")  # in which the engines would agree
    record, _ = run(model, "run", "vllm")
    assert engines_of(record) == {"hf"}
    assert "engine_disagrees" in record.flags


# Who has it


def test_an_engine_that_is_not_installed_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^engine vllm is not installed; pip install .*\[vllm\]"):
        engines.check("vllm", torch.device("cpu"))
    engines.check("hf", torch.device("cpu"))
    done = CliRunner().invoke(
        main, ["run", "--stream", "math-code-if", "--strategy", "lora", "--engine", "vllm"]
    )
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "clbench[vllm]" in done.stderr
    assert not Path("runs").exists()


def test_another_device_is_refused(vllm: ModuleType) -> None:
    engines.check("vllm", torch.device("cuda"))
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=1"):
        engines.check("vllm", torch.device("cuda:1"))


def test_an_engine_that_cannot_start_is_one_sentence(
    knowing: PreTrainedModel, vllm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(**_: Any) -> None:
        raise RuntimeError("Engine core initialization failed.\nlong story")

    monkeypatch.setattr(vllm, "LLM", start)
    with pytest.raises(
        UserError, match=r"^vllm 0.0.1 cannot load the model: Engine .* failed\.; --"
    ):
        evaluator(facts_eval(), engine="vllm").evaluate(knowing)


def test_nothing_else_imports_it(knowing: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUB))
    evaluator(facts_eval(), choice_eval()).evaluate(knowing)
    (line,) = [found for found in doctor.examine() if found.topic == "vllm"]
    assert line == ("vllm", True, "0.0.1")
    assert "vllm" not in sys.modules


def test_doctor_says_that_it_is_not_there() -> None:
    (line,) = [found for found in doctor.examine() if found.topic == "vllm"]
    assert line.ok
    assert line.text.startswith("not installed")
