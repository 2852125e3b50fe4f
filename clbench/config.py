"""What a run is: typed, small, and written next to its result.

Layers: default < preset < TOML file < command line; each one names only what it changes.
"""

from __future__ import annotations

import contextlib
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from clbench.digests import digest
from clbench.errors import UserError, unknown

BUDGETS = ("steps", "epochs", "tokens")
PARTS = ("train", "calibration", "eval")
EngineName = Literal["hf", "vllm"]
TUNING = {"lr": "train", "trials": "run"}  # what a layer says of a part's tuning -> its place


class Checked(BaseModel):
    """A table of values from outside; `title` is what messages call it."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    title: ClassVar[str]

    @classmethod
    def of(cls, values: Mapping[str, Any], title: str | None = None) -> Self:
        """Return the checked table; raises UserError naming the field and the value."""
        title = title or cls.title
        for key in values:
            if key not in cls.model_fields:
                raise unknown(f"field of {title}", key, cls.model_fields)
        readable = {key: _none_if_allowed(cls, key, value) for key, value in values.items()}
        try:
            return cls.model_validate(readable)
        except ValidationError as error:
            raise UserError(_sentence(title, readable, error)) from None


def _passes(value: object) -> object:
    if value is None or value == "task" or (isinstance(value, int | float) and value > 0):
        return value
    raise PydanticCustomError("passes", 'Input should be a number greater than 0, or "task"')


class TrainConfig(Checked):
    """How one task is learned; exactly one of `steps`, `epochs` and `tokens` ends it."""

    title: ClassVar[str] = "train"

    lr: float = Field(default=1e-4, gt=0)
    batch_size: int = Field(default=16, ge=1)  # examples per optimizer step
    micro_batch: int | None = Field(default=None, ge=1)  # per forward pass; None is batch_size
    steps: int | None = Field(default=None, ge=1)  # optimizer steps per task
    # passes over a task's examples; "task" is what the published protocol makes for each
    epochs: Annotated[float | Literal["task"] | None, BeforeValidator(_passes)] = None
    tokens: int | None = Field(default=None, ge=1)  # non-pad tokens forwarded per task
    warmup: float = Field(default=0.03, ge=0, le=1)  # share of the budget with a rising rate
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip: float | None = Field(default=1.0, gt=0)  # gradient norm; None leaves it
    max_length: int = Field(default=512, ge=8)  # tokens per example, answer included
    packing: bool = False
    gradient_checkpointing: bool = False
    autocast: Literal["auto", "off", "bf16"] = "auto"

    def passes(self, published: float) -> float | None:
        """Return the passes over a task whose protocol makes `published`; None without epochs."""
        return published if self.epochs == "task" else self.epochs

    @model_validator(mode="before")
    @classmethod
    def _one_pass_unless_told(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and all(values.get(key) is None for key in BUDGETS):
            return {**values, "epochs": 1.0}
        return values

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        given = [key for key in BUDGETS if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both end a task; give one of them")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch {self.micro_batch}"
            )
        return self


class CalibrationConfig(Checked):
    """What the layer inputs are measured on before each task."""

    title: ClassVar[str] = "calibration"

    source: Literal["world", "seen", "both"] = "world"  # whose inputs are protected
    num_windows: int = Field(default=256, ge=1)
    window: int = Field(default=2048, ge=2)  # tokens
    held_out: float = Field(default=0.1, ge=0, lt=1)  # further windows, for diagnostics only
    accumulate: Literal["float32", "float64"] = "float32"
    window_scaling: Literal["none", "published"] = "none"  # as CorDA's and LoRA-Null's code does
    budget_bytes: int = Field(default=2**31, ge=1)  # covariances held at one time


class EvalConfig(Checked):
    """How much is scored and when."""

    title: ClassVar[str] = "eval"

    size: Literal["default", "full"] = "default"
    split: Literal["test", "validation"] = "test"  # validation is cut from training data
    schedule: Literal["full", "band", "lower", "ends"] = "full"
    batch_size: int = Field(default=32, ge=1)
    rank_items: int | None = Field(default=None, ge=0)  # None is what each eval says
    samples: int | None = Field(default=None, ge=1)  # a seeded subset per eval; flagged `limited`
    engine: EngineName = "hf"  # what writes and scores; hf is the reference
    judge: str | None = None  # URL of what rates open answers, e.g. http://localhost:8000/v1
    judge_model: str | None = None  # the name that it goes by there

    @model_validator(mode="after")
    def _judge_with_a_name(self) -> Self:
        if (self.judge is None) != (self.judge_model is None):
            raise ValueError("judge (a URL) and judge_model (a name) must be given together")
        if self.judge is not None and not self.judge.startswith(("http://", "https://")):
            raise ValueError(f"judge is {self.judge!r}, not a URL such as http://localhost:8000/v1")
        return self


class RunConfig(Checked):
    """One run, completely resolved; equal configurations give equal runs."""

    title: ClassVar[str] = "run"

    stream: str
    strategy: str  # as written on the command line, e.g. "lora-null+ewc"
    params: dict[str, dict[str, Any]] = Field(default_factory=dict)  # part -> hyperparameters
    model: str = "tiny"  # a listed name, a local directory or a hub id
    revision: str | None = None
    data: str | None = None  # edition of the stream; None is tiny for tiny, else full
    data_dir: str | None = None  # where data sets lie that are published as folders
    order: tuple[int, ...] | None = None  # positions of the stream's tasks, from 0
    tasks: tuple[str, ...] | None = None  # only these, as a single reference learns them
    train_limit: int | None = Field(default=None, ge=1)  # the first rows of each task
    definition: dict[str, Any] | None = None  # what the user's own stream file says
    joint: bool = False  # all tasks shuffled into one, as a joint reference learns them
    seed: int = Field(default=0, ge=0)
    train: TrainConfig = Field(default_factory=TrainConfig)
    calibration: CalibrationConfig = Field(default_factory=CalibrationConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    reference: tuple[Literal["base", "single", "joint"], ...] = ()
    chat_template: bool = False  # requests are asked as the model's chat template asks them
    targets: str | None = None  # pattern of layer names; None is all linears of the decoder
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    isolation: Literal["auto", "bubblewrap", "namespaces", "none"] = "auto"
    preset: str | None = None
    trials: int = Field(default=1, ge=1)  # settings tried to choose this one; the preset says
    locked: bool = False  # no network, and nothing that the lock does not hold
    lock: str = "clbench.lock"

    def identity(self) -> dict[str, Any]:
        """Return, ready for JSON, what the matrix depends on: not threads, references or the lock.

        What a lock pins is in the record by itself, whether there was a lock or not.
        """
        return self.model_dump(mode="json", exclude={"threads", "reference", "locked", "lock"})

    def digest(self) -> str:
        """Return the digest that names the run directory."""
        return digest(self.identity())

    @property
    def stream_name(self) -> str:
        """Return the name of the stream, which that of a file of the user's is without its path."""
        return Path(self.stream).stem if self.stream.endswith(".toml") else self.stream

    def directory(self, root: Path = Path("runs")) -> Path:
        """Return where this run goes unless the user says otherwise."""
        return root / _folder(self.stream_name) / _folder(self.strategy) / self.digest()[:12]


