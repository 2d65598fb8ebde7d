"""Which packed positions see which, for one batch of trees.

A ``TreePlan`` is built once per batch and handed to every attention layer. It gives the same rule
in two forms: as dense masks (``visible``), and as a ``Program`` of rectangular blocks for kernels
that know nothing of trees.

The rule: a token sees the tokens on its own path, root to itself; where a layer has a sliding
window w, only those at a depth distance below w (transformers' convention: w includes the token
itself).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.data.batch import Span, TreeSpans

DENSE_TOKENS = 64
"""Neighbouring trees of up to this many tokens together are one masked block.

Below it a kernel call costs more than the masked part of the block (measured on 2 Zen 4 cores).
"""

SHORTEST_CHUNK = 64
"""Windowed segments are cut into chunks of the window, but never of fewer tokens than this."""


class Block(NamedTuple):
    """``rows`` attend to ``keys``: causally (rows = keys), by an additive mask, or to all of them.

    ``mask`` is [1, 1, rows, keys] with 0 and -inf; every row has at least one key to see.
    """

    rows: Span
    keys: Span
    causal: bool = False
    mask: Tensor | None = None


class Program(NamedTuple):
    """Blocks that together are tree attention.

    The rows of ``own`` are disjoint and cover the whole batch, the rows of ``cross`` are disjoint;
    where both have a row, the two results are merged by their log-sum-exps.
    """

    own: tuple[Block, ...]
    cross: tuple[Block, ...]


class Grid(NamedTuple):
    """Runs of whole trees as the rows of one rectangle, for kernels that take a batch.

    ``index`` [R, L] are packed positions; a row that is shorter is filled up with position 0, which
    sees itself alone there. ``visible`` is [R, 1, L, L] bool.
    """

    index: Tensor
    visible: Tensor


class Grids(NamedTuple):
    """All runs of a batch; ``place`` [T] is where a position lies among all rows of all grids."""

    grids: tuple[Grid, ...]
    place: Tensor


class LayerCall(NamedTuple):
    """One call of tree attention, recorded for the canary: which module, with which window."""

    module: int
    window: int | None


class TreePlan:
    """Attention of one packed batch.

    ``spans`` are the batch's and ``depth`` [T] is its depth tensor; masks are made on the device
    of ``depth`` when they are first asked for and kept, since every layer asks for the same ones.
    ``calls`` is None, or a list to which every attention call is appended.
    """

    def __init__(self, spans: Sequence[TreeSpans], depth: Tensor) -> None:
        self.spans = tuple(spans)
        self.depth = depth
        self.calls: list[LayerCall] | None = None
        self.deepest = max((_depth_of(tree) for tree in self.spans), default=0)
        tree, branch, lengths = [], [], []
        for index, spans_of_tree in enumerate(self.spans):
            for which, span in enumerate((spans_of_tree.trunk, *spans_of_tree.branches)):
                tree.append(index)
                branch.append(which)  # 0 is the trunk
                lengths.append(span.length)
        repeats = torch.tensor(lengths, dtype=torch.int64)
        self._tree = torch.tensor(tree).repeat_interleave(repeats).to(depth.device)
        self._branch = torch.tensor(branch).repeat_interleave(repeats).to(depth.device)
        self._programs: dict[tuple[int | None, torch.dtype], Program] = {}
        self._visible: dict[tuple[Span, int | None], Tensor] = {}
        self._grids: dict[tuple[int, int | None], Grids] = {}
        assert self._tree.numel() == depth.numel(), "spans and depth are of different batches"

    @property
    def token_count(self) -> int:
        """T, the packed tokens."""
        return self.depth.numel()

    def effective_window(self, window: int | None) -> int | None:
        """Return ``window``, or None where no path is long enough to meet it."""
        return None if window is None or window >= self.deepest else window

    def runs(self, limit: int) -> tuple[Span, ...]:
        """Cut the row between trees into spans of at most ``limit`` tokens, or of one tree."""
        return tuple(_span_of(run) for run in _runs(self.spans, limit))

    def visible(self, span: Span, window: int | None) -> Tensor:
        """[S, S] bool for a span of whole trees: may row i see column j? One that is kept."""
        key = (span, self.effective_window(window))
        if key not in self._visible:
            with torch.inference_mode(False):  # else no later backward pass could use it
                self._visible[key] = self._see(span, key[1])
        return self._visible[key]

    def grids(self, limit: int, window: int | None) -> Grids:
        """The runs of ``runs(limit)`` in rectangles: one, and others for trees beyond ``limit``."""
        key = (limit, self.effective_window(window))
        if key not in self._grids:
            sizes: dict[int, list[Span]] = {}
            for run in self.runs(limit):
                if run.length:
                    sizes.setdefault(-(-run.length // limit), []).append(run)
            with torch.inference_mode(False):
                made = [self._grid(runs, key[1]) for runs in sizes.values()]
                place = self.depth.new_empty(self.token_count, dtype=torch.int64)
                places = torch.cat([real.flatten() for _, real in made])
                positions = torch.cat([grid.index.flatten() for grid, _ in made])
                place[positions[places]] = places.nonzero().squeeze(1)
                self._grids[key] = Grids(tuple(grid for grid, _ in made), place)
        return self._grids[key]

    def _grid(self, runs: Sequence[Span], window: int | None) -> tuple[Grid, Tensor]:
        """Runs as rows; [R, L] bool says what is no filling."""
        # Kernels like lengths that are multiples of 8, and plan or compile for each anew.
        longest = -(-max(run.length for run in runs) // 64) * 64
        device = self.depth.device
        column = torch.arange(longest, device=device)
        starts = torch.tensor([run.start for run in runs], device=device)[:, None]
        lengths = torch.tensor([run.length for run in runs], device=device)[:, None]
        places = column < lengths
        index = (starts + column).where(places, 0)
        tree, branch, depth = self._tree[index], self._branch[index], self.depth[index]
        tree = tree.where(places, -1 - column)  # of no other position's tree
        distance = depth[:, :, None] - depth[:, None]
        on_path = (branch[:, :, None] == branch[:, None]) | (branch == 0)[:, None]
        visible = (tree[:, :, None] == tree[:, None]) & on_path & (distance >= 0)
        if window is not None:
            visible &= distance < window
        return Grid(index, visible[:, None]), places

    def program(self, window: int | None, dtype: torch.dtype) -> Program:
        """Blocks for layers with this window, their masks in ``dtype``; made once and kept."""
        key = (self.effective_window(window), dtype)
        if key not in self._programs:
            with torch.inference_mode(False):
                self._programs[key] = _Builder(self, key[0], dtype).build()
        return self._programs[key]

    def _see(self, span: Span, window: int | None) -> Tensor:
        tree, branch, depth = (
            x[span.start : span.end] for x in (self._tree, self._branch, self.depth)
        )
        on_path = (branch[:, None] == branch) | (branch == 0)
        distance = depth[:, None] - depth
        visible = (tree[:, None] == tree) & on_path & (distance >= 0)
        return visible if window is None else visible & (distance < window)


class _Builder:
    """Turns trees into blocks.

    A small tree, or several together, is one masked block. A larger one is a cascade: the trunk
    causally on itself, all branches together on the trunk, each branch causally on itself. With a
    window that some path outgrows, segments are cut into chunks of about the window: a chunk is
    causal on itself, and its first w-1 rows see the w-1 tokens before it. Nothing is ever
    quadratic in the length of a segment beyond its window, nor in the number of branches.
    """

    def __init__(self, plan: TreePlan, window: int | None, dtype: torch.dtype) -> None:
        self.plan, self.window, self.dtype = plan, window, dtype
        self.own: list[Block] = []
        self.cross: list[Block] = []
        self.masks: dict[tuple[int, int, int], Tensor] = {}

    def build(self) -> Program:
        for run in _runs(self.plan.spans, DENSE_TOKENS):
            span = _span_of(run)
            if not span.length:
                continue
            if len(run) == 1 and self._is_one_path(run[0]):
                self._add_segment(span, Span(span.start, span.start))
            elif span.length <= DENSE_TOKENS:
                mask = self._additive(self.plan.visible(span, self.window))
                self.own.append(Block(span, span, mask=mask))
            else:
                self._add_tree(run[0])
        return Program(tuple(self.own), tuple(self.cross))

    @staticmethod
    def _is_one_path(tree: TreeSpans) -> bool:
        return sum(branch.length > 0 for branch in tree.branches) <= 1

    def _add_tree(self, tree: TreeSpans) -> None:
        trunk = tree.trunk
        self._add_segment(trunk, Span(trunk.start, trunk.start))
        windowed = self.window is not None and self.window < _depth_of(tree)
        for branch in tree.branches:
            self._add_segment(branch, trunk if windowed else Span(trunk.end, trunk.end))
        if not windowed and trunk.length:
            self.cross.append(Block(Span(trunk.end, tree.end), trunk))

    def _add_segment(self, span: Span, before: Span) -> None:
        """Add a run of consecutive depths; ``before`` is what lies on its path just above it."""
        if not span.length:
            return
        window = self.window or span.length + before.length
        size = max(window, SHORTEST_CHUNK)
        for start in range(span.start, span.end, size):
            rows = Span(start, min(start + size, span.end))
            mask = self._mask(rows.length, rows.length, 0) if rows.length > window else None
            self.own.append(Block(rows, rows, causal=mask is None, mask=mask))
            above = before if start == span.start else Span(span.start, start)
            self._add_cross(rows, above, window)

    def _add_cross(self, rows: Span, above: Span, window: int) -> None:
        """Let the first rows see the end of what lies above them, as far as the window goes."""
        keys = Span(max(above.start, above.end - (window - 1)), above.end)
        rows = Span(rows.start, min(rows.end, rows.start + window - 1))
        if keys.length and rows.length:
            far = rows.length - 1 + keys.length  # distance from the last row to the first key
            mask = self._mask(rows.length, keys.length, keys.length) if far >= window else None
            self.cross.append(Block(rows, keys, mask=mask))

    def _mask(self, rows: int, keys: int, offset: int) -> Tensor:
        """Additive mask where row i lies at distance ``i - j + offset`` from key j."""
        shape = (rows, keys, offset)
        if shape not in self.masks:
            device = self.plan.depth.device
            row, key = torch.arange(rows, device=device), torch.arange(keys, device=device)
            distance = row[:, None] - key + offset
            assert self.window is not None, "masks are for windows"
            visible = (distance >= 0) & (distance < self.window)
            self.masks[shape] = self._additive(visible)
        return self.masks[shape]

    def _additive(self, visible: Tensor) -> Tensor:
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device)
        return mask.masked_fill_(~visible, float("-inf"))[None, None]


def _depth_of(tree: TreeSpans) -> int:
    return tree.trunk.length + max((branch.length for branch in tree.branches), default=0)


def _span_of(run: Sequence[TreeSpans]) -> Span:
    return Span(run[0].start, run[-1].end)


def _runs(trees: Sequence[TreeSpans], limit: int) -> Iterator[list[TreeSpans]]:
    """Group neighbouring trees into runs of at most ``limit`` tokens, or of a single tree."""
    run: list[TreeSpans] = []
    for tree in trees:
        if run and tree.end - run[0].start > limit:
            yield run
            run = []
        run.append(tree)
    if run:
        yield run
