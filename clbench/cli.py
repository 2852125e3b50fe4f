"""The command line: verbs, and one sentence for what cannot be done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import clbench
from clbench.errors import RunFailed, UserError

if TYPE_CHECKING:
    from clbench.results import Record

F = TypeVar("F", bound=Callable[..., Any])
DEBUG = "clbench.debug"
LISTED = ("strategies", "streams", "models", "presets")
KINDS = (*LISTED, "tasks", "evals", "sources")
BAD_INPUT, FAILED_RUN, INTERRUPTED = 2, 3, 130


class Verbs(click.Group):
    """Shortens what users can put right to a sentence on stderr; --debug shows the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb and turn its errors into exit codes."""
        try:
            return super().invoke(ctx)
        except (UserError, RunFailed) as error:
            if ctx.meta.get(DEBUG):
                raise
            click.echo(f"clbench: {error}", err=True)
            ctx.exit(BAD_INPUT if isinstance(error, UserError) else FAILED_RUN)
        except KeyboardInterrupt:
            if ctx.meta.get(DEBUG):
                raise
            click.echo("clbench: interrupted; the same command takes it up again", err=True)
            ctx.exit(INTERRUPTED)


def common(command: F) -> F:
    """Add what every verb understands."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        ctx.meta[DEBUG] = ctx.meta.get(DEBUG, False) or value

    debug = click.option(
        "--debug", is_flag=True, expose_value=False, callback=remember, help="Show tracebacks."
    )
    return debug(command)


