"""docs/from-trl.md: every field of TRL's configurations is told, and what is told is so."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.docs.scripts_of import page, script

from trimtab.config import VERBS, resolve
from trimtab.config.hints import EXPLAINED
from trimtab.config.hints_trl import EXPLAINED_TRL, OF_VERB, RENAMED_TRL
from trimtab.config.merge import key_path
from trimtab.config.schema import recipe_keys
from trimtab.errors import RecipeError


@pytest.fixture(scope="module")
def made() -> Any:
    return script("from_trl_page")


def test_the_page_is_up_to_date(made: Any) -> None:
    assert made.page() == page("from-trl.md")


def test_every_field_has_a_key_or_a_reason(made: Any) -> None:
    places = made.places()
    fields = json.loads(made.FIELDS.read_text(encoding="utf-8"))["fields"]
    counts = {config: len(found) for config, found in places.items()}
    assert counts == {k: len(v) for k, v in fields.items() if k in made.CONFIGS}
    assert (counts["DPOConfig"], counts["GRPOConfig"], counts["PPOConfig"]) == (26, 79, 33)
    for config, found in places.items():
        for one in found:
            assert bool(one.key) != bool(one.reason), (config, one.name)
            assert "--help lists all keys" not in one.reason, (config, one.name)


def test_another_default_has_a_note(made: Any) -> None:
    places = made.places()
    named = {(config, one.name) for config, found in places.items() for one in found if one.key}
    for config, name in made.NOTES:
        assert any(n == name and config in ("", c) for c, n in named), (config, name)
    for config, found in places.items():
        for one in found:
            if one.key and one.default != one.ours:
                note = made.NOTES.get((config, one.name)) or made.NOTES.get(("", one.name))
                assert note, (config, one.name, one.default, one.ours)


@pytest.mark.parametrize(
    ("verb", "name", "says"),
    [
        ("grpo", "beta", "here it is kl_coef"),
        ("grpo", "loss_type", "--algorithm grpo, dr_grpo, dapo"),
        ("rloo", "beta", "here it is kl_coef"),
        ("grpo", "top_p", "of another distribution"),
        ("grpo", "use_vllm", "trimtab's own sampler"),
        ("ppo", "batch_size", "per_device_train_batch_size x gradient_accumulation_steps"),
        ("ppo", "total_episodes", "num_train_epochs passes over the prompts"),
        ("dpo", "shuffle_dataset", "here it is --shuffle"),
        ("sft", "loss_type", "the verb says it"),
        ("orpo", "max_completion_length", "share max_length"),
        ("dpo", "use_rslora", "plain LoRA"),
    ],
)
def test_a_user_who_types_it_is_told(verb: str, name: str, says: str) -> None:
    with pytest.raises(RecipeError) as error:
        resolve(verb, ["--model-name-or-path", "m", "--dataset-name", "d", f"--{name}", "1"])
    text = str(error.value)
    assert text.startswith(f"{name}: unknown key (command line): ") and says in text


def test_hints_are_not_of_keys_that_exist() -> None:
    """A hint for a key that is accepted would never be read."""
    keys = {verb: recipe_keys(one.recipe) for verb, one in VERBS.items()}
    for name in (*EXPLAINED_TRL, *RENAMED_TRL):
        assert not any(name in known for known in keys.values()), name
        assert name not in RENAMED_TRL or RENAMED_TRL[name][0] in keys["ppo"], name
    assert EXPLAINED_TRL.items() <= EXPLAINED.items(), "a later entry of hints.py hides one"
    for verb, hints in OF_VERB.items():
        for name in hints:
            with pytest.raises(RecipeError):
                key_path(name, VERBS[verb], "")
