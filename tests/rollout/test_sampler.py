"""Rollouts: greedy as generate's, log-probs as the trainer's, samples whatever the batching."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.rollout.support import (
    FOUR,
    STOPS,
    apart,
    ids_of,
    model_of,
    prompts_of,
    sampled_logprobs,
    trained_logprobs,
)
from tests.tiny_models import VOCABULARY

from trimtab.errors import DataError, RecipeError
from trimtab.models import lora
from trimtab.models.attention import is_installed, plain_attention
from trimtab.models.forward import choose_layout
from trimtab.rollout import Rollout, Sampler, SamplingParams, engine
from trimtab.rollout.steps import ModelSteps
from trimtab.rollout.trial import try_steps

WAYS = {"llama": "llama", "qwen3": "llama", "mistral": "llama", "gemma3_text": "model"}
WAYS |= {"gemma2": "model", "gpt2": "model", "opt": "model", "gpt_oss": "model"}
WAYS |= {"bloom": "generate", "falcon": "generate"}


def generated(model: Any, prompt: Sequence[int], stops: Sequence[int], count: int) -> list[int]:
    """Greedy tokens of transformers' generate, one prompt at a time, without padding."""
    ids = torch.tensor([prompt])
    with plain_attention(model), torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=list(stops),
            pad_token_id=0,
        )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", FOUR)
def test_greedy_is_generate_token_for_token(name: str) -> None:
    model, prompts = model_of(name), prompts_of(1, count=6)
    sampler = Sampler(model, stop_ids=STOPS, slots=4)
    assert sampler.way == WAYS[name]
    rollouts = sampler.sample(prompts, 1, SamplingParams(24, temperature=0), seed=0)
    expected = [generated(model, prompt, STOPS, 24) for prompt in prompts]
    assert [list(own[0].ids) for own in rollouts] == expected
    assert {own[0].ended for own in rollouts} == {True, False}  # both kinds are in it
    if name in ("llama", "qwen3"):
        slow = Sampler(model, stop_ids=STOPS, slots=4, way="model")
        again = slow.sample(prompts, 1, SamplingParams(24, temperature=0), seed=0)
        assert ids_of(again) == ids_of(rollouts)


@pytest.mark.parametrize("name", WAYS)
def test_every_architecture_finds_its_way_and_draws_the_same(name: str) -> None:
    """All ways are twins: same tokens from the same numbers, log-probs up to rounding."""
    model, prompts, params = model_of(name), prompts_of(2), SamplingParams(12, 0.9)
    sampler = Sampler(model, stop_ids=STOPS, slots=5)
    assert sampler.way == WAYS[name], sampler.reason
    found = sampler.sample(prompts, 3, params, seed=4)
    for way in ("model", "generate"):
        if (WAYS[name], way) in (("generate", "model"), ("model", "model")):
            continue
        twin = Sampler(model, stop_ids=STOPS, slots=64, way=way)
        other = twin.sample(prompts, 3, params, seed=4)
        assert ids_of(other) == ids_of(found)
        assert [[x.ended for x in own] for own in other] == [[x.ended for x in y] for y in found]
        assert apart(sampled_logprobs(found), sampled_logprobs(other)) < 2e-5


@pytest.mark.parametrize("name", FOUR)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_trainers(name: str, temperature: float) -> None:
    model, prompts = model_of(name), prompts_of(3)
    choose_layout(model)
    sampler = Sampler(model, stop_ids=STOPS, slots=6)
    params = SamplingParams(15, temperature)
    rollouts = sampler.sample(prompts, 4, params, seed=1, training=True)
    found = sampled_logprobs(rollouts)
    expected = trained_logprobs(model, prompts, rollouts, temperature=temperature)
    assert apart(found, expected) < 1e-4
    if temperature != 1:  # rejected: the temperature left out of the log-probs
        assert apart(found, trained_logprobs(model, prompts, rollouts)) > 0.1