def _folder(name: str) -> str:
    return "".join(c if c.isalnum() or c in "+-_" else "_" for c in name).strip("_")


class Setting(NamedTuple):
    """One `--set`: the part it names, if any, its field and its value."""

    part: str | None
    field: str
    value: Any
    text: str  # as the user wrote it


def setting(name: str, value: Any) -> Setting:
    """Return the setting of `part.field` or `field` to a value."""
    part, _, field = name.strip().rpartition(".")
    return Setting(part or None, field, value, f"{name}={value}")


def parse_setting(text: str) -> Setting:
    """Read `part.field=value` or `field=value`, the value as TOML has it, else as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip().rpartition(".")[2]:
        raise UserError(f"--set {text!r} is not part.field=value or field=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    return setting(name, parsed)._replace(text=text)


def read_toml(path: Path, kind: str = "configuration") -> dict[str, Any]:
    """Return the tables of a file; raises UserError if it is missing or malformed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {kind} {str(path)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{kind} {str(path)!r} is not TOML: {error}") from None


def resolve(
    run: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, bool]],
    *,
    preset: Mapping[str, Any] | None = None,
    file: Mapping[str, Any] | None = None,
    settings: Iterable[Setting] = (),
) -> RunConfig:
    """Merge the layers into one checked configuration.

    `run` holds the options given by name (stream, strategy, ...). `parts` holds, per part of
    the strategy, its fields and whether each may be None. A layer is a mapping with the tables
    `train`, `calibration`, `eval`, `strategies.<part>` and `joint_run`. In `strategies.<part>`,
    `lr` is the learning rate that this part trains with and `trials` how many were tried for
    it; `joint_run` replaces both in a joint run. The preset may name a `fallback` part: what it
    says of that one, but its trials, holds for the parts which it does not know, as far as they
    have such fields. Raises UserError.
    """
    merged = _Merged(parts, joint=bool(run.get("joint")))
    if preset is not None:
        layer = {key: value for key, value in preset.items() if key != "fallback"}
        merged.add_layer(layer, "preset", preset.get("fallback"))
    if file is not None:
        merged.add_layer(file, "configuration file", None)
    for one in settings:
        merged.add_setting(one)
    top = {**merged.tables["run"], **{k: v for k, v in run.items() if v is not None}}
    return RunConfig.of(
        {
            **top,
            "params": merged.params,
            "train": TrainConfig.of(merged.tables["train"]),
            "calibration": CalibrationConfig.of(merged.tables["calibration"]),
            "eval": EvalConfig.of(merged.tables["eval"]),
        }
    )


