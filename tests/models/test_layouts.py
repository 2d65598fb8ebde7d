"""shared = packed = padded: hidden states and parameter gradients, and what must not pass."""

from __future__ import annotations

import dataclasses
import random

import peft
import pytest
import torch
from tests.tiny_models import (
    WINDOW,
    random_tree,
    random_trees,
    tiny_model,
)
from torch import Tensor, nn

from trimtab.data.batch import Span, TreeBatch, TreeSpans, pack
from trimtab.data.trees import TokenTree
from trimtab.models.attention import install, plain_attention
from trimtab.models.forward import Layout, hidden_states
from trimtab.models.fused import install_fused
from trimtab.models.load import checkpoint_activations

ARCHITECTURES = ("llama", "qwen3", "gemma3_text", "gpt2", "gemma2", "mistral")
LONGEST = (12, 60)  # all trees in masked blocks; most trees in a cascade


def states_and_gradients(
    model: nn.Module, batch: TreeBatch, layout: Layout, *, authors: bool = False
) -> tuple[Tensor, Tensor]:
    """Hidden states at targets and ends, and the gradient of a random function of them.

    ``padded`` has the model's own attention; with ``authors`` its own norms and gates too.
    """
    model.zero_grad()
    if layout == "padded":
        with plain_attention(model):
            if not authors:
                install_fused(model)
            return _run(model, batch, layout)
    return _run(model, batch, layout)


def _run(model: nn.Module, batch: TreeBatch, layout: Layout) -> tuple[Tensor, Tensor]:
    hidden = hidden_states(model, batch, layout)
    states = torch.cat((hidden.targets(), hidden.ends()))
    generator = torch.Generator().manual_seed(11)
    weight = torch.randn(states.shape, generator=generator, dtype=torch.float64).to(states.dtype)
    (states * weight).sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return states.detach().double(), torch.cat(gradients).double()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def assert_layouts_equal(
    model: nn.Module, batch: TreeBatch, *, states: float, gradients: float
) -> None:
    install(model)
    oracle = states_and_gradients(model, batch, "padded")
    assert all(x.isfinite().all() for x in oracle)
    for layout in ("shared", "packed"):
        got = states_and_gradients(model, batch, layout)
        assert distance(got[0], oracle[0]) < states, layout
        assert distance(got[1], oracle[1]) < gradients, layout


@pytest.mark.parametrize("longest", LONGEST)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layouts_equal_in_fp32(name: str, longest: int) -> None:
    batch = pack(random_trees(1, longest=longest))
    assert_layouts_equal(tiny_model(name), batch, states=1e-6, gradients=1e-6)


@pytest.mark.parametrize("longest", LONGEST)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "mistral", "gemma3_text"])
def test_layouts_equal_in_fp64(name: str, longest: int) -> None:
    """With fused norms, which stay in fp64: transformers' own round to fp32 on their way."""
    model = tiny_model(name, dtype=torch.float64)
    batch = pack(random_trees(2, longest=longest))
    assert_layouts_equal(model, batch, states=1e-12, gradients=1e-12)


@pytest.mark.parametrize(
    ("dtype", "states", "gradients"), [(torch.float32, 1e-6, 3e-6), (torch.float64, 3e-7, 1e-6)]
)
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text"])
def test_equal_to_the_model_as_its_authors_wrote_it(
    name: str, dtype: torch.dtype, states: float, gradients: float
) -> None:
    """Fused norms and gates against transformers' own, as far as its fp32 norms allow."""
    model = tiny_model(name, dtype=dtype)
    batch = pack(random_trees(3, longest=60))
    install(model)
    oracle = states_and_gradients(model, batch, "padded", authors=True)
    got = states_and_gradients(model, batch, "shared")
    assert distance(got[0], oracle[0]) < states
    assert distance(got[1], oracle[1]) < gradients


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_layouts_equal_in_bf16(name: str) -> None:
    """States to 2e-2; gradients, which round in every layer, no worse than the oracle's own."""
    batch = pack(random_trees(1, longest=60))
    model = tiny_model(name, dtype=torch.bfloat16)
    exact = tiny_model(name)
    exact.load_state_dict(model.state_dict())
    truth = states_and_gradients(exact, batch, "padded")
    install(model)
    oracle = states_and_gradients(model, batch, "padded")
    for layout in ("shared", "packed"):
        got = states_and_gradients(model, batch, layout)
        assert distance(got[0], oracle[0]) < 2e-2, layout
        assert distance(got[1], oracle[1]) < 4e-2, layout
        for mine, its, true in zip(got, oracle, truth, strict=True):
            assert distance(mine, true) < 1.1 * distance(its, true) < 5e-2, layout


