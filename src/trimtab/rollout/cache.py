"""Keys and values of running sequences: prompts shared by their samples, and each sample's own.

Two arenas of equal places: one holds the prompts that are in use, one what each row has sampled so
far. A row sees its prompt's place and its own. Within an arena, neighbouring places are read by one
batched product, as far as the longest of them reaches; ``runs_of`` cuts where that would read too
much for nothing.

Shapes: N places of C tokens, H_kv key heads, D and D' sizes of a key and a value head; a layer's
keys are [N, H_kv, C, D], its values [N, H_kv, C, D'].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

WASTE_TOKENS = 256
"""Places read together may read so many tokens for nothing: about what another call costs."""

SHORTEST = 64
"""Tokens that a place of the rows' own arena begins with; it doubles when one is full."""


class Run(NamedTuple):
    """Places ``start`` to ``stop`` (exclusive), read as far as ``length`` tokens."""

    start: int
    stop: int
    length: int


def runs_of(lengths: Sequence[int], waste: int = WASTE_TOKENS) -> list[Run]:
    """Cut neighbouring places into runs; places of length 0 are read by none, or for nothing."""
    runs: list[Run] = []
    start = end = longest = total = 0
    for place, length in enumerate(lengths):
        if not length:
            continue
        most = max(longest, length)
        if longest and most * (place + 1 - start) - total - length <= waste:
            end, longest, total = place + 1, most, total + length
            continue
        if longest:
            runs.append(Run(start, end, longest))
        start, end, longest, total = place, place + 1, length, length
    if longest:
        runs.append(Run(start, end, longest))
    return runs


class Arena:
    """Places for keys and values, layer by layer, zero where nothing has been written.

    Layers come into being when they are first asked for, since only the model's attention knows
    their shapes. What was written stays until it is written over: it has to be finite, because a
    masked token has weight 0, and 0 times infinity is no number.
    """

    def __init__(self, places: int, capacity: int) -> None:
        self.places = places
        self.capacity = capacity
        self._layers: list[tuple[Tensor, Tensor]] = []

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer; made like ``key`` and ``value`` [..., H_kv, D] if missing."""
        assert index <= len(self._layers), "layers are called in order"
        if index == len(self._layers):
            shape = self.places, key.shape[-2], self.capacity
            made = (x.new_zeros(*shape, x.shape[-1]) for x in (key, value))
            self._layers.append((next(made), next(made)))
        return self._layers[index]

    def reserve(self, places: int, capacity: int) -> None:
        """Make room for so many places of so many tokens; what was written moves with them."""
        if places <= self.places and capacity <= self.capacity:
            return
        self.places, self.capacity = max(places, self.places), max(capacity, self.capacity)
        for index, pair in enumerate(self._layers):
            grown = []
            for old in pair:
                new = old.new_zeros(self.places, old.shape[1], self.capacity, old.shape[3])
                new[: old.shape[0], :, : old.shape[2]] = old
                grown.append(new)
            self._layers[index] = (grown[0], grown[1])

    def token_bytes(self) -> int:
        """What a token of a place takes, over all layers that there are."""
        stores = (store for pair in self._layers for store in pair)
        return sum(x.shape[1] * x.shape[3] * x.element_size() for x in stores)

    def move(self, sources: Tensor, targets: Tensor, length: int) -> None:
        """Copy the first ``length`` tokens of places ``sources`` [n] over those of ``targets``."""
        for pair in self._layers:
            for store in pair:
                part = store[:, :, :length]
                part.index_copy_(0, targets, part.index_select(0, sources))


class KeyValues:
    """Both arenas: ``prompts``, by prompt in use, and ``own``, by row."""

    def __init__(self, *, rows: int, prompts: int, prompt_tokens: int, new_tokens: int) -> None:
        """``prompts`` is a first guess, ``rows`` and the lengths are the most there will be."""
        self.new_tokens = new_tokens
        self.prompts = Arena(prompts, prompt_tokens)
        self.own = Arena(rows, min(SHORTEST, new_tokens))

    def reserve_own(self, length: int) -> None:
        """Make room for ``length`` sampled tokens a row."""
        if length > self.own.capacity:
            wanted = min(self.new_tokens, max(length, 2 * self.own.capacity))
            self.own.reserve(self.own.places, wanted)

    def token_bytes(self) -> int:
        """What a token takes, over all layers that there are."""
        return self.own.token_bytes()
