"""math-code-if on its real data sets, served by a local hub: every eval, and one whole run."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import lm_eval.tasks
import lm_eval.utils
import pytest
import repos_math_code_if
import repos_models
from clbench_tasks import math_answer, real_code, real_instruct, real_math, world
from evaltoys import evaluator
from hub_fixtures import HubEnv, hub_environment
from lm_eval.tasks._yaml_loader import load_yaml
from local_hub import Repo, parquet
from safetensors.torch import load, save

from clbench import api, evalkeys, evalresult, recording, registry, sandbox
from clbench.digests import digest
from clbench.errors import UserError
from clbench.evalchecks import check_code_eval, code_checks
from clbench.evaluation import Evaluator, build_task
from clbench.harness import Oracle, run_harness
from clbench.hub import Hub
from clbench.report.data import data
from clbench.results import Record
from clbench.task import Eval, Need

FACTORIES: dict[str, Callable[[], Eval]] = {
    point.name: point.load()
    for point in entry_points(group="clbench.evals")
    if point.value.partition(":")[0].removeprefix("clbench_tasks.")
    in ("real_math", "real_code", "real_instruct", "world")
    and not point.load()().diagnostic  # test_diagnostics has those
}
EXACT = "exact_match,remove_whitespace"
# version, shots, stops, new tokens, metric: lm-eval 0.4.13's, but for the last two, which are ours
PINNED: dict[str, tuple[float, int, list[str] | None, int | None, str]] = {
    "nq_open": (4, 0, ["\n", ".", ","], 256, EXACT),
    "triviaqa": (3, 0, ["\n", ".", ","], 256, EXACT),
    "webqs": (2, 0, None, None, "exact_match,none"),
    "gsm8k": (3, 5, ["Question:", "</s>", "<|im_end|>"], 256, "exact_match,flexible-extract"),
    "hendrycks_math": (1, 0, ["Problem:"], 256, "exact_match,none"),
    "hendrycks_math500": (1, 0, ["Problem:"], 256, "exact_match,none"),
    "humaneval": (
        1,
        0,
        ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
        1024,
        "pass_at_1,none",
    ),
    "mbpp": (1, 3, ["[DONE]"], 256, "pass_at_1,none"),
    "ifeval": (4, 0, [], 1280, "prompt_level_strict_acc,none"),
    "math_answer_gsm8k": (1, 0, ["### Instruction:"], 512, "math_answer,none"),
    "math_answer_math": (1, 0, ["### Instruction:"], 1024, "math_answer,none"),
}
NEEDED = {  # hyperparameters that no preset for a 7B has a value for
    "ewc": ("strength",),
    "l2": ("strength",),
    "lwf": ("strength",),
    "gpm": ("threshold",),
    "wise-ft": ("alpha",),
}
OURS = ("math_answer_gsm8k", "math_answer_math")
SCORED = [  # the columns of the stream
    "math_answer_gsm8k",
    "math_answer_math",
    "humaneval",
    "mbpp",
    "ifeval",
    "triviaqa",
    "nq_open",
    "webqs",
]


@pytest.fixture(scope="module")
def splitter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Put a sentence splitter that has learned nothing where NLTK looks for punkt_tab."""
    import nltk

    root = tmp_path_factory.mktemp("nltk")
    folder = root / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for part in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (folder / part).write_text("")
    nltk.data.path.insert(0, str(root))
    yield root
    nltk.data.path.remove(str(root))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, splitter: Path) -> Iterator[HubEnv]:
    """Serve the data sets and a Llama that soon stops."""
    repos = repos_math_code_if.repos()
    repos[f"models/{repos_models.LLAMA}"] = Repo([talkative_no_more(repos_models.llama_files())])
    with hub_environment(repos, tmp_path_factory.mktemp("hf")) as env:
        yield env


def talkative_no_more(files: Any) -> dict[str, bytes]:
    """Return a model's files with the end of a text made likely at about every third token."""
    changed = dict(files)
    for name in files:
        if name.endswith(".safetensors"):
            state = load(files[name])
            if "lm_head.weight" in state:
                state["lm_head.weight"][repos_models.SPECIAL["</s>"]] *= 12
                changed[name] = save(state, {"format": "pt"})
    return changed


