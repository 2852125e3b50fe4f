"""Finds eval questions in what a model is trained, replayed or calibrated on."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any, NamedTuple

from clbench.ngrams import Corpus, Grams, Vocabulary, Wholes

CHECK = "leak.v1"  # what is looked for and how; part of what its results are kept under
NGRAM = 13
SHORTEST = 5  # tokens from which a probe may be found inside a longer text
SHORTEST_NGRAM = 6  # tokens from which a short probe's full length counts as its n-gram
TEMPLATE_SHARE = 0.01  # n-grams in more of an eval's own items are its template
MOST_EXACT, MOST_NGRAM = 0.001, 0.01  # shares of items above which a run is flagged
TRAINED_ON = ("train", "replay")  # first words of the names of sources that can flag a run
DOCUMENTS_AT_A_TIME = 2000
WORD = re.compile(r"[^\W_]+")

Tokens = tuple[str, ...]
Document = Sequence[str]  # the text fields of one source row, what is asked first
Owner = tuple[str, str]  # an eval and one of its items


class Probe(NamedTuple):
    """What is looked for of one item: its question, and the answers that count as right."""

    question: str
    golds: tuple[str, ...] = ()


class Origin(NamedTuple):
    """The data set behind a text, whatever the split; no configuration stands for all of them."""

    id: str
    config: str | None = None


@dataclass
class _Found:
    """Items of one eval met so far in one source."""

    exact: set[str] = field(default_factory=set)
    ngram: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)


def tokenize(text: str) -> Tokens:
    """Return the tokens of a text: NFKC, casefolded, split at what is not alphanumeric."""
    return tuple(_words(text))


def _words(text: str) -> list[str]:
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return WORD.findall(plain.casefold())


def report(
    sources: Mapping[str, Iterable[Document]],
    probes: Mapping[str, Mapping[str, Probe]],
    origins: Mapping[str, Collection[Origin]] | None = None,
) -> dict[str, Any]:
    """Return, ready for JSON, how much of each eval occurs in each source.

    `sources` maps a name ("train math", "replay", "calibration") to rows of text fields,
    `probes` an eval id to its items. `origins` has the data sets behind sources and evals,
    by name and eval id. The result has `evals` (source -> eval -> `leak_exact.v1`,
    `leak_ngram.v1`, `leak_answer.v1`, hit item ids), `same_source` (pairs) and `flags`.
    """
    index = Index(probes)
    scans = {name: index.scan(documents) for name, documents in sources.items()}
    return combine(scans, same_source(sources, probes, origins or {}))


def combine(
    scans: Mapping[str, Mapping[str, Any]], pairs: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Return the report of what `Index.scan` found by source, and the pairs of one data set.

    Where documents were removed, `before_removal` says how many, with the numbers of all of them.
    """
    evals = {name: found["evals"] for name, found in scans.items()}
    before = {
        name: {"removed": len(found["removed"]), "evals": found["all"]}
        for name, found in scans.items()
        if found["removed"]
    }
    return {
        "evals": evals,
        **({"before_removal": before} if before else {}),
        "same_source": [list(pair) for pair in pairs],
        "flags": ["leak"] * bool(leaked([evals])) + ["same_source"] * bool(pairs),
    }


def leaked(reports: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, frozenset[str]]:
    """Return, of the evals that leak, the items that any source of training or replay holds.

    A report is the block `evals` of a run's leaks. An eval leaks if one such source has more of
    its items than the thresholds allow.
    """
    trained = [
        (eval_id, numbers)
        for evals in reports
        for name, by_eval in evals.items()
        if name.split()[0] in TRAINED_ON
        for eval_id, numbers in by_eval.items()
    ]
    over = {
        eval_id
        for eval_id, numbers in trained
        if numbers["leak_exact.v1"] > MOST_EXACT or numbers["leak_ngram.v1"] > MOST_NGRAM
    }
    return {
        eval_id: frozenset(hit for e, numbers in trained if e == eval_id for hit in numbers["hits"])
        for eval_id in sorted(over)
    }


def same_source(
    sources: Collection[str], evals: Collection[str], origins: Mapping[str, Collection[Origin]]
) -> list[list[str]]:
    """Return the pairs of source and eval that one data set feeds, whatever the split."""
    return [
        [source, eval_id]
        for source in sources
        for eval_id in evals
        if any(_same(*pair) for pair in product(origins.get(source, ()), origins.get(eval_id, ())))
    ]


def _same(a: Origin, b: Origin) -> bool:
    return a.id == b.id and (a.config == b.config or None in (a.config, b.config))


