"""The order of the rows, as a function: which row is the p-th of a run, for any p.

Nothing is drawn from a generator that moves on, so a run that resumes needs one integer, and the
answer depends neither on batch sizes nor on how often or in which sequence it is asked.

Without weights the sources are one list of ``N = sum(sizes)`` rows: epoch ``e`` is the positions
``e*N .. (e+1)*N - 1`` and holds every row exactly once, in a permutation keyed by (seed, e).

With weights the sources are interleaved in proportion: with shares ``w_k`` (the weights divided by
their sum) the j-th row taken from source k has the ideal time ``(j + 1/2) / w_k``, and the run is
all of them in the order of their times (ties: the lower source first). So after p positions
source k has been asked for ``p * w_k`` rows, off by a number that depends on the count of sources
alone, never on p. Each source runs through its own permutations, one per pass over it, so a small
source with a large weight comes round more often and still shows each row once per pass. An epoch
of a mixture is a unit of work, ``sum(sizes)`` positions: source k is then passed over
``w_k * N / sizes[k]`` times in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_CONCATENATED = -1  # the key of the one list that unweighted sources make


def permutation(size: int, seed: int, stream: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of ``range(size)``, uniform over seeds, keyed by (seed, stream, epoch).

    Made from the raw 64-bit output of Philox-4x64 (Salmon et al. 2011) by a stable sort, because
    numpy keeps that output fixed over its versions and makes no such promise for
    ``Generator.permutation``.
    """
    digest = hashlib.sha256(f"trimtab order:{seed}:{stream}:{epoch}".encode()).digest()
    keys = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(size)
    return np.argsort(keys, kind="stable")


class Order:
    """Position in the run -> (source, row), both from 0; see the module's docstring."""

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float] | None = None,
        *,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        """``sizes``: rows of each source, at least 1; ``weights``: positive, one a source."""
        assert sizes and all(size > 0 for size in sizes), f"sizes {sizes}"
        self.sizes = tuple(int(size) for size in sizes)
        self.seed = seed
        self.shuffle = shuffle
        self.shares: tuple[float, ...] | None = None
        if weights is not None:
            assert len(weights) == len(sizes), f"{len(weights)} weights, {len(sizes)} sources"
            assert all(0 < weight < float("inf") for weight in weights), f"weights {weights}"
            total = float(sum(weights))
            self.shares = tuple(float(weight) / total for weight in weights)
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        # A memo of a pure function: a step near the end of a pass needs two passes per source.
        self._permutation = lru_cache(maxsize=2 * len(self.sizes))(self._keyed_permutation)

    @property
    def rows_per_epoch(self) -> int:
        """Positions in one epoch: the number of rows of all sources together."""
        return sum(self.sizes)

    def row(self, position: int) -> tuple[int, int]:
        """The source and the row in it at ``position`` (from 0, without end)."""
        assert position >= 0, f"position {position}"
        if self.shares is None:
            epoch, index = divmod(position, self.rows_per_epoch)
            place = int(self._at(_CONCATENATED, self.rows_per_epoch, epoch, index))
            source = int(np.searchsorted(self._starts, place, side="right")) - 1
            return source, place - int(self._starts[source])
        source, taken = _interleaved(self.shares, position)
        epoch, index = divmod(taken, self.sizes[source])
        return source, int(self._at(source, self.sizes[source], epoch, index))

    def _at(self, stream: int, size: int, epoch: int, index: int) -> int:
        return int(self._permutation(stream, size, epoch)[index]) if self.shuffle else index

    def _keyed_permutation(self, stream: int, size: int, epoch: int) -> NDArray[np.int64]:
        return permutation(size, self.seed, stream, epoch)


def _time(taken: int, share: float) -> float:
    """When the ``taken``-th row (from 0) of a source with this share is due, in positions."""
    return (taken + 0.5) / share


def _due_before(time: float, share: float) -> int:
    """How many rows of the source are due before ``time``, by the very numbers of ``_time``."""
    count = max(0, int(time * share + 0.5))
    while count > 0 and _time(count - 1, share) >= time:
        count -= 1
    while _time(count, share) < time:
        count += 1
    return count


def _interleaved(shares: Sequence[float], position: int) -> tuple[int, int]:
    """The source at ``position``, and how many rows had been taken from it before.

    At most ``time + K/2`` rows are due before ``time``, so the merge can start K positions early
    and walk to the place: the cost does not grow with the position.
    """
    start = max(0.0, float(position - len(shares)))
    taken = [_due_before(start, share) for share in shares]
    passed = sum(taken)
    while True:
        source = min(range(len(shares)), key=lambda k: (_time(taken[k], shares[k]), k))
        if passed == position:
            return source, taken[source]
        taken[source] += 1
        passed += 1