@pytest.fixture(scope="module")
def scorer(served: HubEnv) -> Evaluator:
    """Return an evaluator of every eval, those that the stream leaves out too."""
    return evaluator(*(make() for make in FACTORIES.values()), rank_items=4)


# What is pinned


def test_every_eval_is_asked_and_read_as_pinned(scorer: Evaluator) -> None:
    assert set(scorer.evals) == set(PINNED)
    found = {}
    for name, spec in scorer.evals.items():
        plan = scorer.plan(name)
        shots = plan.task.config.num_fewshot
        found[name] = (spec.version, shots, plan.stops, plan.new_tokens, spec.metric)
        assert spec.shots == shots
    assert found == PINNED


@pytest.mark.parametrize("name", [name for name in PINNED if name not in OURS])
def test_the_pins_are_those_of_lm_eval(name: str) -> None:
    """Read its files without the functions that they name: importing the code tasks runs code."""
    places = {
        "hendrycks_math": "hendrycks_math/hendrycks_math_algebra",
        "hendrycks_math500": "hendrycks_math/hendrycks_math500",
        "triviaqa": "triviaqa/default",
    }
    path = f"{places.get(name, f'{name}/{name}')}.yaml"
    theirs = load_yaml(Path(lm_eval.tasks.__file__).parent / path, resolve_func=False)
    version, shots, stops, new_tokens, _ = PINNED[name]
    assert theirs["metadata"]["version"] == version
    assert theirs.get("num_fewshot", 0) == shots
    settings = theirs.get("generation_kwargs")
    assert (None if settings is None else settings["until"]) == stops
    if settings is not None:
        assert settings.get("max_gen_toks", 256) == new_tokens
    (spec,) = (each for each in (make() for make in FACTORIES.values()) if each.id == name)
    if isinstance(spec.config, str):
        assert set(spec.data) <= {
            theirs.get(f"{s}_split") for s in ("training", "validation", "test")
        }


def test_mbpp_asks_what_lm_eval_asks(served: HubEnv) -> None:
    """Its three examples stand in the split "prompt" and, copied, in lm-eval's own code."""
    root = Path(lm_eval.tasks.__file__).parent / "mbpp"
    source = ast.parse((root / "utils.py").read_text())
    (listed,) = (n for n in source.body if getattr(n, "name", "") == "list_fewshot_samples")
    examples: list[dict[str, Any]] = ast.literal_eval(listed.body[0].value)  # type: ignore[attr-defined]
    tests = repos_math_code_if.mbpp(range(11, 14))
    fields = dict(load_yaml(root / "mbpp.yaml", resolve_func=False))
    theirs = Eval(
        id="theirs",
        version=1,
        config={
            **{k: v for k, v in fields.items() if k not in ("task", "metadata", "unsafe_code")},
            "docs": lambda: [dict(row) for row in tests],
            "fewshot_config": {"sampler": "first_n", "samples": examples},
            "metric_list": [{"metric": "bypass"}],
        },
        metric="bypass,none",
    )
    shown = [
        {**row, **next((e for e in examples if e["task_id"] == row["task_id"]), {})}
        for row in repos_math_code_if.mbpp(range(1, 11))
    ]
    for row in shown:
        row.pop("is_fewshot", None)
    files = {
        "full/prompt-00000-of-00001.parquet": parquet(shown),
        "full/test-00000-of-00001.parquet": parquet(tests),
    }
    served.hub.repos["datasets/own/mbpp"] = Repo([files])
    data = {k: dataclasses.replace(d, id="own/mbpp") for k, d in real_code.MBPP.items()}
    ours = dataclasses.replace(real_code.mbpp(), data=data)
    both = evaluator(theirs, ours)
    assert both.plan("mbpp").prompts == both.plan("theirs").prompts
    assert both.plan("mbpp").prompts[0].count("[DONE]") == 3


def test_another_version_of_lm_evals_task_is_refused(served: HubEnv) -> None:
    old = dataclasses.replace(world.webqs(), version=1)
    with pytest.raises(UserError, match=r"pinned to version 1 of 'webqs'.*has version 2\.0"):
        build_task(old, Hub())


def test_a_metric_that_lm_eval_does_not_print_is_refused(served: HubEnv) -> None:
    for changes in ({"metric": "exact_match,strict"}, {"other_metrics": ("acc,none",)}):
        wrong = evaluator(dataclasses.replace(world.webqs(), **changes))
        with pytest.raises(UserError, match=r"eval webqs .*choices: exact_match,none"):
            wrong.describe()