def test_a_row_that_moves_without_its_keys_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above rejects: a row that goes on with another row's cache."""
    model, prompts = model_of("llama"), prompts_of(3)
    choose_layout(model)
    sampler = Sampler(model, stop_ids=STOPS, slots=6)
    monkeypatch.setattr("trimtab.rollout.cache.Arena.move", lambda *_: None)
    rollouts = sampler.sample(prompts, 4, SamplingParams(15), seed=1)
    assert apart(sampled_logprobs(rollouts), trained_logprobs(model, prompts, rollouts)) > 0.01


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_samples_do_not_depend_on_slots_or_order(name: str) -> None:
    model, prompts, params = model_of(name), prompts_of(5, count=6), SamplingParams(8)
    one, three, many = (Sampler(model, stop_ids=STOPS, slots=slots) for slots in (1, 3, 64))
    expected = many.sample(prompts, 2, params, seed=9)
    assert ids_of(one.sample(prompts, 2, params, seed=9)) == ids_of(expected)
    assert ids_of(three.sample(prompts, 2, params, seed=9)) == ids_of(expected)
    # Each prompt by itself, and all in another order: their numbers are what counts.
    order = random.Random(0).sample(range(len(prompts)), len(prompts))
    shuffled = three.sample([prompts[i] for i in order], 2, params, seed=9, numbers=order)
    assert ids_of(shuffled) == [ids_of(expected)[i] for i in order]
    assert [own[0].prompt for own in shuffled] == order
    alone = many.sample([prompts[4]], 2, params, seed=9, numbers=[4])
    assert ids_of(alone) == [ids_of(expected)[4]]
    # More samples, or longer ones, only add to what was there.
    more = many.sample(prompts, 3, SamplingParams(12), seed=9)
    for own, longer in zip(expected, more, strict=True):
        for a, b in zip(own, longer, strict=False):
            assert b.ids[: len(a.ids)] == a.ids
    assert ids_of(many.sample(prompts, 2, params, seed=10)) != ids_of(expected)


def shared(rollouts: Sequence[Sequence[Rollout]]) -> float:
    """Share of pairs of rollouts of one and the same prompt that are the same."""
    flat = [one.ids for own in rollouts for one in own]
    pairs = [(a, b) for i, a in enumerate(flat) for b in flat[:i]]
    return sum(a == b for a, b in pairs) / len(pairs)


def repetitions(rollouts: Sequence[Sequence[Rollout]]) -> float:
    """Share of tokens that repeat the one before."""
    flat = [one.ids for own in rollouts for one in own]
    return float(np.mean([a == b for ids in flat for a, b in itertools.pairwise(ids)]))


def test_no_two_samples_share_their_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    model, params = model_of("llama", initializer_range=1e-4), SamplingParams(12)
    sampler = Sampler(model, stop_ids=())
    prompts = [[3, 4, 5]] * 12  # one text, twelve numbers
    right = sampler.sample(prompts, 4, params, seed=0)
    assert shared(right) == 0 and repetitions(right) < 0.05
    # Rejected: a uniform for all samples of a prompt, for all prompts, and for all positions.
    real = engine.uniforms
    for wrong in (
        lambda seed, prompt, sample, count: real(seed, prompt, 0, count),
        lambda seed, prompt, sample, count: real(seed, 0, sample, count),
    ):
        monkeypatch.setattr(engine, "uniforms", wrong)
        assert shared(sampler.sample(prompts, 4, params, seed=0)) > 0.05
    monkeypatch.setattr(engine, "uniforms", lambda *key: np.full(key[-1], real(*key[:-1], 1)[0]))
    assert repetitions(sampler.sample(prompts, 4, params, seed=0)) > 0.5


