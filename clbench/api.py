"""`clbench.run`: options as keywords, resolved as the command line resolves them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clbench import config, registry
from clbench.errors import UserError

if TYPE_CHECKING:
    from clbench.fetching import Fetched
    from clbench.progress import Progress
    from clbench.results import Record
    from clbench.stream import Stream


def resolve(
    stream: str | None,
    strategy: str | None,
    *,
    settings: Mapping[str, Any] | Iterable[str] = (),
    file: Path | None = None,
    preset: str | None = None,
    **options: Any,
) -> config.RunConfig:
    """Return the complete configuration of a run; raises UserError.

    `settings` are as after `--set`: strings `part.field=value`, or a mapping from `part.field`
    to a value. `options` are further fields of `RunConfig`: model, data, seed, order, ...; and
    `eval_limit`, which sets `eval.samples`. What is None is looked up in the file.
    """
    given = {key: value for key, value in options.items() if value is not None}
    limit = given.pop("eval_limit", None)
    layer = config.read_toml(file) if file is not None else {}
    stream = stream or _required(layer, "stream", registry.STREAMS)
    strategy = strategy or _required(layer, "strategy", registry.STRATEGIES)
    model = given.get("model", layer.get("model", "tiny"))
    found = registry.stream(stream)
    data = given.get("data", layer.get("data")) or _default_data(found, model)
    edition = found.edition(data)
    preset = preset or layer.get("preset") or edition.preset
    if preset is not None:
        preset = registry.preset_name(preset, found.source)
    own = stream.endswith(".toml")  # what a package registers, its version names
    names = {
        "stream": stream,
        "strategy": strategy,
        "data": data,
        "preset": preset,
        "definition": found.definitions[data]() if own else None,
    }
    chosen = _settings(settings)
    if limit is not None:
        chosen.append(config.setting("eval.samples", limit))
    return config.resolve(
        {**given, **names},
        registry.parts(strategy),
        preset=registry.preset(preset) if preset is not None else None,
        file=layer,
        settings=chosen,
    )


def run(
    stream: str,
    strategy: str,
    *,
    seed: int = 0,
    model: str = "tiny",
    data: str | None = None,
    order: Sequence[int] | None = None,
    tasks: Sequence[str] | None = None,
    train_limit: int | None = None,
    eval_limit: int | None = None,
    preset: str | None = None,
    config: str | Path | None = None,
    settings: Mapping[str, Any] | Iterable[str] = (),
    out: str | Path | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Record:
    """Train `strategy` on `stream`, scoring after every task, and return the record.

    Options mean what they mean on the command line; `options` takes the remaining fields of
    `RunConfig` (device, dtype, threads, isolation, reference, targets, revision, locked, lock).
    A run that was interrupted goes on; a finished one is read back. Raises UserError for bad
    input and RunFailed for a run that failed after it started, with its record kept.
    """
    from clbench import experiment

    resolved = resolve(
        stream,
        strategy,
        seed=seed,
        model=model,
        data=data,
        order=None if order is None else tuple(order),
        tasks=None if tasks is None else tuple(tasks),
        train_limit=train_limit,
        eval_limit=eval_limit,
        preset=preset,
        file=None if config is None else Path(config),
        settings=settings,
        **options,
    )
    place = None if out is None else Path(out)
    return experiment.run(resolved, out=place, fresh=fresh, progress=progress)


def fetch(
    stream: str,
    *,
    model: str = "tiny",
    data: str | None = None,
    lock: str | Path = "clbench.lock",
    update: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Fetched:
    """Fetch what every run of a stream and model reads, and lock it: commits and SHA-256.

    `options` takes `revision` (of the model) and `data_dir`. With `update`, what the lock holds
    already moves to the newest commit too. Raises UserError.
    """
    from clbench import fetching

    given = {key: value for key, value in options.items() if value is not None}
    chosen = data or _default_data(registry.stream(stream), model)
    asked = {"stream": stream, "strategy": "none", "model": model, "data": chosen}
    wanted = config.RunConfig.of({**given, **asked, "lock": str(lock)})
    return fetching.fetch(wanted, update=update, progress=progress)


def _default_data(stream: Stream, model: str) -> str:
    if len(stream.editions) == 1:
        return next(iter(stream.editions))
    data = "tiny" if model == "tiny" else "full"
    if data not in stream.editions:
        raise UserError(
            f"stream {stream.name} has no {data} data, the default for model {model!r}; "
            f"choices of --data: {', '.join(stream.editions)}"
        )
    return data


def _required(layer: Mapping[str, Any], key: str, group: str) -> str:
    if key in layer:
        return str(layer[key])
    choices = ", ".join(entry.name for entry in registry.listing(group))
    raise UserError(f"no {key} is given; choices: {choices}")


def _settings(given: Mapping[str, Any] | Iterable[str]) -> list[config.Setting]:
    if isinstance(given, Mapping):
        return [config.setting(name, value) for name, value in given.items()]
    return [config.parse_setting(text) for text in given]
