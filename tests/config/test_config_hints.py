"""Names of other tools: every hint names something that exists, and is reached."""

from __future__ import annotations

import pytest

from trimtab.config import VERBS, resolve
from trimtab.config.hints import ALIASES, CONTROLS, EXPLAINED, FOREIGN_VERBS, RENAMED, STAGES
from trimtab.config.schema import loss_keys, recipe_keys
from trimtab.errors import RecipeError

ALL_KEYS = {key for verb in VERBS.values() for key in recipe_keys(verb.recipe)}


def message(verb: str, key: str) -> str:
    with pytest.raises(RecipeError) as caught:
        resolve(verb, ["--model", "m", "--dataset", "d", f"--{key}", "1"], env={})
    return str(caught.value)


def test_targets_exist() -> None:
    assert {ours for ours, _ in RENAMED.values()} <= ALL_KEYS
    assert set(ALIASES.values()) <= ALL_KEYS
    assert set(STAGES.values()) == set(VERBS)


def test_no_hint_hides_a_key() -> None:
    own = ALL_KEYS | set(CONTROLS) | {k for v in VERBS.values() for k in loss_keys(v.recipe)}
    for table in (RENAMED, EXPLAINED, ALIASES):
        assert not own & table.keys()
    assert not RENAMED.keys() & EXPLAINED.keys()
    assert not (RENAMED.keys() | EXPLAINED.keys()) & ALIASES.keys()
    assert not FOREIGN_VERBS.keys() & VERBS.keys()


@pytest.mark.parametrize("key", sorted(RENAMED))
def test_renamed_keys_say_so(key: str) -> None:
    ours, whose = RENAMED[key]
    verb = next(v.name for v in VERBS.values() if ours in recipe_keys(v.recipe))
    if ours == "max_length":
        verb = "sft"
    found = message(verb, key)
    assert found.startswith(f"{key}: unknown key (command line): {whose}'s name")
    assert found.endswith(f"--{ours.replace('_', '-')}")


@pytest.mark.parametrize("key", sorted(EXPLAINED.keys() - {"config", "stage", "rl"}))
def test_explained_keys_say_why(key: str) -> None:
    assert message("dpo", key).startswith(f"{key}: unknown key (command line): {EXPLAINED[key]}")


@pytest.mark.parametrize(
    ("verb", "key", "expected"),
    [
        ("sft", "cutoff_len", "LLaMA-Factory's name; here it is --max-length"),
        ("pretrain", "cutoff_len", "LLaMA-Factory's name; here it is --context-length"),
        ("sft", "pref_beta", "LLaMA-Factory's name; sft has nothing like it; remove it"),
        ("dpo", "warmup-ratio", "transformers before 5's name; here it is --warmup-steps"),
        ("dpo", "context-length", "dpo has no such key; it belongs to pretrain"),
        ("sft", "gamma", "sft has no such key; it belongs to ppo, online_dpo, dpo, simpo"),
        (
            "sft",
            "loss",
            "sft has no such key; it belongs to online_dpo, dpo, simpo, orpo, kto, ipo, cpo, bco",
        ),
    ],
)
def test_hints_know_the_verb(verb: str, key: str, expected: str) -> None:
    name = key.replace("-", "_")
    assert message(verb, key) == f"{name}: unknown key (command line): {expected}"


def test_fp16_is_refused_with_the_reason() -> None:
    assert "use precision=bf16 or fp32" in message("dpo", "fp16")


def test_a_key_of_the_recipe_itself() -> None:
    with pytest.raises(RecipeError, match=r"^verb: unknown key"):
        resolve("sft", ["--verb", "dpo"], env={})