def positions(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Read an order such as 2,0,1; raises UserError."""
    if value is None:
        return None
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise UserError(f"order {value!r} is not positions such as 2,0,1") from None


def names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Read names such as math,code; an empty text names none."""
    if value is None:
        return None
    return tuple(part.strip() for part in value.split(",")) if value.strip() else ()


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(clbench.__version__, prog_name="clbench")
@common
def main() -> None:
    """Measure how much a language model forgets when it learns one task after another."""


@main.command()
@click.option("--stream", help="What is learned, task after task.")
@click.option("--strategy", help="How, e.g. lora-null, lora+ewc or ./mine.py:Mine.")
@click.option("--model", help="tiny (default), a local directory or a hub id.")
@click.option("--revision", help="Revision of a model from the hub.")
@click.option("--data", help="Edition of the stream; by default tiny for tiny, else full.")
@click.option("--data-dir", help="Folder of the data sets that are published as one (TRACE).")
@click.option("--preset", help="Named settings; by default those of the stream's data.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="Settings as TOML.")
@click.option("--set", "settings", multiple=True, metavar="[PART.]FIELD=VALUE", help="One setting.")
@click.option("--seed", type=click.IntRange(min=0), help="Of everything random; 0 by default.")
@click.option("--order", callback=positions, help="Order of the tasks, e.g. 2,0,1.")
@click.option("--tasks", callback=names, help="Only these tasks, e.g. math,code.")
@click.option("--train-limit", type=click.IntRange(min=1), help="Training rows of each task.")
@click.option("--eval-limit", type=click.IntRange(min=1), help="Items scored of each eval.")
@click.option("--eval", "size", type=click.Choice(["default", "full"]), help="Items scored.")
@click.option(
    "--engine", type=click.Choice(["hf", "vllm"]), help="What writes and scores; hf by default."
)
@click.option(
    "--reference",
    multiple=True,
    type=click.Choice(["base", "single", "joint"]),
    help="Reference runs to compare with; may be repeated.",
)
@click.option("--chat-template", is_flag=True, help="Ask as the model's chat template asks.")
@click.option("--targets", help="Pattern of the layers to adapt; all of the decoder by default.")
@click.option("--device", help="auto (default), cpu, cuda or cuda:N.")
@click.option("--dtype", help="auto (default), float32, bfloat16 or float16.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--isolation", help="Where generated code runs: auto (default), ..., or none.")
@click.option(
    "--locked",
    is_flag=True,
    default=None,
    help="Use no network and only what the lock holds, every file checked; see fetch.",
)
@click.option("--lock", help="With --locked: the lock; by default clbench.lock.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory.")
@click.option("--fresh", is_flag=True, help="Delete what the run directory holds and start anew.")
@click.option("-v", "--verbose", count=True, help="Show the steps of each phase.")
@click.option("-q", "--quiet", is_flag=True, help="Show the result only.")
@as_json
@common
def run(
    stream: str | None,
    strategy: str | None,
    file: Path | None,
    settings: tuple[str, ...],
    size: str | None,
    engine: str | None,
    out: Path | None,
    fresh: bool,
    verbose: int,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Learn a stream with a strategy, scoring after every task; goes on where it stopped."""
    from clbench import api, progress

    by_name = {"eval.size": size, "eval.engine": engine}
    chosen = (*settings, *(f"{name}={value}" for name, value in by_name.items() if value))
    options["reference"] = options["reference"] or None
    options["chat_template"] = options["chat_template"] or None
    config = api.resolve(stream, strategy, settings=chosen, file=file, **options)
    if options["lock"] and not config.locked:
        raise UserError("--lock is read with --locked only")
    display = progress.choose(-1 if quiet or (as_json and not verbose) else verbose)

    from clbench import experiment  # loads torch: after everything that is quick to refuse

    record = experiment.run(config, out=out, fresh=fresh, progress=display)
    _print(record, out or config.directory(), as_json)


@main.command()
@click.option("--stream", required=True, help="Whose data sets are fetched.")
@click.option("--model", default="tiny", help="A hub id; tiny and directories are here already.")
@click.option("--revision", help="Revision of the model.")
@click.option("--data", help="Edition of the stream; by default tiny for tiny, else full.")
@click.option("--data-dir", help="Folder of the data sets that are published as one (TRACE).")
@click.option("--lock", default="clbench.lock", help="Where the lock is; clbench.lock by default.")
@click.option("--update", is_flag=True, help="Move what is locked already to its newest commit.")
@click.option("-q", "--quiet", is_flag=True, help="Show the result only.")
@as_json
@common
def fetch(stream: str, quiet: bool, as_json: bool, **options: Any) -> None:
    """Download what the runs of a stream and model read, lock it, and check it for leaks.

    Files go where the hub's library keeps them (HF_HOME). The lock names commits, sizes and
    SHA-256; `clbench run --locked` then needs no network. Gated models need HF_TOKEN or
    `hf auth login`. A download that broke off goes on with the same command.
    """
    from clbench import api, progress

    fetched = api.fetch(stream, progress=progress.choose(-1 if quiet or as_json else 0), **options)
    if as_json:
        click.echo(json.dumps(fetched.to_json(), indent=1, ensure_ascii=False))
        return
    from clbench import fetching

    click.echo(fetching.as_text(fetched))


def only(command: F) -> F:
    """Add one flag per kind of name."""
    for kind in reversed(KINDS):
        words = "Only these." if kind in LISTED else "Only these, which stream files may use."
        command = click.option(f"--{kind}", "kinds", multiple=True, flag_value=kind, help=words)(
            command
        )
    return command


@main.command(name="list")
@only
@click.option("-v", "--verbose", is_flag=True, help="Show what each stream holds.")
@as_json
@common
def list_(kinds: tuple[str, ...], verbose: bool, as_json: bool) -> None:
    """List strategies, streams, models and presets, and the package each comes from."""
    from clbench import registry

    found = {
        kind: [
            {"name": e.name, "package": e.package, "version": e.version}
            for e in registry.listing(f"clbench.{kind}")
        ]
        for kind in kinds or LISTED
    }
    if "models" in found:
        found["models"] += [
            {"name": name, "package": "in the cache", "version": ""}
            for name in registry.cached_models()
        ]
    if verbose and "streams" in found:
        from clbench.report import streams

        found["streams"] = [entry | streams.described(entry["name"]) for entry in found["streams"]]
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    width = max((len(entry["name"]) for entries in found.values() for entry in entries), default=0)
    for kind, entries in found.items():
        click.echo(f"{kind}:")
        for entry in entries:
            origin = f"{entry['package']} {entry['version']}".rstrip()
            click.echo(f"  {entry['name']:{width}}  {origin}")
            if "about" in entry or "error" in entry:
                click.echo(f"{streams.as_text(entry)}\n")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@as_json
@common
def show(run: Path, as_json: bool) -> None:
    """Print the result of a finished or unfinished RUN, and what it was trained and scored on."""
    from clbench.results import Record

    record = Record.load(run)
    _print(record, run if run.is_dir() else run.parent, as_json)
    if not as_json:
        from clbench.report import data

        click.echo(f"\n{data.data(record)}")


@main.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@as_json
@common
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Print the paired differences of runs A and B: per score and metric, with intervals."""
    from clbench import comparison
    from clbench.report import text

    found = comparison.compare(a, b)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=1))
    else:
        click.echo(text.comparison(found, str(a), str(b)))


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "form", required=True, help="merged (a model) or peft (one adapter).")
@click.option("--out", type=click.Path(path_type=Path), help="New directory; by default in RUN.")
@as_json
@common
def export(run: Path, form: str, out: Path | None, as_json: bool) -> None:
    """Write the model that RUN ended with as a model directory, or as one adapter for its base."""
    from clbench import export

    done = export.export(run, form, out)
    if as_json:
        click.echo(json.dumps(done._asdict() | {"path": str(done.path)}, indent=1))
        return
    click.echo(
        f"{done.format} in {done.path}\nlargest difference of a logit from the run's: "
        f"{done.difference:.1e} (allowed: {done.tolerance:.1e})"
    )


