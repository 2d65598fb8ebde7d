"""Uniforms of tokens: pure functions of their counters, never shared, uniform."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from trimtab.rollout.draws import uniforms


def test_the_stream_is_philox_with_the_position_as_counter() -> None:
    key = [12, 0x726F6C6C6F7574]
    found = uniforms(12, 3, 2, 40)
    # One block of four numbers at a time, each from its counter alone (NumPy counts up first).
    for block in range(10):
        raw = np.random.Philox(counter=[block, 2, 3, 0], key=key).random_raw(4)
        expected = ((raw >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52
        assert found[4 * block : 4 * block + 4].tolist() == expected.tolist()


def test_the_first_numbers_are_pinned() -> None:
    """What was sampled with a seed is sampled with it in later versions, too."""
    assert uniforms(0, 0, 0, 3).tolist() == pytest.approx(PINNED, abs=1e-15)


PINNED = [0.6854442146100944, 0.7374376612649735, 0.6336606322209343]


def test_longer_streams_begin_as_shorter_ones() -> None:
    assert uniforms(7, 1, 4, 100)[:13].tolist() == uniforms(7, 1, 4, 13).tolist()


def test_no_two_counters_share_a_number() -> None:
    seen = [
        value
        for seed, prompt, sample in itertools.product((0, 1, -1, 2**63), range(6), range(6))
        for value in uniforms(seed, prompt, sample, 50)
    ]
    assert len(set(seen)) == len(seen)


def test_numbers_are_inside_and_uniform() -> None:
    values = np.concatenate([uniforms(5, prompt, 0, 500) for prompt in range(200)])
    assert values.min() > 0 and values.max() < 1
    counts, _ = np.histogram(values, bins=50, range=(0, 1))
    expected = values.size / 50
    assert ((counts - expected) ** 2 / expected).sum() < 85.4  # chi-square, 49 degrees, p = 0.001
    rows = values.reshape(200, 500)
    assert abs(np.corrcoef(rows[:-1].ravel(), rows[1:].ravel())[0, 1]) < 0.011  # 3.5 sigma
