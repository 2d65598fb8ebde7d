"""The reference of whole runs, and the keys that must change no number."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from tests.algorithms.stage_world import CONTINUOUS, World, apart, held_pairs, mean, plain_logprobs
from transformers import AutoModelForCausalLM

from trimtab.algorithms import recipe_reference
from trimtab.algorithms.policy import Policy
from trimtab.algorithms.reference import LiveReference, ReferenceCache

# ---------------------------------------------------------------------- the reference


def test_reference_log_probs_are_computed_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    shard = ReferenceCache._shard

    def counted(self: ReferenceCache, policy: Any, stream: Any, rows: Any) -> Any:
        computed.append(len(rows))
        return shard(self, policy, stream, rows)

    monkeypatch.setattr(ReferenceCache, "_shard", counted)
    cache = {"cache_dir": str(world.root / "reference-cache")}
    first = world.run("dpo", "pairs", **cache)
    assert computed == [12, 5]
    second = world.run("dpo", "pairs", **cache, seed=7, max_steps=4)
    assert computed == [12, 5], "other steps and another seed: the same rows, the same model"
    assert second.evaluated[0] == first.evaluated[0], "cached and fresh values have the same bits"
    world.run("dpo", "pairs", **cache, model_name_or_path=str(world.root / "other"))
    assert computed == [12, 5, 12, 5], "another model is another reference"
    world.run("dpo", "rankings", **cache, eval_dataset_name=...)
    assert computed == [12, 5, 12, 5, 12], "and so are other rows"


@pytest.mark.parametrize(
    ("verb", "keys"),
    [
        ("dpo", {}),
        ("dpo", {"use_peft": True}),
        ("dpo", {"loss": "tdpo2"}),
        ("dpo", {"loss": "ld_dpo"}),
        ("dpo", {"loss": "beta_dpo", "ref": "other"}),
        ("kto", {}),
    ],
)
def test_a_live_reference_is_the_cached_one(world: World, verb: str, keys: dict[str, Any]) -> None:
    if "ref" in keys:
        keys = {**keys, "ref_model_name_or_path": str(world.root / "other")}
        del keys["ref"]
    keys = {**keys, **CONTINUOUS}
    cached = world.run(verb, "pairs", **keys)
    live = world.run(verb, "pairs", **keys, precompute_ref_log_probs=False, self_check=True)
    assert apart(cached, live) == []
    assert abs(cached.results["eval_rewards/margins"]) > 1e-3


def test_a_reference_that_moves_is_found_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: without its copy the reference is the policy, and all rewards stay 0."""

    def not_frozen(policy: Policy) -> LiveReference:
        return LiveReference(policy, contextlib.nullcontext)

    monkeypatch.setattr(recipe_reference, "frozen_copy", not_frozen)
    cached = world.run("dpo", "pairs")
    live = world.run("dpo", "pairs", precompute_ref_log_probs=False)
    assert apart(cached, live)
    assert live.results["eval_rewards/margins"] == pytest.approx(0, abs=1e-6)


def test_a_named_reference(world: World) -> None:
    """Another model than the policy: rewards at the start are the difference of the two."""
    other = str(world.root / "other")
    run = world.run("dpo", "pairs", beta=0.5, ref_model_name_or_path=other, self_check=True)
    start = run.evaluated[0]
    for side in ("chosen", "rejected"):
        sums = [
            mean(
                plain_logprobs(
                    AutoModelForCausalLM.from_pretrained(world.root / name),
                    world.root / name,
                    held_pairs(world, side),
                )
            )
            for name in ("model", "other")
        ]
        reward = start[f"eval_rewards/{side}"]
        assert reward == pytest.approx(0.5 * (sums[0] - sums[1]), rel=1e-4)
        assert abs(reward) > 0.05
    same = world.run("dpo", "pairs", ref_model_name_or_path=str(world.root / "model"))
    assert apart(same, world.run("dpo", "pairs")) == []


# ---------------------------------------------------------------------- what must change nothing


@pytest.mark.parametrize(
    ("verb", "data", "keys"),
    [
        ("sft", "answers", {"mix": True}),
        pytest.param("dpo", "pairs", {"use_peft": True}, marks=pytest.mark.slow),
        ("dpo", "pairs", {"loss": "beta_dpo", "ref": "other"}),
        pytest.param("orpo", "pairs", {}, marks=pytest.mark.slow),
        pytest.param("kto", "pairs", {}, marks=pytest.mark.slow),
        pytest.param("dpo", "rankings", {"loss": "plackett_luce"}, marks=pytest.mark.slow),
    ],
)
def test_memory_keys_change_no_number(
    world: World, verb: str, data: str, keys: dict[str, Any]
) -> None:
    """Half the token budget, recomputed activations, each layout, rows in other portions."""
    if "mix" in keys:
        keys = {"mix": {"dataset_name": str(world.root / "texts.jsonl"), "weight": 0.5}}
    if "ref" in keys:
        keys = {**keys, "ref_model_name_or_path": str(world.root / "other")}
        del keys["ref"]
    keys = {**keys, **CONTINUOUS}
    run = world.run(verb, data, **keys)
    variants: list[dict[str, Any]] = [
        {"token_budget": 50},
        {"gradient_checkpointing": True},
        {"attn_layout": "packed"},
        {"attn_layout": "padded"},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ]
    for variant in variants:
        assert apart(run, world.run(verb, data, **keys, **variant)) == [], variant
    assert apart(run, world.run(verb, data, **keys, seed=1)), "the comparison sees a difference"
    assert apart(run, world.run(verb, data, **keys, per_device_train_batch_size=3))
