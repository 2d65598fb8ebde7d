from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.data.order import Order, permutation

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=5)


def all_rows(sizes: list[int]) -> list[tuple[int, int]]:
    return [(source, row) for source, size in enumerate(sizes) for row in range(size)]


@given(SIZES, st.integers(-(2**40), 2**40), st.integers(0, 1000), st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_every_row_exactly_once(sizes, seed, epoch, shuffle):
    order = Order(sizes, seed=seed, shuffle=shuffle)
    count = order.rows_per_epoch
    assert count == sum(sizes)
    seen = [order.row(epoch * count + index) for index in range(count)]
    assert sorted(seen) == all_rows(sizes)
    if not shuffle:
        assert seen == all_rows(sizes)


def test_coverage_fails_on_sampling_with_replacement():
    """The twin: the check above refuses draws that are not a permutation."""
    draws = np.random.Generator(np.random.Philox(key=1)).integers(0, 30, 30)
    assert sorted((0, int(row)) for row in draws) != all_rows([30])


@given(st.data(), SIZES, st.integers(0, 99), st.booleans())
@settings(max_examples=40, deadline=None)
def test_random_access_agrees_with_reading_in_sequence(data, sizes, seed, weighted):
    weights = None
    if weighted:
        positive = st.floats(0.01, 100)
        weights = data.draw(st.lists(positive, min_size=len(sizes), max_size=len(sizes)))
    sequence = [Order(sizes, weights, seed=seed).row(p) for p in range(200)]
    asked = data.draw(st.permutations(range(200)))
    other = Order(sizes, weights, seed=seed)
    assert {p: other.row(p) for p in asked} == dict(enumerate(sequence))


def test_the_order_is_fixed_for_good():
    """Golden values: a change of these breaks the resumption of every unfinished run."""
    assert permutation(8, 0, 0, 0).tolist() == GOLDEN_PERMUTATION
    order = Order([3, 4], seed=7)
    assert [order.row(p) for p in range(9)] == GOLDEN_CONCATENATED
    mixture = Order([3, 4], [2.0, 1.0], seed=7)
    assert [mixture.row(p) for p in range(9)] == GOLDEN_MIXTURE


GOLDEN_PERMUTATION = [7, 4, 2, 1, 3, 6, 0, 5]
GOLDEN_CONCATENATED = [(1, 0), (1, 2), (0, 0), (0, 1), (1, 3), (1, 1), (0, 2), (0, 0), (0, 1)]
GOLDEN_MIXTURE = [(0, 0), (1, 0), (0, 2), (0, 1), (1, 3), (0, 2), (0, 0), (1, 1), (0, 1)]


def test_seed_epoch_and_source_each_change_the_permutation():
    base = permutation(50, 1, 0, 0).tolist()
    assert base == permutation(50, 1, 0, 0).tolist()
    for other in [(2, 0, 0), (1, 1, 0), (1, 0, 1), (-1, 0, 0)]:
        assert permutation(50, *other).tolist() != base


def test_permutations_are_uniform():
    """All 24 orders of four rows, over 4800 seeds: chi-square with 23 degrees of freedom."""
    counts = Counter(tuple(permutation(4, seed, 0, 0).tolist()) for seed in range(4800))
    assert len(counts) == 24
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 49.7  # p = 0.001


@given(
    st.lists(st.tuples(st.integers(1, 20), st.floats(0.001, 100)), min_size=1, max_size=6),
    st.integers(0, 2000),
)
@settings(max_examples=40, deadline=None)
def test_a_mixture_keeps_its_ratios_at_every_position(sources, start):
    sizes, weights = [s for s, _ in sources], [w for _, w in sources]
    order = Order(sizes, weights, seed=3)
    counts = Counter(order.row(p)[0] for p in range(start + 150))
    for source, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(counts[source] - (start + 150) * share) <= len(sizes)


def test_ratios_hold_far_into_a_run():
    order = Order([10, 10, 10], [0.7, 0.2, 0.1])
    start = 10**9
    counts = Counter(order.row(p)[0] for p in range(start, start + 1000))
    assert counts == {0: 700, 1: 200, 2: 100}


def test_ratios_fail_on_plain_concatenation():
    """The twin: an order that ignores its weights is caught by the bound above."""
    order = Order([10, 10], seed=3)
    counts = Counter(order.row(p)[0] for p in range(1000))
    assert abs(counts[0] - 1000 * 0.9) > 2


@given(
    st.lists(st.tuples(st.integers(1, 12), st.floats(0.05, 20)), min_size=1, max_size=4),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_each_pass_over_a_source_shows_each_row_once(sources, shuffle):
    sizes, weights = [s for s, _ in sources], [w for _, w in sources]
    order = Order(sizes, weights, seed=5, shuffle=shuffle)
    rows: list[list[int]] = [[] for _ in sizes]
    for position in range(400):
        source, row = order.row(position)
        rows[source].append(row)
    for source, size in enumerate(sizes):
        for start in range(0, len(rows[source]) - size + 1, size):
            assert sorted(rows[source][start : start + size]) == list(range(size))


def test_a_mixture_is_smooth():
    """3:1 gives one row of the second source in every four, not a block at the end."""
    order = Order([50, 50], [3, 1])
    sources = [order.row(p)[0] for p in range(80)]
    assert all(sources[start : start + 4].count(1) == 1 for start in range(0, 80, 4))


def test_equal_weights_alternate():
    order = Order([5, 5, 5], [1, 1, 1])
    assert [order.row(p)[0] for p in range(9)] == [0, 1, 2] * 3


@pytest.mark.parametrize(
    ("sizes", "weights"), [([], None), ([0], None), ([3], [0.0]), ([3], [1.0, 1.0]), ([3], [-1.0])]
)
def test_nonsense_is_refused(sizes, weights):
    with pytest.raises(AssertionError):
        Order(sizes, weights)
