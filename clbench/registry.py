"""Names to objects: by entry point of an installed package, or by "file.py:Object".

pydantic loads inside functions: `clbench list` needs names only, and answers at once.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
import typing
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from clbench.composition import compose
from clbench.errors import UserError, unknown
from clbench.strategy import Strategy
from clbench.stream import Stream

STRATEGIES = "clbench.strategies"
STREAMS = "clbench.streams"
MODELS = "clbench.models"
PRESETS = "clbench.presets"
TASKS = "clbench.tasks"
EVALS = "clbench.evals"
SOURCES = "clbench.sources"

_KINDS = {
    STRATEGIES: "strategy",
    STREAMS: "stream",
    MODELS: "model",
    PRESETS: "preset",
    TASKS: "task",
    EVALS: "eval",
    SOURCES: "source",
}
Made = TypeVar("Made")


class Entry(NamedTuple):
    """One registered name, not imported."""

    name: str
    value: str  # "module:Object"
    package: str
    version: str


def listing(group: str) -> list[Entry]:
    """Return what the installed packages register in a group, by name, importing none of it."""
    found = {_entry(point) for point in entry_points(group=group)}
    return sorted(found)


def load(group: str, name: str) -> Any:
    """Return the object of a name or of "file.py:Object"; raises UserError."""
    kind = _KINDS[group]
    if ".py:" in name:
        return _load_file(kind, name)
    points = [point for point in entry_points(group=group) if point.name == name]
    if not points:
        raise unknown(kind, name, {point.name for point in entry_points(group=group)})
    owners = sorted({_entry(point).package for point in points})
    if len(owners) > 1:
        raise UserError(f"{kind} {name!r} is registered by {' and by '.join(owners)}; remove one")
    entry = _entry(points[0])
    try:
        return points[0].load()
    except Exception as error:  # a plugin may fail in any way; the others keep working
        raise UserError(
            f"{kind} {name!r} of package {entry.package} {entry.version} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error


def hub_cache() -> Path:
    """Return the directory in which models and data from the hub are kept."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def cached_models() -> list[str]:
    """Return the ids of the models in the hub's cache, without loading its library."""
    folders = sorted(path.name for path in hub_cache().glob("models--*") if path.is_dir())
    return ["/".join(name.split("--")[1:]) for name in folders]


def stream(name: str) -> Stream:
    """Return the stream of this name, of a TOML file, or of "file.py:Object"; raises UserError."""
    found = Path(name) if name.endswith(".toml") else load(STREAMS, name)
    if isinstance(found, str | os.PathLike):
        from clbench import streamfile

        return streamfile.read(Path(found))
    if not isinstance(found, Stream):
        raise UserError(f"stream {name!r} is {found!r}, neither a Stream nor the path of a file")
    return found


def make(group: str, name: str, kind: type[Made] | tuple[type[Made], ...]) -> Made:
    """Return what the factory of a task, an eval or a source makes; raises UserError."""
    factory = load(group, name)
    made = factory() if callable(factory) else factory
    if not isinstance(made, kind):
        raise UserError(f"{_KINDS[group]} {name!r} makes {made!r}, which is no {_KINDS[group]}")
    return made


def preset(name: str) -> Mapping[str, Any]:
    """Return the tables of a preset, by name or by the path of a TOML file; raises UserError.

    In "paper:trace" the second word chooses among the tables that the preset keeps per source.
    """
    base, _, source = (name, "", "") if ".py:" in name else name.partition(":")
    tables = _preset_tables(base)
    if not source:
        return tables
    choices = tables.get("sources", {})
    if source not in choices:
        raise unknown(f"source of preset {base}", source, choices)
    return choices[source]  # type: ignore[no-any-return]


def preset_name(name: str, source: str | None) -> str:
    """Return the full name of a preset for a stream whose protocol is `source`'s.

    Raises UserError for a preset kept per source where the stream has none.
    """
    if ":" in name or "sources" not in _preset_tables(name):
        return name
    choices = _preset_tables(name)["sources"]
    if source is None:
        raise UserError(
            f"preset {name} is kept by source and this stream follows none; write {name}:SOURCE; "
            f"choices: {', '.join(sorted(choices))}"
        )
    return f"{name}:{source}"


