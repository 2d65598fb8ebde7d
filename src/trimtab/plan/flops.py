"""The floating-point operations that a step cannot do without, counted from its token trees.

Nothing is padded, a prompt is computed once for all its responses, and logits are computed only
where a token is predicted. Whatever a trainer does beyond this is its own doing, so that the count
is the same for every trainer that is measured on the same rows.

A multiplication and an addition are two operations. Only matrix products are counted: norms,
activations, softmax and the optimizer are a few per cent, and belong to the time, not to the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Product(NamedTuple):
    """A dense layer of the model: ``inputs`` to ``outputs`` features, ``count`` of them."""

    inputs: int
    outputs: int
    count: int

    @property
    def weights(self) -> int:
        """Weights of all of them."""
        return self.inputs * self.outputs * self.count


class Shape(NamedTuple):
    """What of a model decides its cost: dense layers of the body, the head, attention."""

    body: tuple[Product, ...]
    head: Product
    layers: int
    attention_width: int  # query heads x width of a head


class Tree(NamedTuple):
    """A token tree as lengths: ``targets`` counts positions that predict a trained token."""

    trunk: int
    branches: tuple[int, ...]
    targets: int

    @property
    def tokens(self) -> int:
        """Tokens, those of the trunk once."""
        return self.trunk + sum(self.branches)

    @property
    def visible_keys(self) -> int:
        """Sum over all tokens of the tokens that each attends to, itself included."""
        total = self.trunk * (self.trunk + 1) // 2
        for length in self.branches:
            total += length * self.trunk + length * (length + 1) // 2
        return total


def llama_shape(config: Mapping[str, Any]) -> Shape:
    """The shape of a model of the Llama family from its ``config.json``.

    A model with scores makes no logits, and its one column is not worth counting: no head.
    """
    width, inner, layers = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    heads = config["num_attention_heads"]
    head_width = config.get("head_dim") or width // heads
    queries = heads * head_width
    keys = (config.get("num_key_value_heads") or heads) * head_width
    body = (
        Product(width, queries, layers),
        Product(width, keys, 2 * layers),
        Product(queries, width, layers),
        Product(width, inner, 2 * layers),
        Product(inner, width, layers),
    )
    names = config.get("architectures") or ()
    scored = any(name.endswith("ForSequenceClassification") for name in names)
    head = Product(width, 0 if scored else config["vocab_size"], 1)
    return Shape(body, head, layers, queries)


def tree_of(record: Mapping[str, Any]) -> Tree:
    """A tree as ``trimtab_side.py`` writes it down."""
    return Tree(record["trunk"], tuple(record["branches"]), record["targets"])


def forward(shape: Shape, trees: Iterable[Tree]) -> float:
    """Operations of one forward pass."""
    body = sum(product.weights for product in shape.body)
    total = 0.0
    for tree in trees:
        total += 2.0 * body * tree.tokens
        total += 2.0 * shape.head.weights * tree.targets
        # Scores and their weighted sum of values: each 2 x width x keys.
        total += 4.0 * shape.layers * shape.attention_width * tree.visible_keys
    return total


def adapters(shape: Shape, trees: Iterable[Tree], rank: int) -> float:
    """Operations of one forward pass through LoRA's two factors of every dense layer."""
    weights = sum(rank * (p.inputs + p.outputs) * p.count for p in shape.body)
    return sum(2.0 * weights * tree.tokens for tree in trees)


def training(
    shape: Shape, trees: Sequence[Tree], *, reference: bool = False, lora_rank: int | None = None
) -> float:
    """Operations of a training step: forward, both products of the backward pass, the reference.

    Frozen weights need no gradient of their own: with LoRA the backward pass has one product for
    each of them, and attention, which has no weights, its four.
    """
    once = forward(shape, trees)
    total = 3.0 * once
    if lora_rank is not None:
        frozen = sum(p.weights for p in shape.body)
        spared = sum(
            2.0 * frozen * tree.tokens + 2.0 * shape.head.weights * tree.targets for tree in trees
        )
        total = 3.0 * once - spared + 3.0 * adapters(shape, trees, lora_rank)
    return total + (once if reference else 0.0)


def generation(shape: Shape, trees: Iterable[Tree]) -> float:
    """Operations of sampling the branches: prompts once, every token but a branch's last once.

    The last token is never fed: nothing comes after it. ``targets`` are the sampled tokens.
    """
    return forward(
        shape,
        [tree._replace(branches=tuple(length - 1 for length in tree.branches)) for tree in trees],
    )


def on_policy(shape: Shape, trees: Sequence[Tree], *, passes: int, critic: bool) -> float:
    """Operations of rollouts with ``passes`` over them: a prompt once for all its responses.

    Sampling, the reference's log-probs and every pass' forward and backward; with a critic (PPO)
    also the reward model's scores, the values before training, and training the value model.
    """
    total = generation(shape, trees) + forward(shape, trees) + passes * training(shape, trees)
    if critic:
        scored = shape._replace(head=shape.head._replace(outputs=0))
        total += 2.0 * forward(scored, trees) + passes * training(scored, trees)
    return total
