"""Random tiny models of several architectures, and random token trees, for all tests.

Weights are scaled so that attention is far from uniform: with transformers' default of 0.02 a
wrong mask would hardly show in the numbers.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from trimtab.data.trees import Branch, Comparison, Origin, TokenTree

VOCABULARY = 97
WINDOW = 4

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "attention_dropout": 0.0,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SLIDING = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "tie_word_embeddings": False},
    "qwen3": {**_COMMON, "tie_word_embeddings": True},
    "gemma3_text": {**_COMMON, **_SLIDING, "query_pre_attn_scalar": 8},
    "gemma2": {**_COMMON, **_SLIDING, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "mistral": {**_COMMON, "sliding_window": WINDOW},
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 1024,
        "initializer_range": 0.2,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "opt": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "init_std": 0.2,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "pad_token_id": None,
    },
    "gpt_oss": {
        **_COMMON,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "num_local_experts": 2,
        "num_experts_per_tok": 2,
    },
    "bloom": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "n_layer": 2,
        "n_head": 4,
        "initializer_range": 0.2,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "falcon": {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.2,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
}
ARCHITECTURES = tuple(_CONFIGS)
"""Names for ``tiny_model``; all but bloom and falcon take tree attention."""


def tiny_model(
    name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> PreTrainedModel:
    """A model of 3 layers, 32 wide, with a vocabulary of 97, in training mode without dropout.

    Gemma 2 and 3, Mistral and gpt-oss have windows of ``WINDOW`` = 4 tokens (``sliding_window``
    overrides it); all but Mistral have full layers too.
    """
    config = AutoConfig.for_model(name, **{**_CONFIGS[name], **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # biases and norms start at 0 and 1: too regular
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).train()


def norms_in_own_dtype(model: nn.Module) -> None:
    """Let RMSNorms compute in the model's dtype: transformers' always go through fp32.

    For comparisons in fp64 only: a difference of 1e-16 before a rounding to fp32 can be 6e-8
    behind it.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            shift = 1.0 if type(module).__name__.startswith("Gemma") else 0.0
            module.forward = _RootMeanSquare(module, shift)


class _RootMeanSquare:
    def __init__(self, norm: Any, shift: float) -> None:
        self.weight, self.shift = norm.weight, shift
        self.epsilon = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon)
        return x * scale * (self.weight + self.shift)


def random_tree(
    rng: random.Random,
    *,
    row: int = 1,
    trunk: int | None = None,
    branches: list[int] | None = None,
    longest: int = 12,
) -> TokenTree:
    """A tree of random tokens, lengths drawn where not given, about a quarter left untrained."""
    trunk = rng.randint(1, longest) if trunk is None else trunk
    if branches is None:
        branches = [rng.randint(0, longest) for _ in range(rng.randint(1, 4))]

    def run(length: int, *, first_trainable: bool) -> Branch:
        ids = tuple(rng.randrange(3, VOCABULARY) for _ in range(length))
        trained = [rng.random() < 0.75 for _ in range(length)]
        if trained and not first_trainable:
            trained[0] = False
        return Branch(ids, tuple(trained))

    return TokenTree(
        run(trunk, first_trainable=False),
        tuple(run(length, first_trainable=trunk > 0) for length in branches),
        (Comparison(0, 1),) if len(branches) > 1 else (),
        Origin("random", row),
    )


def random_trees(
    seed: int, *, count: int = 5, longest: int = 12, edge_cases: bool = True
) -> list[TokenTree]:
    """Random trees; with ``edge_cases`` also trunks and branches of no token or one, and G = 8."""
    rng = random.Random(seed)
    trees = [random_tree(rng, longest=longest) for _ in range(count)]
    if edge_cases:
        shapes = (0, [5]), (0, [3, 4]), (1, [1]), (1, [0, 1]), (6, []), (7, [0]), (3, [2] * 8)
        trees += [random_tree(rng, trunk=t, branches=b) for t, b in shapes]
        rng.shuffle(trees)
    return [tree._replace(origin=Origin("random", i + 1)) for i, tree in enumerate(trees)]