class _Merged:
    """The layers so far; a later one replaces single fields of an earlier one."""

    models: ClassVar[dict[str, type[Checked]]] = {
        "train": TrainConfig,
        "calibration": CalibrationConfig,
        "eval": EvalConfig,
        "run": RunConfig,
    }

    def __init__(self, parts: Mapping[str, Mapping[str, bool]], *, joint: bool) -> None:
        self.parts = parts
        self.joint = joint
        self.tables: dict[str, dict[str, Any]] = {name: {} for name in self.models}
        self.params: dict[str, dict[str, Any]] = {part: {} for part in parts}

    def add_layer(self, layer: Mapping[str, Any], origin: str, fallback: str | None) -> None:
        tables = {*PARTS, "strategies", "joint_run"}
        scalars = self._fields("run")
        for key, value in layer.items():
            if key not in tables and key not in scalars:
                raise unknown(f"key of the {origin}", key, [*tables, *scalars])
            if key in tables and not isinstance(value, Mapping):
                raise UserError(f"{key} of the {origin} is {value!r}, not a table")
            if key in scalars:
                self._put("run", key, value)
        for part in PARTS:
            for key, value in layer.get(part, {}).items():
                self._put(part, key, value)
        self._add_strategies(layer.get("strategies", {}), fallback)
        for key in layer.get("joint_run", {}):
            if key not in TUNING:
                raise unknown(f"field of joint_run in the {origin}", key, TUNING)
        if self.joint:
            self._tune(layer.get("joint_run", {}))

    def _add_strategies(self, tables: Mapping[str, Any], fallback: str | None) -> None:
        tuned: list[Mapping[str, Any]] = []
        for part, fields in self.parts.items():
            table = tables.get(part)
            if table is None and fallback is not None:
                table = {k: v for k, v in tables.get(fallback, {}).items() if k in fields}
            table = table or {}
            own = {k: v for k, v in table.items() if k in TUNING and k not in fields}
            if "lr" in own:
                tuned.append(own)
            for key, value in table.items():
                if key not in own:
                    self._put(part, key, value)
        if fallback is not None and not tuned:
            tuned = [{k: v for k, v in tables.get(fallback, {}).items() if k == "lr"}]
        self._tune(tuned[0] if tuned else {})  # the first part that has a rate

    def _tune(self, found: Mapping[str, Any]) -> None:
        for key, place in TUNING.items():
            if key in found:
                self._put(place, key, found[key])

    def add_setting(self, setting: Setting) -> None:
        known = [*self.models, *self.parts]
        if setting.part is not None:
            if setting.part not in known:
                raise unknown("part", setting.part, known)
            self._put(setting.part, setting.field, setting.value)
            return
        owners = [part for part in known if setting.field in self._fields(part)]
        if not owners:
            raise self._nowhere(setting.field, known)
        if len(owners) > 1:
            choices = " or ".join(f"{part}.{setting.field}" for part in owners)
            raise UserError(f"--set {setting.text!r} could mean {choices}; name the part")
        self._put(owners[0], setting.field, setting.value)

    def _put(self, part: str, field: str, value: Any) -> None:
        fields = self._fields(part)
        if field not in fields:
            raise unknown(f"field of {part}", field, fields)
        if part in self.parts:
            self.params[part][field] = None if value == "none" and fields[field] else value
            return
        if part == "train" and field in BUDGETS:
            for other in BUDGETS:
                self.tables["train"].pop(other, None)
        if (part, field) == ("train", "lr") and value != self.tables["train"].get("lr"):
            # another rate than the one that trials chose
            self.tables["run"].pop("trials", None)
        self.tables[part][field] = value

    def _fields(self, part: str) -> Mapping[str, bool]:
        if part in self.parts:
            return self.parts[part]
        nested = {*PARTS, "params", "definition"} if part == "run" else set()
        names = self.models[part].model_fields
        return {name: True for name in names if name not in nested}

    def _nowhere(self, field: str, known: Iterable[str]) -> UserError:
        owners: dict[str, list[str]] = {}
        for part in known:
            for name in self._fields(part):
                owners.setdefault(name, []).append(f"{part}.{name}")
        close = difflib.get_close_matches(field, owners, n=1)
        hint = f"; did you mean {' or '.join(owners[close[0]])}?" if close else ";"
        return UserError(f"unknown field {field!r}{hint} choices: {', '.join(sorted(owners))}")


