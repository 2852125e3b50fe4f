"""Many token sequences found in many documents at once, by rolling hashes that are then verified.

A window of n tokens has the hash sum of r[token i] P^i modulo 2^64, with a random r per token;
from prefix sums it costs two operations whatever n. Only windows whose hash is known are compared
token by token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Integers = NDArray[np.int64]

BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
INVERSE = pow(BASE, -1, 2**64)
UNKNOWN = 0  # the id of tokens that no sequence has; also stands between documents
SLOTS = 16  # of the filter per known hash


class Vocabulary:
    """Numbers from 1 for the tokens of what is looked for."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def learn(self, tokens: Sequence[str]) -> list[int]:
        """Return the ids of tokens, new ones included."""
        numbers = self._numbers
        return [numbers.setdefault(token, len(numbers) + 1) for token in tokens]

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """Return the ids of tokens, UNKNOWN for those that were not learned."""
        get = self._numbers.get
        return [get(token, UNKNOWN) for token in tokens]


class Corpus:
    """Documents as one row of ids, UNKNOWN after each."""

    def __init__(self, documents: Sequence[Sequence[int]]) -> None:
        self.lengths = np.array([len(ids) for ids in documents], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths + 1)])  # one more than documents
        flat: list[int] = []
        for ids in documents:
            flat += ids
            flat.append(UNKNOWN)
        self.ids = np.array(flat, dtype=np.int64)

    @cached_property
    def _powers(self) -> tuple[Hashes, Hashes]:
        size = len(self.ids)
        return _powers_of(BASE, size), _powers_of(INVERSE, size)

    @cached_property
    def _prefix(self) -> Hashes:
        values = _scrambled(self.ids) * self._powers[0]
        return np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(values, dtype=np.uint64)])

    def hashes(self, size: int, at: Integers | None = None) -> Hashes:
        """Return the hash of the window of `size` ids at every position, or at some."""
        if at is None:
            last = max(0, len(self.ids) - size + 1)
            sums = self._prefix[size : size + last] - self._prefix[:last]
            return np.asarray(sums * self._powers[1][:last])
        return np.asarray((self._prefix[at + size] - self._prefix[at]) * self._powers[1][at])

    def document(self, at: int) -> int:
        """Return the number of the document that a position is in."""
        return int(np.searchsorted(self.starts, at, side="right")) - 1


class Wholes:
    """Sequences of at least `shortest` ids, found where they stand in full."""

    def __init__(self, sequences: Sequence[Sequence[int]], shortest: int) -> None:
        self.shortest = shortest
        long = [number for number, ids in enumerate(sequences) if len(ids) >= shortest]
        own = Corpus([sequences[number] for number in long])
        owners, places = np.array(long, dtype=np.int64), np.zeros(len(long), dtype=np.int64)
        starts, lengths = own.starts[:-1], own.lengths
        self.heads = _Table(own.hashes(shortest, starts), owners, places, shortest, sequences)
        self.tables = []
        for size in np.unique(lengths).tolist():
            of_size = lengths == size
            hashes = own.hashes(size, starts[of_size])
            self.tables.append(_Table(hashes, owners[of_size], places[of_size], size, sequences))

    def find(self, corpus: Corpus) -> Iterator[tuple[int, int]]:
        """Yield the position and the number of every sequence in the corpus."""
        (heads,) = np.nonzero(self.heads.known(corpus.hashes(self.shortest)))
        for table in self.tables:
            at = heads[heads + table.size <= len(corpus.ids)]
            yield from table.find(corpus, at, corpus.hashes(table.size, at))


class Grams:
    """The n-grams of sequences; one of `shortest` to n - 1 ids is itself an n-gram.

    `groups` says which sequences belong together: an n-gram in more than a share `common` of its
    group, and in more than one sequence, is the group's template and is not looked for.
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[int]],
        groups: Sequence[str],
        shortest: int,
        n: int,
        common: float,
    ) -> None:
        own = Corpus(sequences)
        _, group = np.unique(np.array(groups), return_inverse=True)
        most = np.maximum(common * np.bincount(group), 1.0)
        owner = np.repeat(np.arange(len(sequences)), own.lengths + 1)
        place = np.arange(len(own.ids)) - own.starts[owner]
        self.tables = []
        for size in range(shortest, n + 1):
            if size < n:
                (at,) = np.nonzero((place == 0) & (own.lengths[owner] == size))
            else:
                (at,) = np.nonzero(place + n <= own.lengths[owner])
            if len(at):
                hashes = own.hashes(size, at)
                kept = _rare(hashes, owner[at], group, most)
                window = owner[at][kept], place[at][kept]
                self.tables.append(_Table(hashes[kept], *window, size, sequences))

    def find(self, corpus: Corpus) -> Iterator[tuple[int, int]]:
        """Yield a position and the number of the sequence for every n-gram in the corpus."""
        for table in self.tables:
            hashes = corpus.hashes(table.size)
            yield from table.find(corpus, np.arange(len(hashes)), hashes)


class _Table:
    """Windows of one size by their hashes: whose they are and where in it they start."""

    def __init__(
        self,
        hashes: Hashes,
        owners: Integers,
        places: Integers,
        size: int,
        sequences: Sequence[Sequence[int]],
    ) -> None:
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.owners, self.places = hashes[order], owners[order], places[order]
        self.size, self.sequences = size, sequences
        slots = 1 << max(10, (SLOTS * len(hashes)).bit_length())
        self._mask = np.uint64(slots - 1)
        self._filter = np.zeros(slots, dtype=np.bool_)
        self._filter[hashes & self._mask] = True

    def known(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Return which hashes are in the table; the filter settles nearly all of them."""
        found = self._filter[hashes & self._mask]
        (at,) = np.nonzero(found)
        place = np.minimum(np.searchsorted(self.hashes, hashes[at]), len(self.hashes) - 1)
        found[at] = self.hashes[place] == hashes[at]
        return np.asarray(found)

    def find(self, corpus: Corpus, at: Integers, hashes: Hashes) -> Iterator[tuple[int, int]]:
        """Yield position and owner for the positions whose window is in the table, verified."""
        (known,) = np.nonzero(self.known(hashes))
        first = np.searchsorted(self.hashes, hashes[known], side="left").tolist()
        last = np.searchsorted(self.hashes, hashes[known], side="right").tolist()
        for position, low, high in zip(at[known].tolist(), first, last, strict=True):
            window = corpus.ids[position : position + self.size].tolist()
            for entry in range(low, high):
                owner, place = int(self.owners[entry]), int(self.places[entry])
                if list(self.sequences[owner][place : place + self.size]) == window:
                    yield position, owner


def _rare(
    hashes: Hashes, owners: Integers, group: Integers, most: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return which windows to keep: each once per owner, if few enough of a group have it."""
    order = np.lexsort((owners, hashes))
    pairs = np.stack([hashes[order], owners[order].astype(np.uint64)])
    order = order[np.concatenate([[True], (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)])]
    groups = group[owners[order]]  # owners of a group are neighbors, so runs are (hash, group)
    changes = (np.diff(hashes[order]) != 0) | (np.diff(groups) != 0)
    run = np.concatenate([[0], np.cumsum(changes)])
    counts = np.bincount(run)
    return np.asarray(order[counts[run] <= most[groups]])


def _powers_of(base: int, count: int) -> Hashes:
    """Return base^0, base^1, ... modulo 2^64 (count,)."""
    powers = np.full(count, base, dtype=np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _scrambled(ids: Integers) -> Hashes:
    """Return a 64-bit number per id that looks random (the finalizer of splitmix64)."""
    x = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
