"""A record as text: the matrix, the summary with its intervals, what it cost, what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tabulate import tabulate

from clbench.matrix import Metric, ScoreMatrix
from clbench.progress import duration
from clbench.report import commands
from clbench.results import Clean, Record

if TYPE_CHECKING:
    from clbench.comparison import Comparison, Difference

NONE = "–"

# What the summary shows, in this order, in plain words; a metric without a value names why.
SUMMARY = {
    "final_avg.v1": "tasks, after the last one",
    "learning_acc.v1": "tasks, each right after it was learned",
    "bwt.v1": "backward transfer (negative: forgetting)",
    "fwt.v1": "forward transfer",
    "world_before.v1": "world knowledge, base model",
    "world_after.v1": "world knowledge, at the end",
    "world_delta.v1": "change of world knowledge",
    "world_ratio_clip.v1": "retention: share of the base score kept",
    "knowledge_delta.v1": "open answers: change of knowledge (gold ranked first)",
    "format_delta.v1": "open answers: change that is format",
    "rel_pooled.v1": "gain kept, of what single tasks gain",
    "joint_gap.v1": "gap to joint training",
}
OPTIONAL = frozenset({"fwt.v1", "knowledge_delta.v1", "format_delta.v1"})  # shown where measured
REFERENCES = frozenset({"rel_pooled.v1", "joint_gap.v1"})  # shown where references exist

WHY = {
    "not_scheduled": "not in the schedule",
    "failed": "the evaluation failed",
    "refused": "no isolation to run generated code in",
    "diverged": "the weights are not finite",
    "leaked": "no clean item, training data holds all of them",
    "needs_two_tasks": "needs two tasks",
    "no_world": "the stream has no world evals",
    "no_reference": "no reference run",
    "missing": "a needed score is missing",
    "denominator": "the denominator is too small",
    "no_items": "no items",
    "unpaired": "the items do not pair",
}


def result(record: Record, place: Path | None = None) -> str:
    """Return everything about one run for a terminal; `place` is where its record lies."""
    blocks = [_title(record), matrix(record.matrix, record.clean), footnotes(record)]
    blocks += [diagnostics(record), summary(record.metrics), clean_items(record)]
    blocks += [shared_data(record), cost(record.cost)]
    blocks.append(_close(record, place))
    return "\n\n".join(block for block in blocks if block)


def matrix(scores: ScoreMatrix, clean: Clean | None = None) -> str:
    """Return the score matrix as a table, in points; a dash where there is no score.

    Beside an eval that leaks stands its score on the clean items.
    """
    owner = {e: task for task, evals in scores.task_evals.items() for e in evals}
    columns = []
    for e in scores.evals:
        header = f"{owner.get(e, 'world')}\n{e}"
        columns.append((header, e, scores))
        if clean is not None and e in clean.left_out:
            columns.append((f"{header}\nclean items", e, clean.matrix))
    rows = []
    for k in range(len(scores.rows)):
        name = "base" if k == 0 else f"after {scores.tasks[k - 1]}"
        rows.append([name, *(points(table.score(k, e)) for _, e, table in columns)])
    align = ("left", *("right" for _ in columns))
    return _table(rows, ["", *(header for header, _, _ in columns)], align)


def footnotes(record: Record) -> str:
    """Return one line per reason for which scores are missing, and per flag of scores."""
    missing: dict[str, list[str]] = {}
    flagged: dict[str, list[str]] = {}
    clean = () if record.clean is None else record.clean.matrix.rows
    for row in (*record.matrix.rows, *clean):
        for eval_id, cell in row.items():
            if cell.reason is not None:
                missing.setdefault(cell.reason, []).append(eval_id)
            for flag in cell.flags:
                flagged.setdefault(flag, []).append(eval_id)
    lines = [f"{NONE} {_names(evals)}: {WHY[reason]}" for reason, evals in missing.items()]
    lines += [f"flag {flag}: {_names(evals)}" for flag, evals in flagged.items()]
    lines += sorted(set(_notes(record)))
    return "\n".join(lines)


def diagnostics(record: Record) -> str:
    """Return what was measured beside the scores as a table, in its own units, row by row."""
    measured: dict[str, dict[int, str]] = {}
    for phase in _phases(record):
        for name, found in phase.get("diagnostics", {}).items():
            flags = "".join(f" ({flag})" for flag in found["flags"])
            measured.setdefault(name, {})[phase["row"]] = f"{found['value']:.4g}{flags}"
    names = ["base", *(f"after {task}" for task in record.matrix.tasks)]
    rows = [
        [name, *(found.get(at, NONE) for at in range(len(names)))]
        for name, found in measured.items()
    ]
    headers = ["diagnostic (lower is better)", *names]
    return _table(rows, headers, ("left", *("right" for _ in names)))


def summary(metrics: Mapping[str, Metric]) -> str:
    """Return the main metrics in points with their 95 % intervals over items."""
    rows = []
    for name, words in SUMMARY.items():
        metric = metrics.get(name)
        if metric is None or _uninteresting(name, metric):
            continue
        rows.append([words, name, *_value(metric)])
    return _table(rows, ["", "id", "points", "95 % (items)"], ("left", "left", "right", "left"))


def clean_items(record: Record) -> str:
    """Return the main metrics that change without the items that training data holds."""
    if record.clean is None:
        return ""
    found = record.clean.metrics.items()
    changed = {name: metric for name, metric in found if metric != record.metrics.get(name)}
    counts = ", ".join(f"{count} of {e}" for e, count in record.clean.left_out.items())
    title = f"ranked: without the items that training data holds ({counts}), where that differs"
    return f"{title}\n\n{summary(changed)}".rstrip()


def shared_data(record: Record) -> str:
    """Return what evals share with the data that was read: questions, or the data set itself.

    Where calibration reads the data set of a world eval, its score is that of the same
    distribution: the world's means stand with and without it.
    """
    leak = cast(Mapping[str, Any], record.data.get("leak", {}))
    pairs = leak.get("same_source", [])
    lines = [f"same distribution: {source} reads the data set of {e}" for source, e in pairs]
    before = {source: found["evals"] for source, found in leak.get("before_removal", {}).items()}
    for title, by_source in (
        ("left out of training", before),
        ("still in", leak.get("evals", {})),
    ):
        for source, by_eval in by_source.items():
            for eval_id, numbers in by_eval.items():
                if numbers["leak_exact.v1"]:
                    share = f"{100 * numbers['leak_exact.v1']:.2g} % of {eval_id}'s questions"
                    lines.append(f"{title}: {share}, found in {source}")
    world = list(record.matrix.world)
    shared = {e for _, e in pairs} & set(world)
    others = [e for e in world if e not in shared]
    if shared and others:
        rows = [[f"without {_names(sorted(shared))}", *_world_means(record.matrix, others)]]
        rows.insert(0, ["all", *_world_means(record.matrix, world)])
        headers = ["world knowledge", "base", "at the end", "change"]
        lines += ["", _table(rows, headers, ("left", "right", "right", "right"))]
    return "\n".join(lines)


def _world_means(scores: ScoreMatrix, evals: Sequence[str]) -> list[str]:
    """Return the mean of some evals in points, of the base, after the last task, and apart."""
    found = []
    for row in (0, len(scores.tasks)):
        values = [scores.score(row, e) for e in evals]
        known = [value for value in values if value is not None]
        found.append(sum(known) / len(known) if len(known) == len(values) else None)
    first, last = found
    change = NONE if first is None or last is None else f"{100 * (last - first):+.1f}"
    return [points(first), points(last), change]


def cost(spent: Mapping[str, Any]) -> str:
    """Return seconds per phase, peak memory, what trained, what was kept and the tokens read."""
    rows = []
    for name, value in spent.items():
        if name.startswith("seconds.") and value:
            phase = name.removeprefix("seconds.").removesuffix(".v1")
            rows.append(["all phases" if phase == "v1" else phase, duration(value)])
    peaks = [v for k, v in spent.items() if k.startswith("peak_bytes.host")]
    if peaks:
        rows.append(["peak memory", size(max(peaks))])
    peaks = [v for k, v in spent.items() if k.startswith("peak_bytes.device")]
    if peaks:
        rows.append(["peak memory of the device", size(max(peaks))])
    if spent.get("trainable.v1"):
        share = ""
        if spent.get("parameters.v1"):
            share = f" of {spent['parameters.v1']:,}"
        rows.append(["trainable parameters", f"{spent['trainable.v1']:,}{share}"])
    if spent.get("kept_bytes.v1"):
        rows.append(["kept between tasks", size(spent["kept_bytes.v1"])])
    for kind, words in (("seen", "training tokens"), ("calibrated", "calibration tokens")):
        if spent.get(f"tokens.{kind}.v1"):
            rows.append([words, f"{spent[f'tokens.{kind}.v1']:,}"])
    return _table(rows, ["cost", ""], ("left", "right"))


def comparison(found: Comparison, a: str, b: str) -> str:
    """Return the paired differences `b - a` of two runs, in points, with what they cannot show."""
    headers = ["", "a", "b", "b - a", "95 % (items)", "p"]
    align = ("left", "right", "right", "right", "left", "right")
    metrics = [d for d in found.metrics if d.name in SUMMARY and d.a is not None]
    cells = [d for d in found.cells if d.a is not None or d.b is not None]
    tables = [_table([_difference(d) for d in part], headers, align) for part in (metrics, cells)]
    legend = f"a: {a}\nb: {b}"
    return "\n\n".join(block for block in (legend, *tables, *found.notes, found.says) if block)


def _difference(line: Difference) -> list[str]:
    change = NONE if line.difference is None else f"{100 * line.difference:+.1f}"
    sure = line.reason or NONE if line.interval is None else interval(line.interval)
    p = NONE if line.p is None else f"{line.p:.3f}"
    return [line.name, points(line.a), points(line.b), change, sure, p]


def points(score: float | None) -> str:
    """Return a score of 0..1 in points with one decimal, or a dash."""
    return NONE if score is None else f"{100 * score:.1f}"


def interval(bounds: Sequence[float]) -> str:
    """Return an interval in points."""
    low, high = bounds
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def size(num_bytes: float) -> str:
    """Return a number of bytes for people: "12 kB", "412 MB", "1.3 GB"."""
    if num_bytes < 1e6:
        return f"{num_bytes / 1e3:.0f} kB"
    if num_bytes < 1e9:
        return f"{num_bytes / 1e6:.0f} MB"
    return f"{num_bytes / 1e9:.1f} GB"


def _title(record: Record) -> str:
    config, model = record.config, record.model
    words = [f"{config.stream} with {config.strategy}", f"model {model.id}", f"seed {config.seed}"]
    if record.status != "complete":
        words.append(record.status)
    return ", ".join([*words, *record.flags])


def _value(metric: Metric) -> tuple[str, str]:
    if metric.value is not None:
        return points(metric.value), "" if metric.interval is None else interval(metric.interval)
    if metric.partial is not None:
        of = f"{metric.partial.terms} of {metric.partial.of} terms"
        return f"({points(metric.partial.value)})", f"partial: {of}"
    return NONE, WHY.get(metric.reason or "", metric.reason or "")


def _uninteresting(name: str, metric: Metric) -> bool:
    if name in REFERENCES:
        return metric.reason == "no_reference"
    return name in OPTIONAL and metric.value is None


def _close(record: Record, place: Path | None) -> str:
    lines = ["One seed shows how this model answers these items, not which strategy is better."]
    if place is not None:
        after = commands.following(record, place)
        lines += [f"record: {place / 'record.json'}", "next:", *(f"  {line}" for line in after)]
    return "\n".join(lines)


def _notes(record: Record) -> Iterator[str]:
    """Yield what the evaluations had to say, e.g. what to install to run generated code."""
    for phase in _phases(record):
        for found in phase.get("evals", {}).values():
            if found.get("note"):
                yield f"  {found['note']}"


def _phases(record: Record) -> Iterable[Mapping[str, Any]]:
    """Return the finished phases of a run."""
    return cast(Iterable[Mapping[str, Any]], record.provenance.get("phases", []))


def _names(evals: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(evals))


def _table(rows: list[list[str]], headers: list[str], align: tuple[str, ...]) -> str:
    if not rows:
        return ""
    return tabulate(rows, headers, tablefmt="simple", colalign=align, disable_numparse=True)
