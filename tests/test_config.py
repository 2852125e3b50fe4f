"""Layers of a configuration, and one sentence for everything that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from clbench.config import (
    CalibrationConfig,
    RunConfig,
    TrainConfig,
    parse_setting,
    read_toml,
    resolve,
)
from clbench.errors import UserError

PARTS = {"lora": {"rank": False, "alpha": True}, "ewc": {"strength": False}}
PRESET = {
    "fallback": "lora",
    "train": {"steps": 100, "batch_size": 8},
    "calibration": {"window": 128},
    "strategies": {
        "lora": {"lr": 1e-3, "rank": 8, "trials": 5},
        "ewc": {"strength": 3.0},
        "mine": {"lr": 5e-4},
    },
    "joint_run": {"lr": 4e-3, "trials": 3},
}
RUN = {"stream": "s", "strategy": "lora+ewc"}


def resolved(*settings: str, parts=PARTS, preset=PRESET, file=None, **run) -> RunConfig:
    chosen = [parse_setting(text) for text in settings]
    return resolve({**RUN, **run}, parts, preset=preset, file=file, settings=chosen)


def refusal(*settings: str, **layers) -> str:
    with pytest.raises(UserError) as caught:
        resolved(*settings, **layers)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_layer_replaces_single_fields_of_the_one_below():
    file = {"seed": 3, "train": {"batch_size": 4}, "strategies": {"lora": {"rank": 2}}}
    config = resolved("train.lr=0.5", file=file)
    assert config.train.lr == 0.5  # command line
    assert config.train.batch_size == 4  # file
    assert config.seed == 3
    assert config.params == {"lora": {"rank": 2}, "ewc": {"strength": 3.0}}
    assert config.train.steps == 100  # preset
    assert config.train.clip == TrainConfig().clip  # default


def test_options_by_name_outrank_the_file():
    assert resolved(file={"seed": 3}, seed=4).seed == 4


def test_the_rate_is_that_of_the_first_part_which_has_one():
    assert resolved().train.lr == 1e-3
    assert resolved(parts={"ewc": {"strength": False}, "mine": {}}).train.lr == 5e-4


def test_a_part_unknown_to_the_preset_takes_what_the_fallback_has():
    config = resolved(parts={"plugin": {"rank": False, "decay": False}}, strategy="plugin")
    assert config.params == {"plugin": {"rank": 8}}
    assert config.train.lr == 1e-3
    assert config.trials == 1  # the trials were for lora


def test_trials_belong_to_the_rate_that_they_chose():
    assert resolved().trials == 5
    assert resolved("train.lr=0.5").trials == 1
    assert resolved("train.lr=0.5", "trials=7").trials == 7
    assert resolved("train.steps=7").trials == 5


def test_a_joint_run_has_a_rate_of_its_own():
    joint = resolved(joint=True)
    assert (joint.train.lr, joint.trials) == (4e-3, 3)
    assert resolved("train.lr=0.5", joint=True).train.lr == 0.5
    assert "unknown field of joint_run in the preset 'rank'" in refusal(
        preset={"joint_run": {"rank": 1}}
    )


def test_a_file_does_not_lend_one_part_the_fields_of_another():
    file = {"strategies": {"lora": {"rank": 2}}}
    config = resolved(parts={"plugin": {"rank": False}}, preset=None, file=file)
    assert config.params == {"plugin": {}}


@pytest.mark.parametrize(("key", "value"), [("epochs", 2.0), ("tokens", 500), ("steps", 7)])
def test_a_later_budget_replaces_an_earlier_one(key, value):
    train = resolved(f"{key}={value}").train
    assert {k: getattr(train, k) for k in ("steps", "epochs", "tokens")} == {
        "steps": None,
        "epochs": None,
        "tokens": None,
        key: value,
    }


def test_one_pass_is_the_default_budget():
    assert TrainConfig().epochs == 1.0
    assert TrainConfig(steps=3).epochs is None


def test_two_budgets_are_refused():
    with pytest.raises(ValueError, match="steps and tokens both end a task"):
        TrainConfig(steps=3, tokens=5)


@pytest.mark.parametrize(
    ("text", "part", "field", "value"),
    [
        ("rank=4", None, "rank", 4),
        ("train.lr=1e-3", "train", "lr", 1e-3),
        ("train.packing=true", "train", "packing", True),
        ("lora.targets=['q', 'v']", "lora", "targets", ["q", "v"]),
        ("calibration.source=both", "calibration", "source", "both"),
        ("./my.py:Mine.rank=2", "./my.py:Mine", "rank", 2),
        ("train.schedule = linear", "train", "schedule", "linear"),
    ],
)
def test_settings_are_read_as_toml_else_as_text(text, part, field, value):
    setting = parse_setting(text)
    assert (setting.part, setting.field, setting.value) == (part, field, value)
    assert type(setting.value) is type(value)


@pytest.mark.parametrize("text", ["rank", "=3", "lora.=3", ""])
def test_what_is_no_setting_is_refused(text):
    with pytest.raises(UserError, match=r"is not part\.field=value"):
        parse_setting(text)


def test_a_bare_field_goes_to_the_one_part_that_has_it():
    config = resolved("rank=4", "window=64", "strength=1")
    assert config.params["lora"]["rank"] == 4
    assert config.params["ewc"]["strength"] == 1
    assert config.calibration.window == 64


def test_a_bare_field_of_two_parts_is_refused_with_both():
    assert "train.batch_size or eval.batch_size" in refusal("batch_size=3")


def test_none_empties_only_what_may_be_empty():
    config = resolved("train.clip=none", "lora.alpha=none", "ewc.strength=none")
    assert config.train.clip is None
    assert config.params["lora"]["alpha"] is None
    assert config.params["ewc"]["strength"] == "none"  # the registry refuses it by its type


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("rnak=4", ["'rnak'", "did you mean lora.rank?"]),
        ("lora.rnak=4", ["field of lora 'rnak'", "did you mean rank?"]),
        ("train.bath_size=4", ["field of train 'bath_size'", "batch_size"]),
        ("lroa.rank=4", ["part 'lroa'", "did you mean lora?"]),
        ("train.lr=-1", ["train.lr", "-1", "greater than 0"]),
        ("train.lr=nan", ["train.lr", "nan"]),
        ("train.steps=0", ["train.steps", "0"]),
        ("train.batch_size=many", ["train.batch_size", "'many'", "integer"]),
        ("calibration.source=both_", ["calibration.source", "'world', 'seen' or 'both'"]),
        ("train.micro_batch=3", ["batch_size 8", "micro_batch 3"]),
        ("eval.size=huge", ["eval.size", "'default' or 'full'"]),
    ],
)
def test_bad_settings_are_one_sentence_with_the_value_and_the_choices(setting, names):
    message = refusal(setting)
    for name in names:
        assert name in message


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ({"trian": {}}, "did you mean train?"),
        ({"train": {"lrr": 1}}, "did you mean lr?"),
        ({"train": 3}, "train of the configuration file is 3, not a table"),
        ({"strategies": {"lora": {"rnak": 1}}}, "did you mean rank?"),
    ],
)
def test_bad_files_are_refused(layer, name):
    assert name in refusal(file=layer)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="No such file"):
        read_toml(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("train = [")
    with pytest.raises(UserError, match="is not TOML"):
        read_toml(broken)


def test_configurations_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        CalibrationConfig().window = 3


def test_the_digest_names_what_the_matrix_depends_on():
    base = resolved()
    same = [resolved(threads=2), resolved(reference=("base",)), resolved("train.lr=1e-3")]
    other = [resolved(seed=1), resolved("rank=4"), resolved("train.lr=2e-3"), resolved(model="m")]
    assert {config.digest() for config in same} == {base.digest()}
    assert len({config.digest() for config in [base, *other]}) == 5


def test_a_configuration_survives_its_record():
    config = resolved("rank=4", order=(1, 0), reference=("base",))
    again = RunConfig.of(config.model_dump(mode="json"))
    assert again == config


def test_a_run_directory_names_stream_and_strategy():
    config = resolved(strategy="./mine.py:Mine+ewc", parts=PARTS)
    directory = config.directory(Path("runs"))
    assert directory.parts[:2] == ("runs", "s")
    assert directory.parts[2] == "mine_py_Mine+ewc"
    assert config.digest().startswith(directory.name)
