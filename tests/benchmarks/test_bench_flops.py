"""The count of useful operations, against counts by hand and against a model that is run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from trimtab.plan.flops import (
    Tree,
    adapters,
    forward,
    generation,
    llama_shape,
    on_policy,
    training,
)

CONFIG = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 50,
}
# Weights of a layer: q 8x8, k and v 8x4, o 8x8, gate and up 8x12, down 12x8.
BODY = 2 * (64 + 2 * 32 + 64 + 2 * 96 + 96)
PAIR = Tree(trunk=3, branches=(2, 1), targets=3)


def test_shape_of_a_llama() -> None:
    shape = llama_shape(CONFIG)
    assert sum(p.weights for p in shape.body) == BODY
    assert shape.head.weights == 8 * 50
    assert (shape.layers, shape.attention_width) == (2, 8)
    assert llama_shape({**CONFIG, "head_dim": 6}).attention_width == 12


def test_scores_have_no_head() -> None:
    """A reward model makes no logits: the body alone is counted, wherever its trees end."""
    scored = llama_shape({**CONFIG, "architectures": ["LlamaForSequenceClassification"]})
    language = llama_shape({**CONFIG, "architectures": ["LlamaForCausalLM"]})
    assert (scored.head.weights, language.head.weights) == (0, 400)
    assert scored.body == language.body
    expected = 2 * BODY * 6 + 4 * 2 * 8 * 19
    assert forward(scored, [PAIR]) == forward(language, [PAIR._replace(targets=0)]) == expected


def test_a_ranking_reads_its_prompt_once() -> None:
    scored = llama_shape({**CONFIG, "architectures": ["LlamaForSequenceClassification"]})
    ranking = Tree(trunk=10, branches=(1, 2, 3, 4), targets=0)
    # Keys seen: the prompt's 55, and 10 a token of a response with the triangle of its own.
    assert (ranking.tokens, ranking.visible_keys) == (20, 55 + 11 + 23 + 36 + 50)
    expected = 3 * (2 * BODY * 20 + 4 * 2 * 8 * 175)
    assert training(scored, [ranking]) == expected
    # Its six pairs have the prompt six times, and every response three times.
    lengths = ((1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4))
    pairs = [Tree(10, two, 0) for two in lengths]
    assert sum(pair.tokens for pair in pairs) == 6 * 10 + 3 * 10
    assert training(scored, pairs) > 4 * expected


def test_a_pair_by_hand() -> None:
    # Keys seen: trunk 1 + 2 + 3, first branch 4 + 5, second branch 4 (it starts over at depth 3).
    assert PAIR.visible_keys == 6 + 9 + 4
    assert PAIR.tokens == 6
    expected = 2 * BODY * 6 + 2 * 400 * 3 + 4 * 2 * 8 * 19
    assert forward(llama_shape(CONFIG), [PAIR]) == expected
    assert forward(llama_shape(CONFIG), [PAIR, PAIR]) == 2 * expected


def test_siblings_share_the_trunk_and_do_not_see_each_other() -> None:
    apart = [Tree(3, (2,), 2), Tree(3, (1,), 1)]
    assert sum(tree.tokens for tree in apart) - PAIR.tokens == 3
    assert sum(tree.visible_keys for tree in apart) - PAIR.visible_keys == 6


def test_training_is_three_forwards_and_a_reference_one_more() -> None:
    shape = llama_shape(CONFIG)
    once = forward(shape, [PAIR])
    assert training(shape, [PAIR]) == 3 * once
    assert training(shape, [PAIR], reference=True) == 4 * once


def test_lora_spares_the_frozen_weights_gradients() -> None:
    shape = llama_shape(CONFIG)
    dense = 2 * BODY * 6 + 2 * 400 * 3
    attention = 4 * 2 * 8 * 19
    # q: 8+8, k and v: 8+4, o: 8+8, gate and up: 8+12, down: 12+8; rank 4, 2 layers.
    factors = 2 * 4 * (16 + 2 * 12 + 16 + 2 * 20 + 20)
    assert adapters(shape, [PAIR], 4) == 2 * factors * 6
    expected = 2 * dense + 3 * attention + 3 * 2 * factors * 6
    assert training(shape, [PAIR], lora_rank=4) == expected


def test_a_rollout_by_hand() -> None:
    shape = llama_shape(CONFIG)
    group = Tree(trunk=3, branches=(2, 2), targets=4)
    # Fed while sampling: the prompt and the first token of each response; 6 + 4 + 4 keys are seen.
    sampling = 2 * BODY * 5 + 2 * 400 * 4 + 4 * 2 * 8 * 14
    assert generation(shape, [group]) == sampling
    # Read whole: 7 tokens, which see 6 + 9 + 9 keys.
    scored = 2 * BODY * 7 + 4 * 2 * 8 * 24
    reading = scored + 2 * 400 * 4
    assert on_policy(shape, [group], passes=1, critic=False) == sampling + 4 * reading
    # PPO: four passes of the policy and of the value model, values and rewards once.
    expected = sampling + reading + 12 * reading + 2 * scored + 12 * scored
    assert on_policy(shape, [group], passes=4, critic=True) == expected
    assert on_policy(shape, [group, group], passes=4, critic=True) == 2 * expected


@pytest.mark.parametrize("length", [1, 7])
def test_a_model_that_is_run_agrees_but_for_the_causal_half(length: int) -> None:
    torch.manual_seed(0)
    keys: dict[str, Any] = {**CONFIG, "attn_implementation": "eager"}
    model = LlamaForCausalLM(LlamaConfig(**keys))
    ids = torch.randint(0, 50, (1, length))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False)
    counted = forward(llama_shape(CONFIG), [Tree(length, (), length)])
    # Eager attention computes the whole square; the count has what is seen.
    square = 4 * 2 * 8 * (length * length - length * (length + 1) // 2)
    assert counter.get_total_flops() == pytest.approx(counted + square)
