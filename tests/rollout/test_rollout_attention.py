"""Attention of a step: against plain attention over each row's own path."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from trimtab.models.attention_kernels import dense_attention
from trimtab.rollout.attention import Crew, PromptPlan, RowPlan
from trimtab.rollout.cache import Arena, KeyValues, Run, runs_of

CPU = torch.device("cpu")
HEADS, KEY_HEADS, SIZE = 4, 2, 8


def test_runs_read_neighbours_of_like_length_together() -> None:
    assert runs_of([]) == [] and runs_of([0, 0]) == []
    assert runs_of([5, 5, 5]) == [Run(0, 3, 5)]
    assert runs_of([9, 5, 5], waste=8) == [Run(0, 3, 9)]
    assert runs_of([9, 5, 5], waste=7) == [Run(0, 2, 9), Run(2, 3, 5)]
    assert runs_of([0, 4, 0, 4, 0], waste=4) == [Run(1, 4, 4)]
    assert runs_of([0, 4, 0, 4, 0], waste=3) == [Run(1, 2, 4), Run(3, 4, 4)]
    for seed in range(20):
        rng = random.Random(seed)
        lengths = [rng.choice([0, rng.randint(1, 300)]) for _ in range(40)]
        read = {place for run in runs_of(lengths) for place in range(run.start, run.stop)}
        assert {place for place, length in enumerate(lengths) if length} <= read
        for start, stop, length in runs_of(lengths):
            own = lengths[start:stop]
            assert length == max(own) and length * len(own) - sum(own) <= 256


def test_an_arena_keeps_what_was_written_when_it_grows_and_moves() -> None:
    arena = Arena(2, 3)
    one = torch.zeros(1, KEY_HEADS, SIZE)
    keys, _ = arena.layer(0, one, one)
    keys.copy_(torch.randn(keys.shape))
    before = keys.clone()
    arena.reserve(4, 5)
    keys, _ = arena.layer(0, one, one)
    assert keys.shape == (4, KEY_HEADS, 5, SIZE) and torch.equal(keys[:2, :, :3], before)
    assert not keys[2:].any() and not keys[:, :, 3:].any()
    arena.move(torch.tensor([1]), torch.tensor([3]), 2)
    assert torch.equal(keys[3, :, :2], before[1, :, :2]) and not keys[3, :, 2:].any()
    assert arena.token_bytes() == 2 * KEY_HEADS * SIZE * 4


class Scene:
    """Random prompts and rows, in a cache and as whole paths."""

    def __init__(self, seed: int, key_heads: int = KEY_HEADS) -> None:
        rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.key_heads = key_heads
        lengths = [rng.randint(1, 30) for _ in range(rng.randint(1, 5))]
        # Rows of all prompts in any order: neighbours need not be siblings.
        self.prompts = [place for place in range(len(lengths)) for _ in range(rng.randint(1, 4))]
        rng.shuffle(self.prompts)
        self.lengths = [lengths[place] for place in self.prompts]
        self.sampled = [rng.randint(1, 12) for _ in self.prompts]
        self.cache = KeyValues(
            rows=len(self.prompts), prompts=len(lengths), prompt_tokens=30, new_tokens=16
        )
        of_prompt = [(self.draw(n, key_heads), self.draw(n, key_heads)) for n in lengths]
        own = [(self.draw(n, key_heads), self.draw(n, key_heads)) for n in self.sampled]
        store = self.cache.prompts.layer(0, *of_prompt[0])
        for place, pair in enumerate(of_prompt):
            for x, new in zip(store, pair, strict=True):
                x[place, :, : lengths[place]] = new.transpose(0, 1)
        store = self.cache.own.layer(0, *own[0])
        for row, pair in enumerate(own):
            for x, new in zip(store, pair, strict=True):
                x[row, :, : self.sampled[row] - 1] = new[:-1].transpose(0, 1)
        self.query = self.draw(len(own), HEADS)
        self.key, self.value = (torch.stack([pair[i][-1] for pair in own]) for i in (0, 1))
        self.paths = [
            [torch.cat((of_prompt[place][i], pair[i])).transpose(0, 1)[None] for i in (0, 1)]
            for place, pair in zip(self.prompts, own, strict=True)
        ]

    def draw(self, count: int, heads: int) -> torch.Tensor:
        return torch.randn(count, heads, SIZE, generator=self.generator)

    def step(self, **options: Any) -> torch.Tensor:
        crew = Crew(self.prompts, self.lengths, self.sampled, CPU)
        return RowPlan(self.cache, crew).attend_rows(self.query, self.key, self.value, **options)

    def expected(
        self, window: int | None = None, softcap: float | None = None, sinks: Any = None
    ) -> torch.Tensor:
        """Row by row over its own path: the slow twin."""
        found = []
        for row, (keys, values) in enumerate(self.paths):
            query = self.query[row][None, :, None]
            first = 0 if window is None else max(0, keys.shape[2] - window)
            out = dense_attention(
                query,
                keys[:, :, first:],
                values[:, :, first:],
                None,
                scale=SIZE**-0.5,
                softcap=softcap,
                sinks=sinks,
            )
            found.append(out[0, :, 0])
        return torch.stack(found)


@pytest.mark.parametrize("seed", range(8))
def test_a_step_is_attention_over_each_rows_path(seed: int) -> None:
    scene = Scene(seed, key_heads=(1, 2, 4)[seed % 3])
    assert torch.allclose(scene.step(), scene.expected(), atol=1e-5)


@pytest.mark.parametrize("window", [1, 3, 9, 25, 1000])
def test_windows_are_distances_on_the_path(window: int) -> None:
    scene = Scene(3)
    assert torch.allclose(scene.step(sliding_window=window), scene.expected(window), atol=1e-5)


def test_soft_caps_and_sinks() -> None:
    scene, sinks = Scene(5), torch.linspace(-1, 2, HEADS)
    assert torch.allclose(scene.step(softcap=1.5), scene.expected(softcap=1.5), atol=1e-5)
    both = scene.step(s_aux=sinks, sliding_window=7)
    assert torch.allclose(both, scene.expected(7, sinks=sinks), atol=1e-5)


def test_the_new_token_is_kept_for_the_next_step() -> None:
    scene = Scene(1)
    scene.step()
    keys, values = scene.cache.own.layer(0, scene.key, scene.value)
    for row, count in enumerate(scene.sampled):
        assert torch.equal(keys[row, :, count - 1], scene.key[row])
        assert torch.equal(values[row, :, count - 1], scene.value[row])


def test_wrong_cache_rows_are_far_off() -> None:
    """What the tests above reject: a sibling's rows, another prompt's, a neighbour's length."""
    scene = Scene(4)
    right = scene.expected()
    assert len(set(scene.prompts)) > 1 and len(set(scene.sampled)) > 1
    rolled = [*scene.prompts[1:], scene.prompts[0]]
    crew = Crew(rolled, scene.lengths, scene.sampled, CPU)
    wrong = RowPlan(scene.cache, crew).attend_rows(scene.query, scene.key, scene.value)
    assert float((wrong - right).abs().max()) > 0.1
    for store in scene.cache.own.layer(0, scene.key, scene.value):
        store.copy_(store.roll(1, 0))
    assert float((scene.step() - right).abs().max()) > 0.1


def test_prompts_are_kept_where_they_belong() -> None:
    lengths, places = [4, 1, 7], [2, 0, 1]
    cache = KeyValues(rows=1, prompts=3, prompt_tokens=8, new_tokens=1)
    plan = PromptPlan(cache, lengths, places, CPU)
    query, key, value = (torch.randn(1, heads, 12, SIZE) for heads in (4, 2, 2))
    out = plan.attend(nn.Identity(), query, key, value)
    keys, values = cache.prompts.layer(0, key.transpose(1, 2), value.transpose(1, 2))
    start = 0
    for length, place in zip(lengths, places, strict=True):
        part = slice(start, start + length)
        assert torch.equal(keys[place, :, :length], key[0, :, part])
        assert torch.equal(values[place, :, :length], value[0, :, part])
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        alone = dense_attention(
            query[:, :, part], key[:, :, part], value[:, :, part], mask, scale=SIZE**-0.5
        )
        assert torch.allclose(out[:, part], alone.transpose(1, 2), atol=1e-5)
        start += length
    assert plan.last.tolist() == [3, 4, 11] and plan.windows == [None]
