"""Rollouts as data: columns follow their trees, files give back every bit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from trimtab.algorithms.experience import Experience, response_tree
from trimtab.data.trees import Origin
from trimtab.errors import CheckpointError


def experience(prompts: int = 5, per_prompt: int = 3) -> Experience:
    rng = random.Random(0)

    def ids(most: int) -> list[int]:
        return [rng.randrange(3, 90) for _ in range(rng.randint(1, most))]

    trees = [
        response_tree(ids(6), [ids(7) for _ in range(per_prompt)], Origin("prompts.jsonl", i + 1))
        for i in range(prompts)
    ]
    made = Experience(4, trees, [7 * i for i in range(prompts)], facts={"kl_coef": 0.1})
    tokens, responses = int(made.lengths.sum()), len(made.lengths)
    generator = torch.Generator().manual_seed(1)
    made.tokens["old"] = torch.randn(tokens, generator=generator)
    made.tokens["position"] = torch.arange(tokens).float()
    made.responses["score"] = torch.randn(responses, generator=generator)
    made.responses["ended"] = torch.rand(responses, generator=generator) > 0.5
    return made


def test_numbers_of_responses_and_prompts() -> None:
    made = experience(2, 2)
    lengths = [len(branch.ids) for tree in made.trees for branch in tree.branches]
    assert made.lengths.tolist() == lengths
    assert made.groups.tolist() == [0, 0, 1, 1]
    assert made.sequence.tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_columns_follow_their_trees_in_any_order_and_cut(budget: int) -> None:
    made = experience()
    chosen = [3, 0, 4]
    micros = list(made.micros(chosen, budget))
    assert [row for micro in micros for row in micro.rows] == [21, 0, 28]
    starts = [0]
    for tree in made.trees:
        starts.append(starts[-1] + sum(len(branch.ids) for branch in tree.branches))
    expected = [p for i in chosen for p in range(starts[i], starts[i + 1])]
    assert torch.cat([m.tokens["position"] for m in micros]).tolist() == expected
    for micro in micros:  # a column entry a target, a response entry a branch
        assert len(micro.tokens["old"]) == micro.batch.target.numel()
        assert len(micro.responses["score"]) == micro.batch.branch_count
        # Targets stand in the order of the columns: the token ids say so.
        sampled = [i for tree in micro.batch.trees for b in tree.branches for i in b.ids]
        assert micro.batch.target_ids.tolist() == sampled


def test_file_gives_back_every_bit(tmp_path: Path) -> None:
    made = experience()
    made.save(tmp_path / "rollouts" / "r.safetensors")
    again = Experience.load(tmp_path / "rollouts" / "r.safetensors")
    assert (again.number, again.rows, again.facts) == (made.number, made.rows, made.facts)
    assert again.trees == made.trees
    for name in ("tokens", "responses"):
        here, there = getattr(made, name), getattr(again, name)
        assert here.keys() == there.keys()
        assert all(torch.equal(here[k], there[k]) and here[k].dtype == there[k].dtype for k in here)


def test_damaged_file_is_named(tmp_path: Path) -> None:
    made = experience()
    path = tmp_path / "r.safetensors"
    made.save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"r\.safetensors: the rollout .* cannot be read"):
        Experience.load(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Experience.load(tmp_path / "none.safetensors")
