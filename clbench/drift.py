"""Format drift told from knowledge loss: lenient matching, and ranking the gold among others.

Pure functions of texts. Everything that is drawn follows `seeded_order`, so that no random
generator's version can change an eval.
"""

from __future__ import annotations

import hashlib
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

NUM_CANDIDATES = 32
MAX_ALIASES = 8  # distinct ones whose likelihood is taken
_ARTICLES = frozenset({"a", "an", "the"})


def normalize(text: str) -> tuple[str, ...]:
    """Return the words of a text: NFKC, casefolded, punctuation as space, no articles."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    spaced = "".join(" " if _is_punctuation(c) else c for c in folded)
    return tuple(word for word in spaced.split() if word not in _ARTICLES)


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def usable_aliases(aliases: Iterable[str]) -> list[str]:
    """Return the distinct accepted answers, those under two characters only if none is longer."""
    distinct = list(dict.fromkeys(aliases))
    return [alias for alias in distinct if len(alias) >= 2] or distinct


def lenient_match(output: str, aliases: Iterable[str]) -> bool:
    """Return whether the words of any alias occur contiguously in the output."""
    words = normalize(output)
    return any(_contains(words, normalize(alias)) for alias in usable_aliases(aliases))


def _contains(words: Sequence[str], part: Sequence[str]) -> bool:
    size = len(part)
    starts = range(len(words) - size + 1)
    return size > 0 and any(tuple(words[at : at + size]) == tuple(part) for at in starts)


def seeded_order(names: Iterable[str], seed: str) -> list[str]:
    """Return the names in a fixed arbitrary order that `seed` decides.

    Each name's place depends on itself alone: the first n of a subset stay in order when
    names are added, and no generator is involved.
    """
    return sorted(names, key=lambda name: hashlib.blake2b(f"{seed}|{name}".encode()).digest())


def derangement(aliases: Mapping[str, Sequence[str]], seed: str) -> dict[str, str]:
    """Return for each item id the id of another item, a permutation that shares no answer.

    Items whose answers all items share keep a partner with a common answer; a single item
    is its own partner.
    """
    order = seeded_order(aliases, seed)
    words = {name: {normalize(alias) for alias in aliases[name]} for name in order}
    partners = order[1:] + order[:1]

    def fits(at: int, partner: str) -> bool:
        return order[at] != partner and words[order[at]].isdisjoint(words[partner])

    for at, partner in enumerate(partners):
        if fits(at, partner):
            continue
        for other, candidate in enumerate(partners):
            if fits(at, candidate) and fits(other, partner):
                partners[at], partners[other] = candidate, partner
                break
    return dict(zip(order, partners, strict=True))


def draw_candidates(
    golds: Mapping[str, Sequence[str]],
    kinds: Mapping[str, str],
    seed: str,
    names: Sequence[str] | None = None,
) -> dict[str, list[str]]:
    """Return for each item id 32 candidate answers: its canonical gold, then 31 of others.

    With `names`, for these items alone; what is drawn for an item does not depend on them.

    `golds` holds the accepted answers per id, the canonical one first; `kinds` the type of
    answer. Distractors are of the same kind while that has enough distinct answers, are
    distinct after normalizing, and never equal an accepted answer. A set with too few
    distinct answers gives shorter lists.
    """
    by_kind: dict[str, list[str]] = {}
    for name in sorted(golds):
        by_kind.setdefault(kinds[name], []).append(golds[name][0])
    everything = [answer for kind in sorted(by_kind) for answer in by_kind[kind]]
    return {
        name: _draw(golds[name], by_kind[kinds[name]], everything, f"{seed}|{name}")
        for name in (golds if names is None else names)
    }


def _draw(
    accepted: Sequence[str], same_kind: Sequence[str], everything: Sequence[str], seed: str
) -> list[str]:
    drawn = [accepted[0]]
    taken = {normalize(alias) for alias in accepted}
    for pool in (same_kind, everything):
        for answer in seeded_order(dict.fromkeys(pool), seed):
            if len(drawn) == NUM_CANDIDATES:
                return drawn
            if normalize(answer) not in taken:
                taken.add(normalize(answer))
                drawn.append(answer)
    return drawn


def gold_rank(scores: Sequence[float]) -> int:
    """Return the rank of the first score; ties count against it."""
    gold, *others = scores
    return 1 + sum(other >= gold for other in others)
