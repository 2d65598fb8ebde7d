"""Token trees in columns: small in memory, quick to index, saved without pickle.

A tree is a run of segments, its trunk and then its branches, and a segment is a run of tokens:

    ids       int32 [T]     all tokens            trained  uint8 [T]   0 or 1
    segment   int64 [S+1]   tokens of segment s:  ids[segment[s] : segment[s + 1]]
    tree      int64 [R+1]   segments of tree r:   tree[r] (its trunk) to tree[r + 1]
    compare   int64 [R+1]   comparisons of tree r

Branch columns (ranks, scores, labels, classes) have an entry for every segment, unused ones 0;
``has`` says which of the four a tree has (bits 1, 2, 4, 8).
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from trimtab.data.trees import Branch, Comparison, Origin, TokenTree

_DTYPES: dict[str, str] = {
    "ids": "int32",
    "trained": "uint8",
    "segment": "int64",
    "tree": "int64",
    "compare": "int64",
    "winner": "int32",
    "loser": "int32",
    "pair_weight": "float64",
    "margin": "float64",
    "ranks": "float64",
    "scores": "float64",
    "labels": "uint8",
    "classes": "int32",
    "has": "uint8",
    "weight": "float64",
    "source": "int32",
    "row": "int64",
    "part": "int32",
}
_HAS = {"ranks": 1, "scores": 2, "labels": 4, "classes": 8}


class TreeStore(Sequence[TokenTree]):
    """Trees by index; ``columns`` are the arrays above, ``sources`` the names in ``Origin``."""

    def __init__(self, columns: dict[str, NDArray[Any]], sources: Sequence[str]) -> None:
        assert set(columns) == set(_DTYPES), sorted(set(columns) ^ set(_DTYPES))
        self.columns = {name: np.asarray(columns[name], dtype) for name, dtype in _DTYPES.items()}
        self.sources = tuple(sources)

    @classmethod
    def of(cls, trees: Iterable[TokenTree]) -> TreeStore:
        """Collect trees; they are not kept as objects."""
        builder = _Builder()
        for tree in trees:
            builder.add(tree)
        return cls(builder.columns(), list(builder.sources))

    def __len__(self) -> int:
        return len(self.columns["has"])

    def __getitem__(self, index: Any) -> Any:
        """The tree at ``index``, or the list of trees of a slice."""
        if isinstance(index, slice):
            return [self._tree(i) for i in range(*index.indices(len(self)))]
        position = int(index)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(f"tree {index} of {len(self)}")
        return self._tree(position)

    def __iter__(self) -> Iterator[TokenTree]:
        return (self._tree(i) for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TreeStore):
            return NotImplemented
        return self.sources == other.sources and all(
            np.array_equal(column, other.columns[name]) for name, column in self.columns.items()
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def token_counts(self) -> NDArray[np.int64]:
        """[R] tokens of each tree, the trunk once (``TokenTree.token_count``)."""
        return np.diff(self.columns["segment"][self.columns["tree"]])

    @property
    def trained_counts(self) -> NDArray[np.int64]:
        """[R] trained tokens of each tree."""
        before = np.concatenate(([0], np.cumsum(self.columns["trained"], dtype=np.int64)))
        return np.diff(before[self.columns["segment"][self.columns["tree"]]])

    @property
    def depths(self) -> NDArray[np.int64]:
        """[R] tokens on the longest path from root to leaf (``TokenTree.depth``)."""
        lengths = np.diff(self.columns["segment"])
        tree = self.columns["tree"]
        if not len(self):
            return np.zeros(0, np.int64)
        trunks = lengths[tree[:-1]]
        branches = lengths.copy()
        branches[tree[:-1]] = 0
        return trunks + np.maximum.reduceat(branches, tree[:-1])

    def row_key(self, index: int) -> str:
        """Digest of a tree's ids and masks: equal for equal tokens, wherever they came from."""
        columns = self.columns
        first, last = columns["tree"][index], columns["tree"][index + 1]
        bounds = columns["segment"][first : last + 1]
        digest = hashlib.blake2b(digest_size=16)
        digest.update((bounds - bounds[0]).astype("<i8").tobytes())
        digest.update(columns["ids"][bounds[0] : bounds[-1]].astype("<i4").tobytes())
        digest.update(columns["trained"][bounds[0] : bounds[-1]].tobytes())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """SHA-256 of everything in the store: the identity of a data set for resuming."""
        digest = hashlib.sha256("\0".join(self.sources).encode())
        for name, dtype in _DTYPES.items():
            column = self.columns[name].astype(np.dtype(dtype).newbyteorder("<"))
            digest.update(f"{name} {len(column)} ".encode() + column.tobytes())
        return digest.hexdigest()

    def _tree(self, index: int) -> TokenTree:
        columns = self.columns
        first, last = int(columns["tree"][index]), int(columns["tree"][index + 1])
        bounds = columns["segment"][first : last + 1].tolist()
        ids = columns["ids"][bounds[0] : bounds[-1]].tolist()
        trained = columns["trained"][bounds[0] : bounds[-1]].astype(bool).tolist()
        cuts = [bound - bounds[0] for bound in bounds]
        segments = [
            Branch(tuple(ids[a:b]), tuple(trained[a:b])) for a, b in itertools.pairwise(cuts)
        ]
        has = int(columns["has"][index])

        def branch_column(name: str) -> tuple[Any, ...]:
            return tuple(columns[name][first + 1 : last].tolist()) if has & _HAS[name] else ()

        return TokenTree(
            segments[0],
            tuple(segments[1:]),
            self._comparisons(index),
            Origin(
                self.sources[int(columns["source"][index])],
                int(columns["row"][index]),
                int(columns["part"][index]),
            ),
            branch_column("ranks"),
            branch_column("scores"),
            tuple(bool(label) for label in branch_column("labels")),
            float(columns["weight"][index]),
            branch_column("classes"),
        )

    def _comparisons(self, index: int) -> tuple[Comparison, ...]:
        columns = self.columns
        chosen = slice(int(columns["compare"][index]), int(columns["compare"][index + 1]))
        names = ("winner", "loser", "pair_weight", "margin")
        rows = zip(*(columns[name][chosen].tolist() for name in names), strict=True)
        return tuple(Comparison(*row) for row in rows)


