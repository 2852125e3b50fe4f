"""What a pinned eval relies on in lm-eval, checked before anything is scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clbench import registry
from clbench.errors import UserError, unknown
from clbench.stream import data_sets
from clbench.task import Eval

MOST_NAMED = 5  # tasks of a group
OTHER = "name another task of lm-eval's"


def check_needs(*evals: Eval) -> None:
    """Raise UserError for the first thing that an eval needs and that is not there."""
    for spec in evals:
        for need in spec.needs:
            if not need.present():
                raise UserError(f"eval {spec.id} needs {need.what}; get it with: {need.how}")


def check_definition(spec: Eval, fields: Mapping[str, Any]) -> None:
    """Raise UserError for one of lm-eval's tasks that cannot be run as it is defined.

    `fields` is its definition with the names of functions in their place: importing some of them
    runs code already.
    """
    name = str(spec.config)
    if fields.get("unsafe_code"):
        raise UserError(
            f"eval {spec.id}: lm-eval's task {name!r} runs what the model writes in this process, "
            f"and generated code runs in our isolation only; {_instead(name, OTHER)}"
        )
    if "class" in fields:
        raise UserError(
            f"eval {spec.id}: lm-eval's task {name!r} is a program that reads data of its own; "
            f"{_instead(name, OTHER)}"
        )


def many_tasks(name: str, tasks: Sequence[str]) -> UserError:
    """Return the error for a group of lm-eval's tasks, which is no eval by itself."""
    more = f", and {len(tasks) - MOST_NAMED} more" if len(tasks) > MOST_NAMED else ""
    one = f"name one of its tasks: {', '.join(tasks[:MOST_NAMED])}{more}"
    return UserError(f"lm-eval's {name!r} is a group of tasks; {_instead(name, one)}")


def _instead(name: str, otherwise: str) -> str:
    """Say what to give instead: what is registered under the beginning of the name."""
    near = [e.name for e in registry.listing(registry.EVALS) if name.startswith(e.name)]
    return ", or ".join([*(f'give use = "{each}"' for each in near), otherwise])


def check_columns(spec: Eval, fields: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Raise UserError for a column that lm-eval would take for a text, because it is not there."""
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        name = fields.get(key)
        if isinstance(name, str) and name.isidentifier() and name not in columns:
            raise unread(spec, columns, f"column {name!r}")


def unread(spec: Eval, columns: Iterable[str], missing: str) -> UserError:
    """Return the error for records that lack what one of lm-eval's tasks reads of them."""
    names = ", ".join(data.name for data in data_sets(spec))
    return UserError(
        f"eval {spec.id}: lm-eval's task {spec.config!r} reads {missing} of the records of "
        f"{names}; choices: {', '.join(columns)}"
    )


def check_version(spec: Eval, found: object) -> None:
    """Raise UserError if lm-eval's definition has another version than the eval is pinned to."""
    if spec.version is not None and str(found).removesuffix(".0") != str(spec.version):
        raise UserError(
            f"eval {spec.id} is pinned to version {spec.version} of {spec.config!r}, and the "
            f"lm-eval that is installed has version {found}"
        )


def check_printed(spec: Eval, printed: Iterable[str]) -> None:
    """Raise UserError for a pinned key that lm-eval does not print."""
    found = sorted(key for key in printed if "," in key and "_stderr" not in key)
    for key in (spec.metric, *spec.other_metrics):
        if key not in found:
            raise unknown(f"metric of eval {spec.id}", key, found)


def check_examples(spec: Eval, fields: Mapping[str, Any]) -> None:
    """Raise UserError for examples without a split of their own: they would be those scored."""
    drawn = fields.get("fewshot_split") or fields.get("training_split")
    listed = "samples" in (fields.get("fewshot_config") or {})
    if fields["num_fewshot"] > 0 and not drawn and not listed:
        raise UserError(
            f"eval {spec.id} shows {fields['num_fewshot']} examples before each question and its "
            "data has no split to draw them from; ask with shots = 0"
        )


def shots(spec: Eval, fields: Mapping[str, Any]) -> int:
    """Return the number of examples before a question: the eval's, else the definition's."""
    if spec.shots is not None:
        return spec.shots
    return int(fields.get("num_fewshot") or 0)
