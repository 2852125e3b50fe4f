"""The command line in process: what it hands on, what it prints, how it ends."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import clbench
from clbench import api, experiment, registry
from clbench.cli import main
from clbench.config import RunConfig
from clbench.errors import RunFailed, UserError
from clbench.matrix import Cell, ScoreMatrix
from clbench.report import text
from clbench.results import Record

RUN = ["run", "--stream", "math-code-if", "--strategy", "lora-null"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def refusal(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr.strip()


@pytest.fixture
def record() -> Record:
    matrix = ScoreMatrix(("math",), {"math": ("m",)}, (), ({"m": Cell(0.25)}, {"m": Cell(0.5)}))
    return Record.model_validate(
        {
            "identity": {"run_id": "r", "suite_version": "0.1.0"},
            "config": {"stream": "math-code-if", "strategy": "lora-null"},
            "model": {"id": "tiny", "dtype": "float32"},
            "matrix": matrix,
            "status": "complete",
        }
    )


@pytest.fixture
def calls(record: Record, monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, Any]]:
    """Replace the experiment by one that remembers what it was asked."""
    seen: list[tuple[RunConfig, Any]] = []

    def run(config: RunConfig, **options: Any) -> Record:
        seen.append((config, options))
        options["progress"].phase("train math", 1)
        options["progress"].done()
        return record

    monkeypatch.setattr(experiment, "run", run)
    return seen


def test_the_version_is_the_package():
    assert invoke("--version").stdout == f"clbench, version {clbench.__version__}\n"


def test_help_names_every_verb():
    text = invoke("--help").stdout
    assert {"run", "list", "show", "compare", "export", "doctor", "check", "new"} <= {
        line.split()[0] for line in text.splitlines() if line.startswith("  ")
    }


def test_run_hands_on_what_was_asked(calls: list[tuple[RunConfig, Any]], tmp_path: Path):
    options = "--seed 3 --order 2,0,1 --eval full --engine vllm --device cpu --threads 2"
    options += " --dtype float32"
    more = f"--set rank=4 --set train.steps=7 --reference base --out {tmp_path} --fresh"
    result = invoke(*RUN, *options.split(), *more.split())
    assert result.exit_code == 0, result.output
    ((config, given),) = calls
    assert (config.stream, config.strategy, config.seed) == ("math-code-if", "lora-null", 3)
    assert config.params["lora-null"]["rank"] == 4
    assert (config.train.steps, config.train.epochs) == (7, None)
    assert config.order == (2, 0, 1)
    assert (config.eval.size, config.eval.engine) == ("full", "vllm")
    assert (config.device, config.dtype, config.threads) == ("cpu", "float32", 2)
    assert config.reference == ("base",)
    assert (given["out"], given["fresh"]) == (tmp_path, True)


def test_tiny_brings_its_data_and_preset(calls: list[tuple[RunConfig, Any]]):
    invoke(*RUN)
    config = calls[0][0]
    assert (config.model, config.data, config.preset) == ("tiny", "tiny", "tiny")
    assert config.train.steps is not None


def test_python_resolves_as_the_command_line_does(calls: list[tuple[RunConfig, Any]]):
    invoke(*RUN, "--seed", "1", "--set", "rank=4")
    resolved = api.resolve("math-code-if", "lora-null", seed=1, settings={"rank": 4})
    assert calls[0][0] == resolved


def test_a_file_names_what_the_command_line_does_not(
    calls: list[tuple[RunConfig, Any]], tmp_path: Path
):
    path = tmp_path / "run.toml"
    path.write_text("stream = 'math-code-if'\nstrategy = 'lora'\nseed = 5\n[train]\nsteps = 9\n")
    assert invoke("run", "--config", str(path), "--seed", "6").exit_code == 0
    config = calls[0][0]
    assert (config.strategy, config.seed, config.train.steps) == ("lora", 6, 9)


def test_the_result_goes_to_stdout_and_progress_to_stderr(calls: list[tuple[RunConfig, Any]]):
    result = invoke(*RUN)
    assert "after math" in result.stdout
    assert "50.0" in result.stdout
    assert "train math" not in result.stdout
    assert "train math" in result.stderr
    assert str(calls[0][0].directory()) in result.stdout


def test_what_to_type_next_is_the_same_run_but_for_the_seed(
    calls: list[tuple[RunConfig, Any]], record: Record, tmp_path: Path
):
    limits = "--seed 2 --tasks math,if --order 1,0 --train-limit 9 --eval-limit 4"
    typed = [*RUN, *limits.split()]
    typed += ["--set", "rank=4", "--set", "train.steps=7", "--locked", "--chat-template"]
    typed += ["--isolation", "none", "--out", str(tmp_path)]
    invoke(*typed)
    asked = {"seed": 2, "run": calls[0][0].identity()}
    config = record.config.model_dump(mode="json") | asked
    provenance = {"command": ["/usr/bin/clbench", *typed]}
    shown = text.result(record.replace(config=config, provenance=provenance), tmp_path)
    seed, strategy, _ = (line.strip() for line in shown.partition("next:")[2].splitlines()[1:])
    invoke(*shlex.split(seed.partition("  #")[0])[1:])
    assert calls[1][0] == calls[0][0].model_copy(update={"seed": 3})
    invoke(*shlex.split(strategy.partition("  #")[0].replace("NAME", "ewc"))[1:])
    same = {"seed", "tasks", "order", "train_limit", "locked", "chat_template", "isolation"}
    assert calls[2][0].model_dump(include=same) == calls[0][0].model_dump(include=same)
    assert (calls[2][0].strategy, calls[2][0].train.steps) == ("ewc", 7)


def test_quiet_shows_the_result_only(calls: list[tuple[RunConfig, Any]]):
    result = invoke(*RUN, "--quiet")
    assert result.stderr == ""
    assert "after math" in result.stdout


def test_json_is_the_record(calls: list[tuple[RunConfig, Any]], record: Record):
    result = invoke(*RUN, "--json")
    assert json.loads(result.stdout) == record.to_json()
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["run"], ["no stream is given", "math-code-if"]),
        (["run", "--stream", "math-code-if"], ["no strategy is given", "lora-null"]),
        (["run", "--stream", "math-cod-if"], ["no strategy is given"]),
        ([*RUN, "--stream", "math-cod-if"], ["'math-cod-if'", "did you mean math-code-if?"]),
        ([*RUN, "--strategy", "lora-nul"], ["'lora-nul'", "did you mean lora-null?"]),
        ([*RUN, "--strategy", "./none.py:X"], ["there is no file"]),
        ([*RUN, "--data", "tinny"], ["'tinny'", "tiny"]),
        ([*RUN, "--preset", "tinny"], ["'tinny'", "did you mean tiny?"]),
        ([*RUN, "--set", "rnak=4"], ["'rnak'", "lora-null.rank"]),
        ([*RUN, "--set", "rank"], ["'rank' is not part.field=value"]),
        ([*RUN, "--set", "train.lr=fast"], ["train.lr", "'fast'"]),
        ([*RUN, "--set", "rank=0"], ["rank", "0", "positive integer"]),
        ([*RUN, "--set", "rank=many"], ["rank", "'many'", "integer"]),
        ([*RUN, "--order", "a,b"], ["'a,b'"]),
        ([*RUN, "--order", "0,0,1"], ["[0, 0, 1]", "permutation"]),
        ([*RUN, "--config", "none.toml"], ["'none.toml'"]),
        ([*RUN, "--device", "gpu"], ["'gpu'", "choices"]),
        ([*RUN, "--isolation", "hope"], ["'hope'", "'none'"]),
        ([*RUN, "--dtype", "int8"], ["'int8'", "'bfloat16'"]),
        (["show", "nowhere"], ["nowhere"]),
        (["compare", "nowhere", "neither"], ["nowhere"]),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    sentence = refusal(*arguments)
    assert sentence.startswith("clbench: ")
    assert "\n" not in sentence
    for name in names:
        assert name in sentence
    assert not list(tmp_path.iterdir())  # nothing was written


def test_a_model_directory_without_a_model_is_refused(tmp_path: Path):
    model = tmp_path / "empty"
    model.mkdir()
    run = [*RUN, "--model", str(model), "--data", "tiny", "--out", str(tmp_path / "out")]
    assert str(model) in refusal(*run)
    assert not (tmp_path / "out" / "record.json").exists()


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (UserError("a bad value"), 2, "clbench: a bad value\n"),
        (RunFailed("the loss was NaN"), 3, "clbench: the loss was NaN\n"),
        (KeyboardInterrupt(), 130, "clbench: interrupted; the same command takes it up again\n"),
    ],
)
def test_errors_have_exit_codes(error, code: int, shown: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(experiment, "run", fail)
    result = invoke(*RUN)
    assert (result.exit_code, result.stderr, result.stdout) == (code, shown, "")


def test_our_own_mistakes_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(experiment, "run", fail)
    assert isinstance(invoke(*RUN).exception, KeyError)


@pytest.mark.parametrize("arguments", [["--debug", *RUN], [*RUN, "--debug"]])
def test_debug_shows_the_traceback(arguments: list[str], monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise UserError("a bad value")

    monkeypatch.setattr(experiment, "run", fail)
    assert isinstance(invoke(*arguments).exception, UserError)


def test_list_names_the_package():
    lines = [line.split() for line in invoke("list").stdout.splitlines()]
    assert ["lora-null", "clbench", clbench.__version__] in lines
    assert ["math-code-if", "clbench", clbench.__version__] in lines
    assert ["tiny", "clbench", clbench.__version__] in lines


def test_list_names_cached_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--org--some-model").mkdir()
    models = json.loads(invoke("list", "--json").stdout)["models"]
    assert "org/some-model" in [model["name"] for model in models]


def test_show_prints_a_record_again(record: Record, tmp_path: Path):
    path = record.save(tmp_path)
    for place in (tmp_path, path):
        assert "after math" in invoke("show", str(place)).stdout
    assert json.loads(invoke("show", "--json", str(path)).stdout) == record.to_json()


@pytest.mark.parametrize(
    ("content", "says"), [("{", "not strict JSON"), ('{"format": "other"}', "no clbench record")]
)
def test_corrupt_and_foreign_records_are_refused(content: str, says: str, tmp_path: Path):
    (tmp_path / "record.json").write_text(content)
    assert says in refusal("show", str(tmp_path))


def test_doctor_reports_every_topic():
    result = invoke("doctor", "--json")
    assert result.exit_code == 0
    topics = {row["topic"] for row in json.loads(result.stdout)}
    assert {"isolation", "device", "threads", "memory", "disk", "cache", "torch"} <= topics
    assert "isolation" in invoke("doctor").stdout


def test_a_stream_is_made_smaller_by_options(calls: list[tuple[RunConfig, Any]]):
    options = "--tasks math,code --train-limit 20 --eval-limit 30 --order 1,0,2"
    result = invoke(*RUN, *options.split())
    assert result.exit_code == 0, result.output
    config = calls[0][0]
    assert (config.tasks, config.train_limit, config.order) == (("math", "code"), 20, (1, 0, 2))
    assert config.eval.samples == 30
    same = api.resolve(
        "math-code-if",
        "lora-null",
        tasks=("math", "code"),
        train_limit=20,
        eval_limit=30,
        order=(1, 0, 2),
    )
    assert config == same


def test_list_shows_the_kinds_that_are_asked_for():
    assert list(json.loads(invoke("list", "--json").stdout)) == [
        "strategies",
        "streams",
        "models",
        "presets",
    ]
    found = json.loads(invoke("list", "--presets", "--tasks", "--json").stdout)
    assert list(found) == ["presets", "tasks"]
    assert "tiny-math" in [entry["name"] for entry in found["tasks"]]
    assert "lora" not in invoke("list", "--sources").stdout


def test_list_shows_what_a_stream_holds():
    text = invoke("list", "--streams", "-v").stdout
    assert "    math by answer, then code by execution" in text
    ours = r"Apache-2\.0; generated in this repository"
    assert re.search(rf"\n    math +tiny_math +2,000 +{ours} +tiny_math\n", text)
    assert re.search(rf"\n    tiny_facts +world +items of its own +200 of 500 +{ours}\n", text)
    for line in (
        r"math_answer_math +metamath +EleutherAI/hendrycks_math \(7 parts\) +5,000 +MIT",
        r"nq_open +world +google-research-datasets/nq_open \(.*\) +3,610 +CC BY-SA 3\.0",
        r"triviaqa +world +mandarjoshi/trivia_qa \(.*\) +17,944 +not stated",
        r"mrpc +mrpc +nyu-mll/glue \(mrpc, validation\) +408 +other",
        r"cb +cb +aps/super_glue \(cb, validation\) +56 +not stated",
        r"qqp +qqp +nyu-mll/glue \(qqp, validation\) +2,000 of 40,430 +other",
        r"ag-news +ag-news +fancyzhx/ag_news \(test\) +at most 2,000 +not stated",
        r"py150 +py150 +Py150 \(test\) +size not stated +not stated",
        r"cb +aps/super_glue \(cb, train\) +at most 1,000 +not stated +cb",
    ):
        assert re.search(rf"\n    {line}\n", text), line
    assert re.search(r"\n    calibration: google-research-.*, license CC BY-SA 3\.0\n", text)
    assert "    calibration: tiny_facts/statements\n    preset: tiny" in text
    assert "    ours: " in text
    streams = {s["name"]: s for s in json.loads(invoke("list", "-v", "--json").stdout)["streams"]}
    tiny = streams["math-code-if"]["editions"]["tiny"]
    assert [task["name"] for task in tiny["tasks"]] == ["math", "code", "if"]
    assert tiny["tasks"][0]["evals"][0]["metric"] == "exact_match,flexible-extract"


def test_list_names_data_sets_and_what_cannot_be_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        [[editions.full.tasks]]
        name = "qa"
        hub = "owner/qa"
        config = "main"
        license = "MIT"
        train_limit = 9
        prompt = "{q}"
        answer = "{a}"
        eval = {split = "test", score = "exact_match"}
        [editions.broken]
        tasks = ["none-such"]
        """
    )
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda g, n: path if n == "math-code-if" else load(g, n))
    text = invoke("list", "--streams", "-v").stdout
    assert re.search(r"\n    qa +owner/qa \(main, train\) +at most 9 +MIT +qa\n", text)
    assert re.search(r"\n    qa +qa +owner/qa \(main, test\) +size not stated +MIT\n", text)
    assert "mine.toml: unknown task 'none-such'; choices: " in text
    assert "--data broken" in text
    assert "four tasks of multiple choice" in text  # another stream
