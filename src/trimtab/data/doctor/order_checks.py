"""Checks of what rows of one prompt prefer together: contradictions, cycles, and the label noise.

The rows of a prompt make a directed graph: an edge from A to B where a row prefers A to B.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from trimtab.data.doctor.ledger import At, Rows
from trimtab.data.doctor.table import Comparisons, column, groups

Edge: TypeAlias = tuple[int, int]
Edges: TypeAlias = dict[Edge, list[int]]  # (winner, loser) -> rows, in their order


@dataclass
class LabelNoise:
    """How often a comparison is flipped, estimated from what one flip would break.

    Let every comparison be flipped with probability p, independently, in a true order. Two rows
    that compare the same two responses then disagree with probability 2p(1-p), and three rows that
    compare three responses with each other form a cycle with probability p(1-p): of the orders of
    three, flipping the outer comparison alone makes one cycle, flipping the two others the other.
    So p(1-p) = (disagreeing + cyclic) / (2 twice + triangles) by the method of moments, and p is
    its smaller root. Copies of a row agree, and so do pairs unrolled from one ranking: with such
    rows the estimate is too low.

    twice, disagreeing   pairs of rows that compare the same two responses, and those that disagree
    triangles, cyclic    triples of responses compared by three different rows, and the cycles
    """

    twice: int = 0
    disagreeing: int = 0
    triangles: int = 0
    cyclic: int = 0

    @property
    def estimate(self) -> float | None:
        """p, at most one half; None where no comparison can be checked against another."""
        checked = 2 * self.twice + self.triangles
        if not checked:
            return None
        product = min((self.disagreeing + self.cyclic) / checked, 0.25)
        return (1 - math.sqrt(1 - 4 * product)) / 2

    def __str__(self) -> str:
        return (
            f"estimated label noise {self.estimate or 0.0:.1%} of comparisons "
            f"({self.disagreeing:,} of {self.twice:,} repeated comparisons disagree, "
            f"{self.cyclic:,} of {self.triangles:,} triangles are cycles)"
        )

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "estimate": self.estimate,
            "repeated_comparisons": self.twice,
            "disagreeing": self.disagreeing,
            "triangles": self.triangles,
            "cyclic": self.cyclic,
        }


@dataclass
class Disorder:
    """What the rows of all prompts prefer against each other."""

    contradictory: list[At] = field(default_factory=list[At])
    cyclic: list[At] = field(default_factory=list[At])
    noise: LabelNoise = field(default_factory=LabelNoise)


def disorder(pairs: Comparisons, rows: Rows) -> Disorder:
    """Look at every prompt that more than one comparison has."""
    found = Disorder()
    number, winner, loser = (column(words) for words in (pairs.row, pairs.winner, pairs.loser))
    for group in groups(column(pairs.prompt)):
        numbers = number[group]
        if np.all(numbers == numbers[0]):
            continue  # one ranking is an order
        edges: Edges = defaultdict(list)
        for place in group:
            edges[int(winner[place]), int(loser[place])].append(int(number[place]))
        _count_repeated(edges, found.noise)
        _count_triangles(edges, found.noise)
        found.contradictory += contradictions(edges, rows)
        found.cyclic += cycles(edges)
    return found


def contradictions(edges: Edges, rows: Rows) -> Iterator[At]:
    """Rows that prefer A to B where another prefers B to A."""
    for (winner, loser), numbers in edges.items():
        against = edges.get((loser, winner))
        if against:
            yield from (At(number, f"against {rows.name(against[0])}") for number in numbers)


def cycles(edges: Edges) -> Iterator[At]:
    """Rows within cycles of three responses or more; contradictions aside, they are cycles of two.

    A comparison lies in a cycle exactly where both responses are in one strongly connected part.
    """
    after: dict[int, list[int]] = defaultdict(list)
    for winner, loser in edges:
        if (loser, winner) not in edges:
            after[winner].append(loser)
    part = _parts(after)
    sizes: dict[int, int] = defaultdict(int)
    for name in part.values():
        sizes[name] += 1
    for (winner, loser), numbers in edges.items():
        inside = loser in after.get(winner, ()) and part[winner] == part[loser]
        if inside and sizes[part[winner]] > 2:
            note = f"among {sizes[part[winner]]} responses"
            yield from (At(number, note) for number in numbers)


def _parts(after: dict[int, list[int]]) -> dict[int, int]:
    """Node -> a name of its strongly connected part (Kosaraju and Sharir, without recursion)."""
    before: dict[int, list[int]] = defaultdict(list)
    for node, following in after.items():
        for other in following:
            before[other].append(node)
    part: dict[int, int] = {}
    for root in reversed(_finished(after)):
        stack = [root]
        while stack:
            node = stack.pop()
            if node not in part:
                part[node] = root
                stack += before.get(node, ())
    return part


def _finished(after: dict[int, list[int]]) -> list[int]:
    """All nodes, each behind those that it leads to (but for cycles)."""
    seen: set[int] = set()
    order: list[int] = []
    for start in after:
        if start in seen:
            continue
        seen.add(start)
        stack = [(start, iter(after[start]))]
        while stack:
            node, following = stack[-1]
            for other in following:
                if other not in seen:
                    seen.add(other)
                    stack.append((other, iter(after.get(other, ()))))
                    break
            else:
                order.append(node)
                stack.pop()
    return order


def _count_repeated(edges: Edges, noise: LabelNoise) -> None:
    """Count pairs of rows that compare the same two responses."""
    for (winner, loser), numbers in edges.items():
        against = len(edges.get((loser, winner), ()))
        if against and winner > loser:
            continue  # counted from the other side
        total = len(numbers) + against
        noise.twice += total * (total - 1) // 2
        noise.disagreeing += len(numbers) * against


def _count_triangles(edges: Edges, noise: LabelNoise) -> None:
    """Count triples of responses that three rows compare with each other, all of one mind."""
    row: Edges = {
        edge: numbers for edge, numbers in edges.items() if (edge[1], edge[0]) not in edges
    }
    beside: dict[int, set[int]] = defaultdict(set)
    for winner, loser in row:
        beside[winner].add(loser)
        beside[loser].add(winner)
    for a, b in {(min(edge), max(edge)) for edge in row}:
        for c in beside[a] & beside[b]:
            if c < b:
                continue  # each triangle once, from its two smallest
            sides = [(x, y) if (x, y) in row else (y, x) for x, y in ((a, b), (b, c), (a, c))]
            if len({row[side][0] for side in sides}) == 3:
                noise.triangles += 1
                noise.cyclic += len({winner for winner, _ in sides}) == 3  # each wins once