def _none_if_allowed(model: type[BaseModel], key: str, value: Any) -> Any:
    """Read the word none, which TOML lacks, where the field may be empty."""
    allowed = type(None) in get_args(model.model_fields[key].annotation)
    return None if value == "none" and allowed else value


def _sentence(title: str, values: Mapping[str, Any], error: ValidationError) -> str:
    """Say what is wrong with the first field: its name, its value, and what it may be."""
    first = error.errors()[0]
    if first["type"] == "value_error" and not first["loc"]:
        return f"{title}: {first['ctx']['error']}"
    if first["type"] == "missing":
        return f"{title}.{first['loc'][-1]} is missing"
    place = _place(first["loc"], values)
    same = [each["msg"] for each in error.errors() if _place(each["loc"], values) == place]
    reasons = " or ".join(dict.fromkeys(same)).replace(" or Input should be", " or")
    return f"{title}.{'.'.join(place)} is {first['input']!r}: {reasons[0].lower()}{reasons[1:]}"


def _place(location: tuple[int | str, ...], value: Any) -> list[str]:
    """Return the keys and positions of a location, without the types that were compared with."""
    place = []
    for part in location:
        with contextlib.suppress(KeyError, IndexError, TypeError):  # the name of a type
            value = value[part]
            place.append(str(part))
    return place
