"""What one eval asks: which documents, with which prompts, and the digests that say so."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

from clbench import drift, evalresult, judge, provenance
from clbench.chat import Chat
from clbench.config import EvalConfig
from clbench.decoding import Alternatives, Generation
from clbench.digests import canonical_json, digest, items_digest
from clbench.evalresult import Item
from clbench.excerpts import excerpt
from clbench.leak import Probe
from clbench.task import Eval

ROLLING = "loglikelihood_rolling"  # lm-eval's name for the likelihood of whole texts
WINDOW = 2048  # tokens of such a text read at a time, where the model can read as many
DEFAULT_NEW_TOKENS = 256  # lm-eval's, where an eval sets none
FULL_RANK_ITEMS = 500
PERCENT_METRICS = frozenset({"bleu", "chrf"})  # reported in 0..100


class Documents(list[dict[str, Any]]):
    """Documents as lm-eval reads a data set, without Arrow, which has no mixed lists."""

    num_left_out = 0  # records that no document was made of

    @property
    def features(self) -> dict[str, Any]:
        """Return the columns by name."""
        return self[0]

    def map(self, make: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Documents:
        """Return every document with what `make` makes of it, as a data set's `map` does."""
        return Documents({**doc, **make(doc)} for doc in self)


class EvalPlan:
    """An eval bound to its documents: which are scored, with which prompts, under which digest."""

    def __init__(self, spec: Eval, task: Any, config: EvalConfig, chat: Chat | None = None) -> None:
        """Choose the documents and build their prompts; `task` is lm-eval's."""
        self.spec, self.task = spec, task
        self.judge = judge.identity(config) if spec.judged else None
        self.chat_digest = None if chat is None else chat.digest
        self.everything: Sequence[Mapping[str, Any]] = task.eval_docs
        names = [str(doc.get("id", i)) for i, doc in enumerate(self.everything)]
        if len(set(names)) != len(names):
            raise ValueError(f"documents of {spec.id} share an id")
        self.indices = self._subset(names, config)
        task.build_all_requests(
            samples=self.indices,
            rank=0,
            world_size=1,
            apply_chat_template=chat is not None,
            fewshot_as_multiturn=chat is not None,
            chat_template=None if chat is None else chat.render,
        )
        self.names = names
        self.limited = len(self.indices) < len(names)
        self.ids = [names[i] for i in self.indices]
        self.docs = [self.everything[i] for i in self.indices]
        self.prompts = [first_prompt(self.task, at) for at in range(len(self.ids))]
        self.rank_ids = self._rank_ids(config)
        self.candidates = self._candidates(names)
        self.alternatives: dict[str, Alternatives] = {}  # by item, once a tokenizer has met them
        self.blank = [self._blank_item(at) for at in range(len(self.ids))]
        self.items_digest = items_digest(self.blank)
        self.task_digest = digest(self._task_identity())

    def _subset(self, names: Sequence[str], config: EvalConfig) -> list[int]:
        sizes = [config.samples, self.spec.default_items if config.size == "default" else None]
        size = min([len(names), *(size for size in sizes if size is not None)])
        chosen = set(drift.seeded_order(names, f"items|{self.spec.id}")[:size])
        return [i for i, name in enumerate(names) if name in chosen]  # lm-eval needs them sorted

    def _rank_ids(self, config: EvalConfig) -> list[str]:
        if not self.spec.open_answer:
            return []
        usual = self.spec.rank_items if config.size == "default" else FULL_RANK_ITEMS
        size = usual if config.rank_items is None else config.rank_items
        chosen = set(drift.seeded_order(self.ids, f"rank|{self.spec.id}")[:size])
        return [name for name in self.ids if name in chosen]

    def _candidates(self, names: Sequence[str]) -> dict[str, list[str]]:
        documents = dict(zip(names, self.everything, strict=True))
        given: dict[str, list[str]] = {
            name: documents[name].get("candidates", []) for name in self.rank_ids
        }
        asked = [name for name in self.rank_ids if not given[name]]
        if not asked:
            return given
        kinds = {name: str(doc.get("kind", "")) for name, doc in documents.items()}
        return given | drift.draw_candidates(self.golds, kinds, f"candidates|{self.spec.id}", asked)

    def _blank_item(self, at: int) -> Item:
        doc, prompt = self.docs[at], self.prompts[at]
        gold: Any = self.golds[self.ids[at]] or None
        if self.spec.execution:
            gold = doc["cases"] if self.spec.execution == "cases" else doc["suffix"]
        cluster = doc.get("cluster") or digest(" ".join(drift.normalize(prompt)))
        return evalresult.new_item(self.ids[at], str(cluster), digest(prompt), plain(gold))

    def _task_identity(self) -> dict[str, Any]:
        config = self.task.config
        return self._conditions() | {
            "id": self.spec.id,
            "version": self.version,
            "items": self.items_digest,
            "output_type": config.output_type,
            "stops": self.stops,
            "filters": plain(config.filter_list),
            "metric": self.spec.metric,
            "metrics": plain(config.metric_list),
            "candidates": self.candidates,
            "shots": config.num_fewshot,
        }

    def probes(self) -> dict[str, Probe]:
        """Return the question and the right answers of every document, scored here or not.

        What is left out of the training rows must not depend on how many items are scored.
        """
        return {
            name: Probe(self._question(doc), tuple(self.golds[name]))
            for name, doc in zip(self.names, self.everything, strict=True)
        }

    @property
    def questions(self) -> list[str]:
        """Return what each scored item asks."""
        return [self._question(doc) for doc in self.docs]

    def _question(self, doc: Mapping[str, Any]) -> str:
        """Return what a document asks, without worked examples and without a chat template.

        `probe` is for a task of lm-eval whose `question` alone asks the same of many documents.
        """
        asked = next((doc[key] for key in ("probe", "question") if key in doc), None)
        return str(self.task.doc_to_text(doc) if asked is None else asked)

    def describe(self) -> dict[str, Any]:
        """Return, for the record, how this eval is asked and read."""
        limit = {"items": len(self.ids), "ids_digest": digest(self.ids)}
        return {
            "version": self.version,
            "metric": self.spec.metric,
            "chance": self.spec.chance,
            "group": self.spec.group,
            "task_digest": self.task_digest,
            "items_digest": self.items_digest,
            "output_type": self.task.config.output_type,
            "shots": self.task.config.num_fewshot,
            "stops": self.stops,
            "new_tokens": self.new_tokens,
            "limit": limit if self.limited else None,
            "rank_items": len(self.rank_ids),
            "chat_template": self.chat_digest,
            "asked_as": self._asked_as(),
            **({"diagnostic": True} if self.spec.diagnostic else {}),
            **self._conditions(),
            **self._sources(),
        }

    def _asked_as(self) -> dict[str, Any]:
        """Return, for readers, whose definition this is and the first prompt as it is asked.

        It is not compared. `template` is None where a column of the document is the prompt.
        """
        config, text = self.spec.config, self.task.config.doc_to_text
        package = "lm-eval" if isinstance(config, str) else "clbench"
        column = isinstance(text, str) and text in self.docs[0]
        return {
            "package": package,
            "package_version": provenance.versions()[package],
            "name": config if isinstance(config, str) else self.spec.id,
            "template": None if column else f"{plain(text)}()" if callable(text) else text,
            "item": self.ids[0],
            "prompt": excerpt(self.prompts[0]),
        }

    def _conditions(self) -> dict[str, Any]:
        """Return what decides the results of some evals only: who judges, how far a text reads."""
        rated = {"judge": self.judge} if self.spec.judged else {}
        return rated | ({"window": WINDOW} if self.task.config.output_type == ROLLING else {})

    def _sources(self) -> dict[str, Any]:
        """Return which records the documents are made of and how, where they are not generated."""
        tables = self.spec.tables
        if not tables:
            return {}
        prepare = (self.spec.parts or (self.spec,))[0].prepare
        return {
            "data": {split: [each.identity() for each in t] for split, t in tables.items()},
            "definition": self.spec.config if isinstance(self.spec.config, str) else "own",
            "prompt": plain(self.task.config.doc_to_text),
            "target": plain(self.task.config.doc_to_target),
            "prepare": plain(asdict(prepare) if is_dataclass(prepare) else prepare),
            "num_left_out": self.num_left_out,
        }

    @property
    def num_left_out(self) -> int:
        """Return how many records no item was made of, such as those with an empty answer."""
        return self.everything.num_left_out if isinstance(self.everything, Documents) else 0

    @property
    def stops(self) -> list[str] | None:
        """Return what ends a generation, None for an eval that generates nothing."""
        settings = self.task.config.generation_kwargs
        return None if settings is None else stops_of(settings)

    @property
    def new_tokens(self) -> int | None:
        """Return the cap on new tokens, None for an eval that generates nothing."""
        settings = self.task.config.generation_kwargs
        return None if settings is None else new_tokens_of(settings)

    @property
    def most_new_tokens(self) -> int:
        """Return the longest text that is asked for; open answers have a second, longer reading."""
        return max(self.new_tokens or 0, self.spec.long_tokens if self.spec.open_answer else 0)

    @property
    def version(self) -> Any:
        """Return the version of the definition."""
        pinned = self.spec.version
        return (self.task.config.metadata or {}).get("version") if pinned is None else pinned

    @property
    def has_gold(self) -> bool:
        """Return whether the documents name a right answer; 0 without options names none."""
        config = self.task.config
        if config.output_type == ROLLING:
            return False
        return config.doc_to_target != 0 or config.doc_to_choice is not None

    @functools.cached_property
    def aliases(self) -> dict[str, list[str]]:
        """Return the accepted answers of each item."""
        return {name: self.golds[name] for name in self.ids}

    @functools.cached_property
    def golds(self) -> dict[str, list[str]]:
        """Return the accepted answers of every document, those that are not scored included."""
        if not self.has_gold:
            return {name: [] for name in self.names}
        documents = zip(self.names, self.everything, strict=True)
        return {name: accepted(self.task, doc) for name, doc in documents}


