"""Finds eval questions in what a model is trained, replayed or calibrated on."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

NGRAM = 13
SHORTEST = 5  # tokens from which a probe may be found inside a longer text
SHORTEST_NGRAM = 6  # tokens from which a short probe's full length counts as its n-gram
TEMPLATE_SHARE = 0.01  # n-grams in more of an eval's own items are its template
MOST_EXACT, MOST_NGRAM = 0.001, 0.01  # shares of items above which a run is flagged
TRAINED_ON = ("train", "replay")  # first words of the names of sources that can flag a run

Tokens = tuple[str, ...]
Document = Sequence[str]  # the text fields of one source row


class Probe(NamedTuple):
    """What is looked for of one item: its question, and the answers that count as right."""

    question: str
    golds: tuple[str, ...] = ()


@dataclass
class _Found:
    """Items of one eval met so far in one source."""

    exact: set[str] = field(default_factory=set)
    ngram: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)


def tokenize(text: str) -> Tokens:
    """Return the tokens of a text: NFKC, casefolded, split at what is not alphanumeric."""
    return tuple(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))


def report(
    sources: Mapping[str, Iterable[Document]],
    probes: Mapping[str, Mapping[str, Probe]],
    data_ids: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return, ready for JSON, how much of each eval occurs in each source.

    `sources` maps a name ("train math", "replay", "calibration") to rows of text fields,
    `probes` an eval id to its items. `data_ids` names the data set behind sources and evals,
    by name and eval id. The result has `evals` (source -> eval -> `leak_exact.v1`,
    `leak_ngram.v1`, `leak_answer.v1`, hit item ids), `same_source` (pairs) and `flags`.
    """
    index = _Index(probes)
    evals = {name: index.scan(documents) for name, documents in sources.items()}
    leaked = any(
        numbers["leak_exact.v1"] > MOST_EXACT or numbers["leak_ngram.v1"] > MOST_NGRAM
        for name, by_eval in evals.items()
        if name.split()[0] in TRAINED_ON
        for numbers in by_eval.values()
    )
    pairs = same_source(sources, probes, data_ids or {})
    flags = ["leak"] * leaked + ["same_source"] * bool(pairs)
    return {"evals": evals, "same_source": pairs, "flags": flags}


def same_source(
    sources: Collection[str], evals: Collection[str], data_ids: Mapping[str, str]
) -> list[list[str]]:
    """Return the pairs of source and eval that one data set feeds, whatever the split."""
    return [
        [source, eval_id]
        for source in sources
        for eval_id in evals
        if source in data_ids and data_ids[source] == data_ids.get(eval_id)
    ]


class _Index:
    """All probes, found by the first tokens of what is looked for."""

    def __init__(self, probes: Mapping[str, Mapping[str, Probe]]) -> None:
        self.probes = probes
        self.wholes: dict[Tokens, list[tuple[str, str]]] = defaultdict(list)
        self.inside: dict[Tokens, set[Tokens]] = defaultdict(set)  # first 5 tokens -> probes
        self.ngrams: dict[Tokens, list[tuple[str, str]]] = defaultdict(list)
        for eval_id, items in probes.items():
            self._add(eval_id, {name: tokenize(probe.question) for name, probe in items.items()})

    def _add(self, eval_id: str, questions: Mapping[str, Tokens]) -> None:
        seen = Counter(gram for tokens in questions.values() for gram in set(_ngrams(tokens)))
        most = TEMPLATE_SHARE * len(questions)
        for name, tokens in questions.items():
            if not tokens:
                continue
            self.wholes[tokens].append((eval_id, name))
            if len(tokens) >= SHORTEST:
                self.inside[tokens[:SHORTEST]].add(tokens)
            for gram in set(_ngrams(tokens)):
                if seen[gram] <= max(most, 1):
                    self.ngrams[gram].append((eval_id, name))
        self.lengths = sorted({len(gram) for gram in self.ngrams})

    def scan(self, documents: Iterable[Document]) -> dict[str, dict[str, Any]]:
        """Return the numbers of every eval for one source."""
        found = {eval_id: _Found() for eval_id in self.probes}
        for document in documents:
            self._scan_document(document, found)
        return {eval_id: self._numbers(eval_id, hits) for eval_id, hits in found.items()}

    def _scan_document(self, document: Document, found: Mapping[str, _Found]) -> None:
        fields = [tokenize(text) for text in document]
        tokens = tuple(token for part in fields for token in part)
        exact = {owner for whole in self._wholes_in(tokens, fields) for owner in self.wholes[whole]}
        ngram = {owner for gram in self._grams_in(tokens) for owner in self.ngrams[gram]}
        for eval_id, name in exact:
            found[eval_id].exact.add(name)
        for eval_id, name in ngram:
            found[eval_id].ngram.add(name)
        for eval_id, name in exact | ngram:
            golds = self.probes[eval_id][name].golds
            if any(_occurs(tokenize(gold), tokens) for gold in golds):
                found[eval_id].answered.add(name)

    def _wholes_in(self, tokens: Tokens, fields: Sequence[Tokens]) -> Iterator[Tokens]:
        yield from (part for part in fields if len(part) < SHORTEST and part in self.wholes)
        for at in range(len(tokens) - SHORTEST + 1):
            for whole in self.inside.get(tokens[at : at + SHORTEST], ()):
                if tokens[at : at + len(whole)] == whole:
                    yield whole

    def _grams_in(self, tokens: Tokens) -> Iterator[Tokens]:
        for length in self.lengths:
            for at in range(len(tokens) - length + 1):
                gram = tokens[at : at + length]
                if gram in self.ngrams:
                    yield gram

    def _numbers(self, eval_id: str, found: _Found) -> dict[str, Any]:
        total, hits = len(self.probes[eval_id]), found.exact | found.ngram
        return {
            "leak_exact.v1": len(found.exact) / total,
            "leak_ngram.v1": len(found.ngram) / total,
            "leak_answer.v1": len(found.answered) / len(hits) if hits else None,
            "items": total,
            "hits": sorted(hits),
        }


def _ngrams(tokens: Tokens) -> list[Tokens]:
    """Return a probe's 13-grams; 6 to 12 tokens are one n-gram, fewer are none."""
    if SHORTEST_NGRAM <= len(tokens) < NGRAM:
        return [tokens]
    return [tokens[at : at + NGRAM] for at in range(len(tokens) - NGRAM + 1)]


def _occurs(part: Tokens, tokens: Tokens) -> bool:
    size = len(part)
    return size > 0 and any(tokens[at : at + size] == part for at in range(len(tokens) - size + 1))
