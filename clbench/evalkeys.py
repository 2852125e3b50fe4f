"""What a pinned eval relies on in lm-eval, checked before anything is scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clbench.errors import UserError, unknown
from clbench.task import Eval


def check_needs(*evals: Eval) -> None:
    """Raise UserError for the first thing that an eval needs and that is not there."""
    for spec in evals:
        for need in spec.needs:
            if not need.present():
                raise UserError(f"eval {spec.id} needs {need.what}; get it with: {need.how}")


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