class _Builder:
    """Grows the columns tree by tree."""

    def __init__(self) -> None:
        codes = {"int32": "i", "uint8": "B", "int64": "q", "float64": "d"}
        self.arrays: dict[str, array[Any]] = {
            name: cast("array[Any]", array(codes[dtype])) for name, dtype in _DTYPES.items()
        }
        for name in ("segment", "tree", "compare"):
            self.arrays[name].append(0)
        self.sources: dict[str, int] = {}

    def add(self, tree: TokenTree) -> None:
        arrays = self.arrays
        given = {name: getattr(tree, name) for name in _HAS}
        for column in given.values():
            assert len(column) in (0, len(tree.branches)), f"{tree.origin}: a value for each branch"
        for segment in (tree.trunk, *tree.branches):
            assert len(segment.ids) == len(segment.trained), tree.origin
            arrays["ids"].extend(segment.ids)
            arrays["trained"].extend(segment.trained)
            arrays["segment"].append(len(arrays["ids"]))
        arrays["tree"].append(len(arrays["segment"]) - 1)
        blank = (0,) * len(tree.branches)
        for name, values in given.items():
            arrays[name].extend((0, *(values or blank)))
        arrays["has"].append(sum(bit for name, bit in _HAS.items() if given[name]))
        for comparison in tree.comparisons:
            arrays["winner"].append(comparison.winner)
            arrays["loser"].append(comparison.loser)
            arrays["pair_weight"].append(comparison.weight)
            arrays["margin"].append(comparison.margin)
        arrays["compare"].append(len(arrays["winner"]))
        arrays["weight"].append(tree.weight)
        arrays["source"].append(self.sources.setdefault(tree.origin.source, len(self.sources)))
        arrays["row"].append(tree.origin.row)
        arrays["part"].append(tree.origin.part)

    def columns(self) -> dict[str, NDArray[Any]]:
        return {name: np.array(values, _DTYPES[name]) for name, values in self.arrays.items()}