@pytest.mark.parametrize("window", [1, 2, 17, 30, 71, 72, 100])
@pytest.mark.parametrize("name", ["gemma3_text", "mistral"])
def test_layouts_equal_for_any_window(name: str, window: int) -> None:
    """Windows below, within and beyond trunk (40), branches and the deepest path (71)."""
    trees = [
        _random_tree(5, 40, [31, 0, 12, 25]),
        _random_tree(6, 20, [3]),
        _random_tree(7, 3, [4, 50]),
    ]
    model = tiny_model(name, sliding_window=window)
    assert_layouts_equal(model, pack(trees), states=1e-6, gradients=2e-6)  # 1.1e-6 on AVX-512


def _random_tree(seed: int, trunk: int, branches: list[int]) -> TokenTree:
    return random_tree(random.Random(seed), row=seed, trunk=trunk, branches=branches)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT uses a deprecated property
def test_layouts_equal_with_adapters() -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    base = tiny_model("llama", dtype=torch.float64)
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=False).double().train()
    batch = pack(random_trees(4, longest=60))
    assert_layouts_equal(model, batch, states=1e-12, gradients=1e-12)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "gemma2"])
def test_checkpointed_activations_give_the_same_gradients(name: str) -> None:
    model = tiny_model(name)
    install(model)
    batch = pack(random_trees(5, longest=60))
    plain = states_and_gradients(model, batch, "shared")
    calls = []
    attention = next(m for n, m in model.named_modules() if n.endswith(("attn", "self_attn")))
    attention.register_forward_hook(lambda *_: calls.append(1))
    checkpoint_activations(model)
    checkpointed = states_and_gradients(model, batch, "shared")
    assert len(calls) == 2, "the layer was not computed again"
    assert torch.equal(checkpointed[0], plain[0])
    assert torch.equal(checkpointed[1], plain[1])
    assert_layouts_equal(model, batch, states=1e-6, gradients=1e-6)


def replaced_tokens(tree: TokenTree, which: int) -> TokenTree:
    """The same tree with other tokens in branch ``which``."""
    branches = list(tree.branches)
    ids = tuple(3 + (i + 31) % 90 for i in branches[which].ids)
    assert ids != branches[which].ids
    branches[which] = branches[which]._replace(ids=ids)
    return tree._replace(branches=tuple(branches))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "gemma2"])
@pytest.mark.parametrize("size", [(6, [5, 7, 6]), (40, [30, 25, 33])])
def test_siblings_and_other_trees_change_no_bit(
    name: str, dtype: torch.dtype, size: tuple[int, list[int]]
) -> None:
    """The same kernels run on the same shapes, so what is not seen leaves no trace at all."""
    model = tiny_model(name, dtype=dtype)
    install(model)
    trees = [_random_tree(seed, *size) for seed in range(3)]
    changed = [trees[0], replaced_tokens(trees[1], 1), trees[2]]
    batch, other = pack(trees), pack(changed)
    with torch.no_grad():
        a = hidden_states(model, batch, "shared", whole=True).states
        b = hidden_states(model, other, "shared", whole=True).states
    moved = (a != b).any(-1)
    branch = batch.spans[1].branches[1]
    assert moved[branch.start : branch.end].all()
    moved[branch.start : branch.end] = False
    assert not moved.any()


def test_a_trunk_reaches_its_own_branches_and_no_more() -> None:
    """Twin of the test above: it would notice."""
    model = tiny_model("llama")
    install(model)
    trees = [_random_tree(seed, 40, [30, 25]) for seed in range(3)]
    trunk = trees[1].trunk._replace(ids=(3, *trees[1].trunk.ids[1:]))
    batch, other = pack(trees), pack([trees[0], trees[1]._replace(trunk=trunk), trees[2]])
    with torch.no_grad():
        a = hidden_states(model, batch, "shared", whole=True).states
        b = hidden_states(model, other, "shared", whole=True).states
    moved = (a != b).any(-1)
    tree = batch.spans[1]
    assert moved[tree.start : tree.end].all()
    assert not moved[: tree.start].any() and not moved[tree.end :].any()