class Index:
    """All probes of all evals, looked for together: a document is read once."""

    def __init__(self, probes: Mapping[str, Mapping[str, Probe]]) -> None:
        self.probes = probes
        self.owners: list[Owner] = [(e, name) for e, items in probes.items() for name in items]
        self.vocabulary = Vocabulary()
        questions = [
            self.vocabulary.learn(_words(probe.question))
            for items in probes.values()
            for probe in items.values()
        ]
        self.lengths = [len(ids) for ids in questions]
        self.wholes = Wholes(questions, SHORTEST)
        evals = [eval_id for eval_id, _ in self.owners]
        self.grams = Grams(questions, evals, SHORTEST_NGRAM, NGRAM, TEMPLATE_SHARE)
        self.short: dict[tuple[int, ...], list[int]] = {}
        for number, ids in enumerate(questions):
            if 0 < len(ids) < SHORTEST:
                self.short.setdefault(tuple(ids), []).append(number)

    def scan(self, documents: Iterable[Document], *, remove: bool = False) -> dict[str, Any]:
        """Return, ready for JSON, the numbers of every eval for one source.

        With `remove` the documents whose first field holds a probe in full are to be left out:
        `removed` has their numbers, `evals` the numbers of the others and `all` of all.
        """
        left: dict[str, _Found] = {eval_id: _Found() for eval_id in self.probes}
        gone: dict[str, _Found] = {eval_id: _Found() for eval_id in self.probes}
        removed: list[int] = []
        start = 0
        following = iter(documents)
        while chunk := list(islice(following, DOCUMENTS_AT_A_TIME)):
            for number, hits in self._scan_chunk(chunk):
                out = remove and hits.asked
                if out:
                    removed.append(start + number)
                self._note(gone if out else left, hits, chunk[number])
            start += len(chunk)
        everything = {e: _union(left[e], gone[e]) for e in self.probes}
        return {
            "evals": {e: self._numbers(e, found) for e, found in left.items()},
            "all": {e: self._numbers(e, found) for e, found in everything.items()},
            "removed": removed,
        }

    def _scan_chunk(self, chunk: Sequence[Document]) -> Iterator[tuple[int, _Hits]]:
        """Yield the documents with hits by their numbers in the chunk, in order."""
        fields = [[self.vocabulary.ids(_words(text)) for text in doc] for doc in chunk]
        corpus = Corpus([[i for part in parts for i in part] for parts in fields])
        hits: dict[int, _Hits] = defaultdict(_Hits)
        for at, probe in self.wholes.find(corpus):
            number = corpus.document(at)
            asked = int(corpus.starts[number]) + len(fields[number][0])  # where that field ends
            hits[number].exact.add(probe)
            hits[number].asked |= at + self.lengths[probe] <= asked
        for at, probe in self.grams.find(corpus):
            hits[corpus.document(at)].ngram.add(probe)
        for number, parts in enumerate(fields):
            for position, part in enumerate(parts):
                for probe in self.short.get(tuple(part), ()) if len(part) < SHORTEST else ():
                    hits[number].exact.add(probe)
                    hits[number].asked |= position == 0
        yield from sorted(hits.items())

    def _note(self, found: Mapping[str, _Found], hits: _Hits, document: Document) -> None:
        tokens = tuple(token for text in document for token in _words(text))
        for probe in hits.exact | hits.ngram:
            eval_id, name = self.owners[probe]
            of_eval = found[eval_id]
            if probe in hits.exact:
                of_eval.exact.add(name)
            if probe in hits.ngram:
                of_eval.ngram.add(name)
            if name not in of_eval.answered:
                golds = self.probes[eval_id][name].golds
                if any(_occurs(tokenize(gold), tokens) for gold in golds):
                    of_eval.answered.add(name)

    def _numbers(self, eval_id: str, found: _Found) -> dict[str, Any]:
        total, hits = len(self.probes[eval_id]), found.exact | found.ngram
        return {
            "leak_exact.v1": len(found.exact) / total,
            "leak_ngram.v1": len(found.ngram) / total,
            "leak_answer.v1": len(found.answered) / len(hits) if hits else None,
            "items": total,
            "hits": sorted(hits),
        }


@dataclass
class _Hits:
    """What one document holds, by the numbers of the probes."""

    exact: set[int] = field(default_factory=set)
    ngram: set[int] = field(default_factory=set)
    asked: bool = False  # a probe is in the first field in full


def _union(a: _Found, b: _Found) -> _Found:
    return _Found(a.exact | b.exact, a.ngram | b.ngram, a.answered | b.answered)


def _occurs(part: Tokens, tokens: Tokens) -> bool:
    size = len(part)
    return size > 0 and any(tokens[at : at + size] == part for at in range(len(tokens) - size + 1))
