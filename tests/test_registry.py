"""Names to objects; what is broken is named in one sentence and the rest keeps working."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clbench import registry
from clbench.composition import Composed
from clbench.errors import UserError
from clbench.strategy import Strategy

PLUGIN = """
    from collections.abc import Mapping
    from dataclasses import dataclass
    from typing import Any, ClassVar, Literal

    from clbench import Strategy


    @dataclass
    class Attach(Strategy):
        "An adapter."

        rank: int = 4
        scale: float | None = None

        def __post_init__(self):
            if self.rank < 1:
                raise ValueError("rank is a positive integer")


    @dataclass
    class Guard(Strategy):
        "A guard."

        kind: ClassVar[Literal["adapter", "guard"]] = "guard"
        implies: ClassVar[str | None] = "attach"
        implies_params: ClassVar[Mapping[str, Any]] = {"rank": 6}
        strength: float = 1.0


    @dataclass
    class Needy(Strategy):
        "A strategy with a hyperparameter that has no default."

        strength: float


    class Nothing:
        "No strategy."


    value = 3
"""


def install(site: Path, name: str, points: str, code: str = PLUGIN) -> None:
    """Lay a package out as an installer does."""
    (site / f"{name}.py").write_text(textwrap.dedent(code))
    metadata = site / f"{name}-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(textwrap.dedent(points))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    points = """
        [clbench.strategies]
        attach = cl_toy_plugin:Attach
        guard = cl_toy_plugin:Guard
        needy = cl_toy_plugin:Needy
        nothing = cl_toy_plugin:Nothing
        [clbench.presets]
        toy-preset = cl_toy_plugin:value
    """
    install(tmp_path, "cl_toy_plugin", points)
    return tmp_path


@pytest.fixture
def plugin_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(PLUGIN))
    return path


def test_the_first_party_comes_through_the_same_door():
    names = {entry.name for entry in registry.listing(registry.STRATEGIES)}
    assert {"full", "lora", "lora-null", "lora-null-v2"} <= names
    assert {entry.name for entry in registry.listing(registry.STREAMS)} >= {"math-code-if"}


def test_listing_says_which_package_and_imports_nothing(site: Path):
    install(site, "cl_toy_broken", "[clbench.strategies]\nbroken = cl_toy_broken:X", "1 / 0")
    entries = {entry.name: entry for entry in registry.listing(registry.STRATEGIES)}
    assert entries["attach"] == ("attach", "cl_toy_plugin:Attach", "cl_toy_plugin", "1.2")
    assert entries["broken"].package == "cl_toy_broken"


def test_a_broken_plugin_is_named_and_the_others_work(site: Path):
    install(site, "cl_toy_broken", "[clbench.strategies]\nbroken = cl_toy_broken:X", "1 / 0")
    with pytest.raises(UserError) as caught:
        registry.strategy_class("broken")
    assert str(caught.value) == (
        "strategy 'broken' of package cl_toy_broken 1.2 cannot be loaded: "
        "ZeroDivisionError: division by zero"
    )
    assert registry.strategy_class("attach").name() == "attach"


def test_a_missing_optional_package_is_named(site: Path):
    code = "import a_package_nobody_has"
    install(site, "cl_toy_needs", "[clbench.strategies]\nneeds = cl_toy_needs:X", code)
    with pytest.raises(UserError, match="No module named 'a_package_nobody_has'"):
        registry.strategy_class("needs")


def test_two_packages_with_one_name_are_refused(site: Path):
    install(site, "cl_toy_twin", "[clbench.strategies]\nattach = cl_toy_twin:Attach")
    with pytest.raises(UserError, match="registered by cl_toy_plugin and by cl_toy_twin"):
        registry.strategy_class("attach")


def test_an_unknown_name_gets_the_likely_one_and_the_installed_ones(site: Path):
    with pytest.raises(UserError) as caught:
        registry.strategy_class("lora-nul")
    assert "unknown strategy 'lora-nul'; did you mean lora-null?" in str(caught.value)
    assert "attach" in str(caught.value)
    with pytest.raises(UserError, match="unknown stream 'x'"):
        registry.stream("x")


@pytest.mark.parametrize("name", ["nothing", "./mine.py:value"])
def test_what_is_no_strategy_is_refused(site: Path, plugin_file: Path, monkeypatch, name: str):
    monkeypatch.chdir(plugin_file.parent)
    with pytest.raises(UserError, match="not a subclass"):
        registry.strategy_class(name)


def test_a_strategy_whose_fields_are_not_a_dataclass_is_still_one(site: Path):
    code = "from clbench import Strategy\nclass Bare(Strategy):\n    'Nothing else.'"
    install(site, "cl_toy_bare", "[clbench.strategies]\nbare = cl_toy_bare:Bare", code)
    assert registry.build_strategy("bare", {}).params() == {}


def test_a_file_is_a_plugin(plugin_file: Path):
    strategy = registry.build_strategy(f"{plugin_file}:Attach", {f"{plugin_file}:Attach": {}})
    assert strategy.params() == {"rank": 4, "scale": None}


def test_files_that_do_not_fit_are_refused(plugin_file: Path):
    with pytest.raises(UserError, match=r"there is no file 'none\.py'"):
        registry.strategy_class("none.py:Mine")
    with pytest.raises(UserError, match="did you mean Attach"):
        registry.strategy_class(f"{plugin_file}:Atach")
    plugin_file.write_text("1 / 0")
    with pytest.raises(UserError, match="cannot be loaded: ZeroDivisionError"):
        registry.strategy_class(f"{plugin_file}:Attach")


def test_parts_are_told_with_their_fields_and_which_may_be_none(site: Path):
    found = registry.parts("attach+guard")
    assert list(found) == ["attach", "guard"]
    assert found["attach"] == {"rank": False, "scale": True}


def test_a_guard_alone_brings_its_adapter_first(site: Path):
    assert list(registry.parts("guard")) == ["attach", "guard"]
    built = registry.build_strategy("guard", {"attach": {"rank": 2}, "guard": {"strength": 3}})
    assert isinstance(built, Composed)
    assert built.params() == {
        "attach": {"rank": 2, "scale": None},
        "guard": {"strength": 3.0},
    }


def test_a_guard_s_choice_for_its_adapter_is_a_default(site: Path):
    def rank(expression: str, params: dict[str, Any]) -> int:
        return registry.build_strategy(expression, params).params()["attach"]["rank"]

    assert rank("guard", {}) == 6
    assert rank("guard", {"attach": {"rank": 2}}) == 2
    assert rank("attach+guard", {}) == 4


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"rank": 0}, "cannot be built with rank=0: rank is a positive integer"),
        ({"rank": 1.5}, "attach.rank is 1.5"),
        ({"rank": "four"}, "attach.rank is 'four'"),
        ({"rnak": 4}, "unknown field of attach 'rnak'; did you mean rank?"),
    ],
)
def test_bad_hyperparameters_are_one_sentence(site: Path, params, sentence: str):
    with pytest.raises(UserError) as caught:
        registry.build_strategy("attach", {"attach": params})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hyperparameter_without_a_default_is_asked_for(site: Path):
    with pytest.raises(UserError, match=r"needy needs strength: give --set needy.strength=VALUE"):
        registry.build_strategy("needy", {})
    assert registry.build_strategy("needy", {"needy": {"strength": 2}}).params()


def test_values_take_the_declared_type(site: Path):
    built = registry.build_strategy("attach", {"attach": {"rank": 8.0, "scale": 2}})
    assert isinstance(built.params()["rank"], int)
    assert isinstance(built.params()["scale"], float)


def test_empty_and_foreign_parts_are_refused(site: Path):
    with pytest.raises(UserError, match="has an empty part"):
        registry.parts("attach+")
    with pytest.raises(UserError, match="unknown part of strategy attach 'guard'"):
        registry.build_strategy("attach", {"guard": {}})


def test_presets_are_tables_or_files(site: Path, tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nsteps = 3\n")
    assert registry.preset(str(path)) == {"train": {"steps": 3}}
    with pytest.raises(UserError, match="toy-preset"):
        registry.preset("toy-preset")


def test_models_in_the_cache_are_listed_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--org--name-1b").mkdir()
    (tmp_path / "datasets--org--data").mkdir()
    assert registry.cached_models() == ["org/name-1b"]


@dataclass
class Toy(Strategy):
    """Defined here, to show that names follow classes."""


def test_names_follow_classes():
    assert Toy.name() == "toy"