def test_examples_are_never_drawn_from_what_is_scored(served: HubEnv) -> None:
    alone = dataclasses.replace(real_math.gsm8k(), data={"test": real_math.GSM8K["test"]})
    with pytest.raises(UserError, match="gsm8k shows 5 examples"):
        build_task(alone, Hub())
    prompts = evaluator(real_math.gsm8k()).plan("gsm8k").prompts
    assert all(prompt.count("#### 2") == 5 for prompt in prompts)  # of boxes of 100 and more
    assert not any("#### 2,0" in prompt for prompt in prompts)


def test_what_is_missing_is_said_with_the_command_that_gets_it() -> None:
    need = Need("the moon", "pip install moon", lambda: False)
    with pytest.raises(UserError, match="ifeval needs the moon; get it with: pip install moon"):
        evalkeys.check_needs(dataclasses.replace(real_instruct.ifeval(), needs=(need,)))
    evalkeys.check_needs(dataclasses.replace(real_instruct.ifeval(), needs=()))


def test_ifeval_says_that_the_sentence_splitter_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(UserError, match=r"needs the sentence splitter .*nltk\.downloader"):
        evalkeys.check_needs(real_instruct.ifeval())


# What is asked


def test_sizes(scorer: Evaluator) -> None:
    sizes = {name: len(scorer.plan(name).ids) for name in scorer.evals}
    assert sizes == {
        "gsm8k": 8,
        "hendrycks_math": 14,  # seven configurations
        "hendrycks_math500": 7,
        "math_answer_gsm8k": 8,
        "math_answer_math": 14,
        "humaneval": 2,
        "mbpp": 3,
        "ifeval": 5,
        "triviaqa": 21,
        "nq_open": 21,
        "webqs": 20,
    }


def test_ceilings(scorer: Evaluator) -> None:
    found = {name: scorer.ceiling(name) for name in scorer.evals}
    assert found.pop("ifeval") is None  # it has no gold
    assert found == dict.fromkeys(found, 1.0)


def test_a_template_is_compiled_once(scorer: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, environment = scorer.plan("gsm8k"), lm_eval.utils.env
    usual, seen = environment.compile, list[str]()

    def compile_(source: str, *rest: Any) -> Any:
        seen.append(source)
        return usual(source, *rest)

    monkeypatch.setattr(environment, "compile", compile_)
    found = environment.from_string
    run_harness(Oracle(plan.task), plan)
    assert seen
    assert len(seen) == len(set(seen))
    assert environment.from_string == found


def test_a_question_of_two_parts_of_triviaqa_is_one_unit(scorer: Evaluator) -> None:
    plan = scorer.plan("triviaqa")
    clusters = [item["cluster"] for item in plan.blank]
    assert clusters[0] == clusters[-1] == "tc_0"
    assert len(set(clusters)) == 20
    assert plan.aliases["0"] == ["Vienna", "Vienna City"]  # the usual name first
    assert plan.prompts[0].endswith("Which city is the capital of Austria?\nAnswer:")


def test_golds_of_open_answers_are_lists(scorer: Evaluator) -> None:
    assert scorer.plan("nq_open").aliases["0"] == ["the O'Haras"]
    assert scorer.plan("nq_open").aliases["1"] == ["Vienna", "Vienna city"]
    assert scorer.plan("webqs").aliases["0"] == ["Vienna"]  # the longer one begins with it
    assert len(scorer.plan("nq_open").candidates) == 4


def test_the_leak_check_looks_for_questions_alone(scorer: Evaluator) -> None:
    probes = scorer.probes()
    assert probes["hendrycks_math"]["0"].question == "Solve $2x = 6$ for $x$."
    assert probes["math_answer_math"]["0"].question == "Solve $2x = 6$ for $x$."
    assert probes["mbpp"]["11"].question == "Write a function to multiply a number by 11."
    assert probes["ifeval"]["0"].golds == ()


# Math


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}, as \boxed{3} is not.", "3"),
        (r"thus \boxed{\frac{a}{b}}. The answer is: 7", r"\frac{a}{b}"),
        (r"$\boxed 7$ apples", "7"),
        (r"\boxed{1} and then \boxed{2", "1"),
        ("#### 5\nThe answer is: 72", "72"),
        ("The answer is 8. No: the answer is $9$.\n\nNext", "9"),
        ("12 + 3\n#### 1,024\n", "1,024"),
        ("First 3, then $14.50.", "14.50"),
        ("5-3 makes -2", "-2"),
        ("no idea", None),
        ("", None),
    ],
)
def test_the_final_answer_is_found(response: str, answer: str | None) -> None:
    assert math_answer.extract(response) == answer


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("1,024", "1024", True),
        ("1024", r"1,\!024", True),
        ("$11,111,100", r"\$11,\! 111,\! 100", True),
        (r"90{,}900", "90,900", True),
        (r"\frac{2}{1025}", r"\frac{2}{1,\!025}", True),
        ("72.00", "72", True),
        ("$18", "18", True),
        ("0.25", "1/4", True),
        ("40%", "40", True),
        ("1,2", "12", False),  # two numbers
        ("72 apples", "72", False),
        (r"\dfrac{1}{2}", r"\frac12", True),
        (r"x=5", "5", True),
        (r"\left(1, 2\right)", "(1,2)", True),
        ("3", "4", False),
        ("1/0", "1", False),
    ],
)
def test_answers_compare_as_numbers_else_as_math(answer: str, gold: str, same: bool) -> None:
    assert math_answer.is_same(answer, gold) is same