@main.command()
@as_json
@common
def doctor(as_json: bool) -> None:
    """Report isolation, device, threads, caches, versions and plugins of this machine."""
    from clbench import doctor

    rows = doctor.examine()
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows], indent=1))
    else:
        click.echo(doctor.as_text(rows))


@main.command()
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option("--all", "every", is_flag=True, help="Check every strategy that is listed.")
@click.option("--set", "settings", multiple=True, metavar="[PART.]FIELD=VALUE", help="One setting.")
@as_json
@common
def check(names: tuple[str, ...], every: bool, settings: tuple[str, ...], as_json: bool) -> None:
    """Check that strategies keep the contract: NAME is as in --strategy of run.

    Hyperparameters that are not set are those of preset tiny.
    """
    from clbench import config, progress, registry

    if every == bool(names):
        raise UserError("give the names of strategies to check, or --all")
    given = [config.parse_setting(text) for text in settings]
    if every:
        names = tuple(entry.name for entry in registry.listing(registry.STRATEGIES))

    from clbench.testing import from_settings, verdict  # loads torch

    subjects, refused = [], []
    for name in names:
        try:
            subjects.append(from_settings(name, given))
        except UserError as error:
            if not every:
                raise
            refused.append(str(error))  # one that cannot be built leaves the others to be checked
    display = progress.choose(-1 if as_json else 0)
    verdicts = []
    for subject in subjects:
        display.phase(f"check {subject.name}")
        verdicts.append(verdict.verdict(subject))
    display.done()
    if as_json:
        click.echo(json.dumps([found.to_json() for found in verdicts], indent=1))
    else:
        click.echo(verdict.as_text(verdicts))
    failed = [found.strategy for found in verdicts if found.failed]
    if failed:
        verb = "does" if len(failed) == 1 else "do"
        raise RunFailed(f"{', '.join(failed)} {verb} not keep the contract")
    if refused:
        raise UserError("; ".join(refused))


@main.command()
@click.argument("name")
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="By default NAME.")
@common
def new(name: str, folder: Path | None) -> None:
    """Write the package of a new strategy NAME, ready to be installed, checked and changed."""
    from clbench import scaffold

    written = scaffold.write_plugin(name, folder)
    place = written[0].parent
    for path in written:
        click.echo(path)
    click.echo(f"next:\n  pip install -e {place}\n  clbench check {name}\n  pytest {place}")


def _print(record: Record, place: Path, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(record.to_json(), indent=1, ensure_ascii=False))
        return
    from clbench.report import text

    click.echo(text.result(record, place))