def accepted(task: Any, doc: Mapping[str, Any]) -> list[str]:
    """Return the right answers of a document as texts, the canonical one first."""
    target = task.doc_to_target(doc)
    targets = target if isinstance(target, list) else [target]
    if task.config.doc_to_choice is not None:
        choices = task.doc_to_choice(doc)
        targets = [choices[t] if isinstance(t, int) else t for t in targets]
    return [t if isinstance(t, str) else canonical_json(plain(t)) for t in targets]


def stops_of(settings: Mapping[str, Any]) -> list[str]:
    """Return the stops of lm-eval's generation settings."""
    until = settings["until"]
    return [until] if isinstance(until, str) else list(until)


def new_tokens_of(settings: Mapping[str, Any]) -> int:
    """Return the cap on new tokens of lm-eval's generation settings."""
    return int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS))


def first_prompt(task: Any, at: int) -> str:
    """Return the prompt of the document at a position; options share theirs."""
    return str(next(i.args[0] for i in task.instances if i.doc_id == at))


def plain(value: Any) -> Any:
    """Return a value of lm-eval as JSON holds it; a function becomes its name."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.__qualname__ if callable(value) else value


def gold_texts(plan: EvalPlan, name: str) -> list[str]:
    """Return the accepted answers whose likelihood counts, the canonical one first."""
    return list(dict.fromkeys(plan.aliases[name]))[: drift.MAX_ALIASES]


def read_items(
    plan: EvalPlan, samples: Sequence[Mapping[str, Any]], generations: Sequence[Generation]
) -> list[Item]:
    """Return one item per document from what lm-eval logged, once per filter.

    Raises ValueError if a logged id does not belong to its document.
    """
    items = copy.deepcopy(plan.blank)
    position = {index: at for at, index in enumerate(plan.indices)}
    metric_filter = plan.spec.metric.partition(",")[2]
    for sample in samples:
        at = position[sample["doc_id"]]
        item = items[at]
        if str(sample["doc"].get("id", sample["doc_id"])) != item["id"]:
            raise ValueError(f"lm-eval logged {item['id']} of {plan.spec.id} as another document")
        for metric in sample["metrics"]:
            item["scores"][f"{metric},{sample['filter']}"] = plain(sample[metric])
        if generations:
            if sample["filter"] == metric_filter or item["filtered"] is None:
                item["filtered"] = plain(sample["filtered_resps"][0])
        else:
            found = [resps[0] for resps in sample["resps"]]  # with whether it is the likeliest
            item["lls"] = [float(ll[0] if isinstance(ll, list | tuple) else ll) for ll in found]
    for item, generation in zip(items, generations, strict=False):
        item |= {
            "output": generation.text,
            "stop_reason": generation.stop_reason,
            "tokens": len(generation.ids),
        }
    for item in items:
        value = item["scores"].get(plan.spec.metric)
        item["score"] = float(value) if isinstance(value, int | float) else None
    return items


def read_metric(plan: EvalPlan, results: Mapping[str, Any], key: str) -> float:
    """Return a score, or the value of a diagnostic, by its exact key "metric,filter".

    Raises KeyError for a key that lm-eval did not print, and ValueError for a score outside
    0..1, such as the 999 of the metric `bypass`.
    """
    printed = results[plan.task.task_name]
    if key not in printed:
        found = ", ".join(sorted(k for k in printed if "," in k and "_stderr" not in k))
        raise KeyError(f"{plan.spec.id} has no result {key!r}; lm-eval printed: {found}")
    score = float(printed[key])
    if plan.spec.diagnostic:
        return score
    if key.partition(",")[0] in PERCENT_METRICS:
        score = round(score / 100, 12)  # a perfect BLEU is 100.00000000000004
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"{key!r} of {plan.spec.id} is {score}, not a score in 0..1")
    return score