def _preset_tables(name: str) -> Mapping[str, Any]:
    found = Path(name) if name.endswith(".toml") else load(PRESETS, name)
    if isinstance(found, Mapping):
        return found
    if not isinstance(found, str | os.PathLike):
        raise UserError(f"preset {name!r} is {found!r}, neither tables nor the path of a file")
    from clbench.config import read_toml

    return read_toml(Path(found))


def strategy_class(name: str) -> type[Strategy]:
    """Return the class of one part, e.g. "lora-null" or "./mine.py:Mine"; raises UserError."""
    found = load(STRATEGIES, name)
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise UserError(f"strategy {name!r} is {found!r}, not a subclass of clbench.Strategy")
    return found


def parts(expression: str) -> dict[str, dict[str, bool]]:
    """Return the parts of "a+b", an implied adapter first; per field, whether it may be None."""
    names = expression.split("+")
    if not all(names):
        raise UserError(f"strategy {expression!r} has an empty part; write for example lora+ewc")
    classes = {name: strategy_class(name) for name in names}
    if all(cls.kind == "guard" for cls in classes.values()):
        implied = next((cls.implies for cls in classes.values() if cls.implies), None)
        if implied is not None:
            classes = {implied: strategy_class(implied), **classes}
    return {name: _fields(cls) for name, cls in classes.items()}


def build_strategy(expression: str, params: Mapping[str, Mapping[str, Any]]) -> Strategy:
    """Return the strategy of "a+b", each part built from its hyperparameters; raises UserError."""

    def build(name: str, defaults: Mapping[str, Any] = MappingProxyType({})) -> Strategy:
        return _build(name, {**defaults, **params.get(name, {})})

    known = parts(expression)
    for name in params:
        if name not in known:
            raise unknown(f"part of strategy {expression}", name, known)
    return compose([build(name) for name in expression.split("+")], build)


def _build(name: str, params: Mapping[str, Any]) -> Strategy:
    return build_part(strategy_class(name), params, name)


def build_part(cls: type[Strategy], params: Mapping[str, Any], name: str | None = None) -> Strategy:
    """Return one part from hyperparameters that come from outside; raises UserError.

    They are checked against the types of the fields, so JSON's lists become tuples again.
    `name` is what the part was asked for by.
    """
    name = name or cls.name()
    hints = typing.get_type_hints(cls)
    checked = {}
    for key, value in params.items():
        if key not in _fields(cls):
            raise unknown(f"field of {name}", key, _fields(cls))
        checked[key] = _checked(f"{name}.{key}", hints[key], value)
    needed = [f.name for f in dataclasses.fields(cls) if f.init and _is_required(f)]
    missing = [key for key in needed if key not in checked]
    if missing:
        raise UserError(f"{name} needs {missing[0]}: give --set {name}.{missing[0]}=VALUE")
    try:
        return cls(**checked)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in checked.items()) or "its defaults"
        raise UserError(f"strategy {name!r} cannot be built with {given}: {error}") from error


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _checked(what: str, hint: Any, value: Any) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise UserError(f"{what} is {value!r}: {message[0].lower()}{message[1:]}") from None


def _fields(cls: type[Strategy]) -> dict[str, bool]:
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    return {name: type(None) in typing.get_args(hints[name]) for name in names}


def _entry(point: EntryPoint) -> Entry:
    package, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "")
    return Entry(point.name, point.value, package, version)


def _load_file(kind: str, name: str) -> Any:
    file, _, attribute = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"{kind} {name!r}: there is no file {file!r}")
    module_name = f"clbench_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{kind} {name!r}: {file!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own file may fail in any way
        raise UserError(
            f"{kind} {name!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise unknown(f"object of {file}", attribute, public)
    return getattr(module, attribute)