# Code


def test_reference_programs_pass_and_emptied_ones_fail(scorer: Evaluator) -> None:
    isolation = sandbox.find_isolation("none")
    assert isolation is not None
    for name in ("humaneval", "mbpp"):
        assert check_code_eval(scorer.plan(name), isolation).passed
    setup = scorer.plan("mbpp").docs[1]["suffix"]  # uses what the completion defines
    assert setup.startswith("\nmade = times_12(5)\nassert made")


def test_a_slow_right_program_has_its_time() -> None:
    """The reference of MBPP 123 takes as long as other programs may."""
    row = repos_math_code_if.mbpp(range(123, 125))
    slow, usual = (real_code.function_to_write(record) for record in row)
    assert slow is not None
    assert usual is not None
    limits = evalresult.job(slow, "").limits
    assert (limits.cpu_seconds, limits.wall_seconds) == (30, 60)
    assert evalresult.job(usual, "").limits == sandbox.Limits()


def test_an_item_that_tells_nothing_is_named(served: HubEnv) -> None:
    """Its reference fails, or nothing at all passes."""
    rows = repos_math_code_if.mbpp(range(11, 14))
    rows[0]["code"] = "def times_11(x):\r\n  return x"
    rows[2]["test_list"] = ["assert times_13(1) != 0"]
    prompt = repos_math_code_if.mbpp(range(1, 11))
    served.hub.repos["datasets/own/broken"] = Repo(
        [
            {
                "full/prompt-00000-of-00001.parquet": parquet(prompt),
                "full/test-00000-of-00001.parquet": parquet(rows),
            }
        ]
    )
    data = {k: dataclasses.replace(d, id="own/broken") for k, d in real_code.MBPP.items()}
    broken = dataclasses.replace(real_code.mbpp(), data=data)
    isolation = sandbox.find_isolation("none")
    found = code_checks(evaluator(broken, isolation=isolation))
    assert found == {
        "mbpp": {"num_items": 3, "failing_references": ["11"], "passing_empties": ["13"]}
    }
    assert code_checks(evaluator(broken)) == {}  # nothing runs without isolation


def test_a_function_without_a_body_keeps_its_name() -> None:
    code = "import re\r\ndef f(x):\r\n  def g():\r\n    return 1\r\n  return re.sub('\\d', '', x)"
    assert real_code.without_bodies(code) == "import re\n\ndef f(x):\n    pass"


# Instructions


class Writes(Oracle):
    """Answers the n-th document with the n-th text."""

    def __init__(self, task: Any, texts: Sequence[str]) -> None:
        super().__init__(task)
        self.texts = {1000 + at: text for at, text in enumerate(texts)}

    def reference(self, doc: Any) -> str:
        return self.texts[doc["key"]]


GOOD = (
    "The sea is wide and blue.",
    "the rain falls softly on the roof of the house while we sit inside and drink tea.",
    "There was a fox. It ran away. Nobody saw it. The end.",
    "PARIS and LONDON.",
    "Well done!! Hurray!",
)