def siblings_visible(batch: TreeBatch) -> TreeBatch:
    spans = tuple(TreeSpans(t.trunk, (Span(t.trunk.end, t.end),)) for t in batch.spans)
    return dataclasses.replace(batch, spans=spans)


def depth_restarts(batch: TreeBatch) -> TreeBatch:
    """Every branch counts its positions from 0 again."""
    depth = batch.depth.clone()
    for tree in batch.spans:
        for branch in tree.branches:
            depth[branch.start : branch.end] -= tree.trunk.length
    return dataclasses.replace(batch, depth=depth)


def packed_index(batch: TreeBatch) -> TreeBatch:
    """Positions count on through the row, as without position ids."""
    return dataclasses.replace(batch, depth=torch.arange(batch.ids.numel()))


def positions_of_row_in_tree(batch: TreeBatch) -> TreeBatch:
    """Positions count on through a tree, so that a second branch lies behind the first."""
    depth = torch.cat([torch.arange(t.end - t.start) for t in batch.spans])
    return dataclasses.replace(batch, depth=depth)


def one_document(batch: TreeBatch) -> TreeBatch:
    """No borders between trees: the leak of naive packing."""
    end = batch.ids.numel()
    spans = (TreeSpans(Span(0, end), ()),)
    return dataclasses.replace(batch, spans=spans)


def branches_without_trunk(batch: TreeBatch) -> TreeBatch:
    """What transformers' own packing makes of tree positions: a jump starts a new document."""
    spans = [TreeSpans(t.trunk, ()) for t in batch.spans if t.trunk.length]
    spans += [TreeSpans(b, ()) for t in batch.spans for b in t.branches if b.length]
    return dataclasses.replace(batch, spans=tuple(sorted(spans, key=lambda s: s.start)))


def own_previous_position(batch: TreeBatch) -> TreeBatch:
    """A branch's first token predicted by the position before it in the row."""
    return dataclasses.replace(batch, predictor=batch.target - 1)


def predictor_is_target(batch: TreeBatch) -> TreeBatch:
    return dataclasses.replace(batch, predictor=batch.target)


def end_of_tree(batch: TreeBatch) -> TreeBatch:
    """All branches end where the last one does."""
    ends = torch.tensor([tree.end - 1 for tree in batch.spans])
    return dataclasses.replace(batch, end=ends[batch.tree_of_branch])


WRONG = (
    siblings_visible,
    depth_restarts,
    packed_index,
    positions_of_row_in_tree,
    one_document,
    branches_without_trunk,
    own_previous_position,
    predictor_is_target,
    end_of_tree,
)


@pytest.mark.parametrize("longest", LONGEST)
@pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["gemma3_text", "gpt2"])  # windows and RoPE; learned positions
def test_equality_rejects(name: str, wrong, longest: int) -> None:
    """Each mistake is a thousand times above the tolerance, in states and in gradients."""
    model = tiny_model(name)
    install(model)
    batch = pack(random_trees(1, longest=longest))
    oracle = states_and_gradients(model, batch, "padded")
    got = states_and_gradients(model, wrong(batch), "shared")
    assert distance(got[0], oracle[0]) > 1e-3
    assert distance(got[1], oracle[1]) > 1e-3


@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_equality_rejects_a_wrong_window(change: int) -> None:
    """One token more or less, or none at all: the short trees show it."""
    model = tiny_model("gemma3_text")
    install(model)
    batch = pack(random_trees(1))
    oracle = states_and_gradients(model, batch, "padded")
    for layer in model.model.layers:
        if layer.self_attn.sliding_window is not None:
            layer.self_attn.sliding_window = WINDOW + change
    got = states_and_gradients(model, batch, "shared")
    assert distance(got[0], oracle[0]) > 1e-3
    assert distance(got[1], oracle[1]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layouts_equal_over_many_batches(name: str, seed: int) -> None:
    model = tiny_model(name, seed=seed)
    batch = pack(random_trees(100 + seed, count=8, longest=(8, 30, 90, 200)[seed % 4]))
    assert_layouts_equal(model, batch, states=1.5e-6, gradients=1.5e-6)