def test_first_tokens_have_the_models_distribution() -> None:
    model = model_of("llama")
    sampler = Sampler(model, stop_ids=())
    prompt = [3, 14, 15, 9, 26]
    rollouts = sampler.sample([prompt], 6000, SamplingParams(1, 2.5), seed=3)[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    counts = np.bincount([one.ids[0] for one in rollouts], minlength=VOCABULARY)

    def statistic(temperature: float) -> float:
        p = (logits / temperature).softmax(-1).numpy()
        usual = p * 6000 > 5  # the rest is one cell
        cells = [*zip(counts[usual], p[usual], strict=True)]
        cells.append((counts[~usual].sum(), p[~usual].sum()))
        return sum((n - 6000 * q) ** 2 / (6000 * q) for n, q in cells if q)

    assert statistic(2.5) < 147.0  # chi-square, at most 97 degrees of freedom, p = 0.001
    assert statistic(1.0) > 1000


# ---------------------------------------------------------------------- ends and limits


@pytest.mark.parametrize("way", ["auto", "generate"])
def test_ends_and_cuts_are_told_apart(way: Any) -> None:
    model, prompts = model_of("llama"), prompts_of(6)
    sampler = Sampler(model, stop_ids=STOPS, way=way)
    whole = Sampler(model, stop_ids=(), way=way).sample(prompts, 6, SamplingParams(9), seed=2)
    assert all(len(one.ids) == 9 and not one.ended for own in whole for one in own)
    found = sampler.sample(prompts, 6, SamplingParams(9), seed=2)
    kinds = set()
    for own, longer in zip(found, whole, strict=True):
        for one, uncut in zip(own, longer, strict=True):
            ends = [i for i, token in enumerate(uncut.ids) if token in STOPS]
            stop = ends[0] + 1 if ends else 9
            assert one.ids == uncut.ids[:stop] and one.ended == bool(ends)
            assert len(one.logprobs) == len(one.ids)
            kinds.add((one.ended, stop == 9))
            kinds |= {uncut.ids[ends[0]]} if ends else set()
    # Early ends, cuts, an end in the very last place; and several kinds of stop tokens.
    assert {(True, False), (False, True), (True, True)} <= kinds
    assert len(kinds & set(STOPS)) >= 4


@pytest.mark.parametrize("way", ["auto", "model", "generate"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_prompt_near_the_end_of_the_context_has_less_room(name: str, way: Any) -> None:
    key = "n_positions" if name == "gpt2" else "max_position_embeddings"
    model = model_of(name, **{key: 32})
    sampler = Sampler(model, stop_ids=(), way=way)
    prompts = [[3] * length for length in (5, 32, 29, 31, 40)]
    params = SamplingParams(8)
    assert [sampler.room(len(p), params) for p in prompts] == [8, 0, 3, 1, 0]
    rollouts = sampler.sample(prompts, 2, params, seed=0)
    assert [[len(one.ids) for one in own] for own in rollouts] == [
        [8, 8],
        [0, 0],
        [3, 3],
        [1, 1],
        [0, 0],
    ]
    assert [own[0].no_room for own in rollouts] == [False, True, False, False, True]
    assert rollouts[1][1] == Rollout(1, 1, (), (), False)


def test_one_sample_of_one_token() -> None:
    sampler = Sampler(model_of("llama"), stop_ids=())
    (((_, _, ids, logprobs, ended),),) = sampler.sample([[7]], 1, SamplingParams(1), seed=0)
    assert len(ids) == len(logprobs) == 1 and not ended
    assert sampler.sample([], 3, SamplingParams(1), seed=0) == []


# ---------------------------------------------------------------------- what is refused


def test_training_refuses_what_ratios_would_be_wrong_for() -> None:
    sampler = Sampler(model_of("llama"), stop_ids=())
    for key, params in {
        "top_k=5": SamplingParams(4, top_k=5),
        "top_p=0.9": SamplingParams(4, top_p=0.9),
        "temperature=0": SamplingParams(4, temperature=0),
    }.items():
        assert sampler.sample([[3]], 1, params, seed=0)
        with pytest.raises(RecipeError, match=f"^{key}: training samples from the whole"):
            sampler.sample([[3]], 1, params, seed=0, training=True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1: must be"),
        ({"temperature": float("nan")}, "temperature=nan: must be"),
        ({"top_k": -1}, "top_k=-1: must be at least 1"),
        ({"top_p": 0.0}, "top_p=0: must be above 0"),
        ({"top_p": 1.1}, "top_p=1.1: must be above 0"),
    ],
)
def test_numbers_out_of_range(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SamplingParams(**{"max_new_tokens": 4, **keys})


def test_empty_prompts_and_impossible_ways() -> None:
    sampler = Sampler(model_of("gpt2"), stop_ids=())
    with pytest.raises(DataError, match="prompt 1: it has no token"):
        sampler.sample([[3], []], 1, SamplingParams(1), seed=0)
    with pytest.raises(RecipeError, match="n=0: at least one"):
        sampler.sample([[3]], 0, SamplingParams(1), seed=0)
    with pytest.raises(RecipeError, match="way='llama': impossible for GPT2LMHeadModel"):
        Sampler(model_of("gpt2"), stop_ids=(), way="llama")
    with pytest.raises(RecipeError, match="way='model': impossible for BloomForCausalLM"):
        Sampler(model_of("bloom"), stop_ids=(), way="model")
    with pytest.raises(RecipeError, match="slots=0"):
        Sampler(model_of("gpt2"), stop_ids=(), slots=0)


class Forgetful(ModelSteps):
    """Steps that leave the prompt out of what the rows see."""

    def step(self, tokens: Any, crew: Any, cache: Any) -> Any:
        crew.prompt_lengths = torch.ones_like(crew.prompt_lengths)
        return super().step(tokens, crew, cache)


class Broken(ModelSteps):
    def step(self, tokens: Any, crew: Any, cache: Any) -> Any:
        raise RuntimeError("no such layer")


def test_the_trial_finds_wrong_steps() -> None:
    model = model_of("llama")
    assert try_steps(model, ModelSteps(model), "model").steps is not None
    wrong = try_steps(model, Forgetful(model), "model")
    assert wrong.steps is None and "differs from the model's own by" in wrong.reason
    broken = try_steps(model, Broken(model), "model")
    assert broken.reason == "a trial call failed: RuntimeError: no such layer"


# ---------------------------------------------------------------------- the model around it


def test_the_model_is_left_as_it_was() -> None:
    model = model_of("llama").train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    sampler = Sampler(model, stop_ids=STOPS)
    assert not is_installed(model)
    sampler.sample([[3, 4]], 2, SamplingParams(4), seed=0)
    assert not is_installed(model)
    assert [module.training for module in model.modules()] == before
    choose_layout(model)
    Sampler(model, stop_ids=STOPS).sample([[3, 4]], 2, SamplingParams(4), seed=0)
    assert is_installed(model)
    loss = model(torch.tensor([[3, 4, 5]])).logits.sum()
    loss.backward()  # nothing of the sampling stands in the way of training
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None


def test_weights_are_shared_and_a_copy_is_refreshed() -> None:
    model, prompts, params = model_of("llama"), prompts_of(1), SamplingParams(8)
    same = Sampler(model, stop_ids=())
    copy = Sampler(model, stop_ids=(), dtype=torch.float64)
    assert same.model is model and copy.model is not model
    before = ids_of(same.sample(prompts, 3, params, seed=0))
    assert ids_of(copy.sample(prompts, 3, params, seed=0)) == before
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    same.refresh()
    after = ids_of(same.sample(prompts, 3, params, seed=0))
    assert after != before and ids_of(copy.sample(prompts, 3, params, seed=0)) == before
    copy.refresh()
    assert ids_of(copy.sample(prompts, 3, params, seed=0)) == after
    assert next(copy.model.parameters()).dtype == torch.float64
    assert model.model.embed_tokens.weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_adapters(name: str) -> None:
    model = lora.attach(model_of(name), r=4, alpha=8, seed=0).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    choose_layout(model)
    prompts = prompts_of(8)
    sampler = Sampler(model, stop_ids=STOPS)
    assert sampler.way == WAYS[name], sampler.reason
    rollouts = sampler.sample(prompts, 3, SamplingParams(10), seed=0)
    found = sampled_logprobs(rollouts)
    assert apart(found, trained_logprobs(model, prompts, rollouts)) < 1e-4
    with model.disable_adapter():  # rejected: the base model's
        assert apart(found, trained_logprobs(model, prompts, rollouts)) > 0.1


def test_a_small_cache_runs_fewer_rows_and_gives_the_same() -> None:
    model, prompts, params = model_of("llama"), prompts_of(4), SamplingParams(8)
    expected = Sampler(model, stop_ids=()).sample(prompts, 4, params, seed=0)
    longest = max(map(len, prompts)) + 8
    bytes_of_token = 3 * 2 * 2 * 8 * 4  # layers, keys and values, key heads, head size, fp32
    small = Sampler(model, stop_ids=(), cache_bytes=2 * longest * bytes_of_token)
    assert small._slots(longest) == 2
    assert ids_of(small.sample(prompts, 4, params, seed=0)) == ids_of(expected)


def test_long_samples_outgrow_their_first_place_in_the_cache() -> None:
    model, prompts = model_of("llama"), prompts_of(4, count=3)
    choose_layout(model)
    sampler = Sampler(model, stop_ids=(2,), slots=4)
    rollouts = sampler.sample(prompts, 3, SamplingParams(150), seed=1)
    assert max(len(one.ids) for own in rollouts for one in own) > 100
    assert apart(sampled_logprobs(rollouts), trained_logprobs(model, prompts, rollouts)) < 1e-4


@pytest.mark.parametrize("way", ["auto", "generate"])
def test_progress_is_told(way: Any) -> None:
    told: list[int] = []
    sampler = Sampler(model_of("llama"), stop_ids=STOPS, slots=3, way=way)
    sampler.sample(prompts_of(7), 3, SamplingParams(6), seed=0, done=told.append)
    assert told == sorted(set(told)) and told[-1] == 15


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_every_token_is_told_as_it_comes(name: str) -> None:
    """By all three ways; a row that has ended beside others tells nothing more."""
    sampler = Sampler(model_of(name), stop_ids=STOPS, slots=4)
    assert sampler.way == WAYS[name]
    told: dict[tuple[int, int], list[int]] = {}
    rollouts = sampler.sample(
        prompts_of(3),
        2,
        SamplingParams(14),
        seed=1,
        numbers=[7, 1, 3, 2, 9],
        each=lambda prompt, sample, token: told.setdefault((prompt, sample), []).append(token),
    )
    assert told == {(r.prompt, r.sample): list(r.ids) for own in rollouts for r in own}
    assert len({len(ids) for ids in told.values()}) > 2  # they end at different times