def follow(scorer: Evaluator, texts: Sequence[str]) -> tuple[dict[str, float], list[Any]]:
    plan = scorer.plan("ifeval")
    run = run_harness(Writes(plan.task, texts), plan)
    return run["results"]["ifeval"], run["samples"]["ifeval"]


def test_ifeval_scores_strictly_and_loosely(scorer: Evaluator) -> None:
    spec = scorer.evals["ifeval"]
    keys = (spec.metric, *spec.other_metrics)
    good, _ = follow(scorer, GOOD)
    assert [good[key] for key in keys] == [1.0] * 4
    wrapped, samples = follow(scorer, [f"Sure, HERE:\n{text}" for text in GOOD])
    assert [wrapped[key] for key in keys] == [3 / 5, 1.0, 4 / 6, 1.0]
    for sample in samples:
        assert sample["prompt_level_loose_acc"] >= sample["prompt_level_strict_acc"]
    silent, _ = follow(scorer, [""] * len(GOOD))
    assert [silent[key] for key in keys] == [0.0] * 4


def test_the_language_of_a_response_is_not_a_matter_of_luck(scorer: Evaluator) -> None:
    """Of a text between two languages langdetect says now this, now that, unless it is seeded."""
    unclear = [GOOD[0], "the hotel de la", *GOOD[2:]]
    outcomes = {follow(scorer, unclear)[0]["inst_level_strict_acc,none"] for _ in range(20)}
    assert len(outcomes) == 1


def test_what_is_no_letter_is_counted_too(scorer: Evaluator) -> None:
    """lm-eval's counter of letters would draw one in its place and find it or not."""
    spec = scorer.evals["ifeval"]
    quiet, loud = [*GOOD[:-1], "Well done. " * 30], [*GOOD[:-1], "!!!"]
    for _ in range(10):
        assert follow(scorer, quiet)[0][spec.metric] == 4 / 5
        assert follow(scorer, loud)[0][spec.metric] == 1.0
    record = repos_math_code_if.ifeval()[2]
    assert real_instruct.countable(record) == record


# Training and calibration text


def test_rows_are_in_the_published_templates(served: HubEnv) -> None:
    hub = Hub()
    metamath = hub.rows(real_math.METAMATH)
    assert metamath[0].prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nMia had 3 apples and found 2 more. How many "
        "are there now?\n\n### Response: Let's think step by step."
    )
    assert metamath[0].answer.endswith("The answer is: 5")
    assert metamath[0].request.startswith("Mia had 3 apples")
    wizardlm = hub.rows(real_instruct.WIZARDLM)
    assert len(wizardlm) == 23  # one begins with the wrong speaker
    assert wizardlm[0].answer == "Vienna and 0."
    for source in (real_code.CODEFEEDBACK, real_code.MAGICODER):
        row = hub.rows(source)[1]
        assert row.prompt.endswith(f"### Instruction:\n{row.request}\n\n### Response:")
        assert row.answer.startswith("```python\ndef add_1(x):")
    sources = (real_math.METAMATH, real_code.CODEFEEDBACK, real_code.MAGICODER)
    assert {source.limit for source in sources} == {100_000}


def test_calibration_reads_questions_alone(served: HubEnv) -> None:
    texts = [row.prompt + row.answer for row in Hub().rows(world.nq_open_train())]
    assert texts[1] == "what is the capital city of austria"
    assert not any("Vienna" in text for text in texts)


# Presets


PAPER = registry.preset("paper")["sources"]


@pytest.mark.parametrize(
    ("source", "strategy"), [(s, name) for s, t in PAPER.items() for name in t["strategies"]]
)
def test_every_row_of_the_paper_preset_resolves(source: str, strategy: str) -> None:
    config = api.resolve("math-code-if", strategy, model="x/y", preset=f"paper:{source}")
    registry.build_strategy(strategy, config.params)
    assert config.preset == f"paper:{source}"
    stated = {k: v for k, v in PAPER[source]["strategies"][strategy].items() if k != "lr"}
    assert stated.items() <= config.params[strategy].items()
    assert config.train.lr == PAPER[source]["strategies"][strategy].get(
        "lr", PAPER[source]["train"].get("lr")
    )


def test_the_paper_preset_has_every_source_that_a_stream_names() -> None:
    streams = [registry.stream(entry.name) for entry in registry.listing(registry.STREAMS)]
    named = {stream.source for stream in streams if stream.source is not None}
    assert "lora-null" in named
    assert named <= set(PAPER)


def test_paper_means_the_streams_own_source() -> None:
    config = api.resolve("math-code-if", "lora-null", model="x/y", preset="paper")
    assert config.preset == "paper:lora-null"
    assert (config.train.lr, config.train.batch_size, config.train.epochs) == (2e-5, 128, 1.0)
    assert config.params == {"lora-null": {"rank": 128, "alpha": 128}}
    assert registry.preset_name("tiny", None) == "tiny"
    with pytest.raises(UserError, match=r"write paper:SOURCE; choices: corda, .*trace"):
        registry.preset_name("paper", None)
    with pytest.raises(UserError, match=r"source of preset paper 'trac'; did you mean trace"):
        api.resolve("math-code-if", "lora", model="x/y", preset="paper:trac")


@pytest.mark.parametrize(
    "strategy", [entry.name for entry in registry.listing("clbench.strategies")]
)
def test_quick_resolves_with_every_strategy(strategy: str) -> None:
    needed = [f"{strategy}.{field}=0.5" for field in NEEDED.get(strategy, ())]
    config = api.resolve("math-code-if", strategy, model="x/y", preset="quick", settings=needed)
    registry.build_strategy(strategy, config.params)
    assert config.train.tokens == 400_000
    assert config.eval.samples == 64


# The whole run


def test_the_stream_runs_end_to_end_on_a_llama_of_the_hub(served: HubEnv, tmp_path: Path) -> None:
    record = api.run(
        "math-code-if",
        "lora-null",
        model=repos_models.LLAMA,
        isolation="none",
        out=tmp_path / "run",
        settings={
            "train.steps": 2,
            "train.batch_size": 2,
            "train.max_length": 256,
            "train.lr": 1e-3,
            "lora-null.rank": 4,
            "calibration.num_windows": 6,
            "calibration.window": 64,
            "eval.samples": 2,
            "eval.rank_items": 1,
        },
    )
    assert record.status == "complete"
    assert list(record.matrix.evals) == SCORED
    assert len(record.matrix.rows) == 4
    for row in record.matrix.rows:
        assert set(row) == set(SCORED)
        assert all(cell.score is not None for cell in row.values())
    assert record.evals["humaneval"].code_check["failing_references"] == []
    assert "code_check" not in record.flags
    block = record.evals["humaneval"].model_copy(
        update={"code_check": {"failing_references": ["HumanEval/1"], "passing_empties": []}}
    )
    broken = record.replace(evals={**record.evals, "humaneval": block})
    assert "code_check" in recording.flags(broken)
    assert record.data["leak"]["same_source"] == [["calibration", "nq_open"]]
    assert {"limited", "same_source", "unisolated"} <= set(record.flags)
    assert record.data["tasks"]["metamath"]["license"] == "MIT"
    assert record.evals["ifeval"].ceiling is None
    check_the_templates_that_are_shown(record)


def check_the_templates_that_are_shown(record: Record) -> None:
    lines = {line.partition(":")[0]: line for line in data(record).splitlines() if ": " in line}
    lm_eval = f"lm-eval {version('lm-eval')}"
    for start in (
        "eval humaneval: clbench's, version 1, zero-shot, prompt \"def ",
        f"eval ifeval: {lm_eval}'s ifeval, version 4, zero-shot, prompt ",
        "eval mbpp: clbench's, version 1, 3-shot, prompt \"You are an expert Python programmer",
        f"eval webqs: {lm_eval}'s webqs, version 2, zero-shot, template \"Question: {{{{question",
        "eval math_answer_math: clbench's, version 1, zero-shot, prompt \"Below is an instruction",
        'train wizardlm: its first row has prompt "Below is an instruction',
    ):
        assert lines[start.partition(":")[0]].startswith(start)
    for name in SCORED:
        shown = json.loads(lines[f"eval {name}"].partition("prompt ")[2])
        kept = record.evals[name].asked_as["prompt"]
        assert kept["digest"] == digest(kept["text"])
        assert shown.partition(" [...] ")[0] == kept["text"][:200] or shown == kept["text"]
