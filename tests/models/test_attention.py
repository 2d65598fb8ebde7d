"""Tree attention against a path-by-path oracle, in fp64, values and gradients."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import WINDOW, random_trees, tiny_model
from torch import Tensor

from trimtab.data.batch import Span, TreeBatch, TreeSpans, pack
from trimtab.data.trees import Branch, Origin, TokenTree
from trimtab.models import attention, attention_kernels
from trimtab.models.attention import (
    ATTENTION_NAME,
    install,
    is_installed,
    plain_attention,
    tree_attention,
    uninstall,
)
from trimtab.models.attention_kernels import (
    batched_attention,
    block_attention,
    block_attention_works,
    dense_attention,
    masked_attention,
)
from trimtab.models.attention_plan import DENSE_TOKENS, TreePlan

Shape = tuple[int, list[int]]
SCALE = 0.4


def batch_of(shapes: list[Shape]) -> TreeBatch:
    def run(length: int) -> Branch:
        return Branch((5,) * length, (False,) * length)

    return pack(
        [
            TokenTree(run(trunk), tuple(map(run, branches)), (), Origin("shape", i + 1))
            for i, (trunk, branches) in enumerate(shapes)
        ]
    )


def plan_of(shapes: list[Shape]) -> TreePlan:
    batch = batch_of(shapes)
    return TreePlan(batch.spans, batch.depth)


def inputs_of(
    plan: TreePlan, *, heads: int = 4, key_heads: int = 2, size: int = 8, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as models give them: [1, H, T, D] views of [1, T, H, D], in fp64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Tensor:
        shape = (1, plan.token_count, count, size)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (1.5 * drawn).transpose(1, 2).requires_grad_()

    return draw(heads), draw(key_heads), draw(key_heads)


def oracle(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: tuple[TreeSpans, ...],
    *,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """[1, T, H, D]: each path from root to leaf on its own, by the definition."""
    groups = q.shape[1] // k.shape[1]
    keys, values = k[0].repeat_interleave(groups, 0), v[0].repeat_interleave(groups, 0)

    def attend(rows: list[int], path: list[int]) -> Tensor:
        """[rows, H, D]; ``rows`` are the last positions of ``path``."""
        scores = SCALE * q[0][:, rows] @ keys[:, path].mT
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        index = torch.arange(len(path))
        distance = index[len(path) - len(rows) :, None] - index
        hidden = (distance < 0) | (distance >= (window or len(path)))
        weights = scores.masked_fill(hidden, float("-inf")).exp()
        total = weights.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + sinks[:, None, None].exp()
        return (weights / total @ values[:, path]).transpose(0, 1)

    parts: list[Tensor] = []
    for tree in spans:
        trunk = list(range(*tree.trunk))
        parts.append(attend(trunk, trunk))
        for branch in tree.branches:
            rows = list(range(*branch))
            parts.append(attend(rows, trunk + rows))
    return torch.cat(parts)[None]


def by_blocks(q: Tensor, k: Tensor, v: Tensor, plan: TreePlan, window: int | None) -> Tensor:
    return block_attention(q, k, v, plan.program(window, torch.float64), SCALE)


def value_and_gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


def worst(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest relative difference of output, dQ, dK and dV."""
    pairs = [(x.detach(), y.detach()) for x, y in zip(a, b, strict=True)]
    return max(float((x - y).norm() / y.norm().clamp_min(1.0)) for x, y in pairs)


LENGTH = st.one_of(st.integers(0, 4), st.integers(0, 90))
SHAPE = st.tuples(LENGTH, st.lists(LENGTH, max_size=4))
SHAPES = st.lists(SHAPE, min_size=1, max_size=4).filter(lambda s: sum(t + sum(b) for t, b in s) > 0)
WINDOWS = st.one_of(st.none(), st.integers(1, 12), st.integers(13, 150))


@settings(max_examples=60, deadline=None)
@given(shapes=SHAPES, window=WINDOWS, key_heads=st.sampled_from([1, 2, 4]))
def test_blocks_and_masks_equal_paths(
    shapes: list[Shape], window: int | None, key_heads: int
) -> None:
    plan = plan_of(shapes)
    inputs = inputs_of(plan, key_heads=key_heads)
    expected = value_and_gradients(oracle(*inputs, plan.spans, window=window), inputs)
    blocks = value_and_gradients(by_blocks(*inputs, plan, window), inputs)
    masked = masked_attention(*inputs, plan, window=window, scale=SCALE)
    assert worst(blocks, expected) < 1e-12
    assert worst(value_and_gradients(masked, inputs), expected) < 1e-12
    batched = batched_attention(*inputs, plan, window=window, scale=SCALE, run_tokens=64)
    assert worst(value_and_gradients(batched, inputs), expected) < 1e-12


@settings(max_examples=60, deadline=None)
@given(shapes=SHAPES, window=WINDOWS)
def test_program_covers_each_row_once(shapes: list[Shape], window: int | None) -> None:
    plan = plan_of(shapes)
    program = plan.program(window, torch.float32)
    own = [row for block in program.own for row in range(*block.rows)]
    cross = [row for block in program.cross for row in range(*block.rows)]
    assert own == list(range(plan.token_count))
    assert len(cross) == len(set(cross))
    seen = torch.zeros(plan.token_count, plan.token_count, dtype=torch.int64)
    for block in (*program.own, *program.cross):
        part = torch.ones(block.rows.length, block.keys.length, dtype=torch.bool)
        if block.causal:
            assert block.rows == block.keys
            part = part.tril()
        if block.mask is not None:
            part = block.mask[0, 0] == 0
        assert part.any(1).all(), "a row of a block that sees nothing"
        seen[slice(*block.rows), slice(*block.keys)] += part
    assert torch.equal(seen, plan.visible(Span(0, plan.token_count), window).long())


def test_work_is_linear_in_branches_and_length() -> None:
    def area(shapes: list[Shape], window: int | None) -> int:
        program = plan_of(shapes).program(window, torch.float32)
        return sum(b.rows.length * b.keys.length for b in (*program.own, *program.cross))

    assert area([(100, [50] * 8)], None) == 100 * 100 + 400 * 100 + 8 * 50 * 50
    assert area([(2000, [])], 100) < 2000 * 2 * 100
    assert area([(8, [8, 8])] * 2, None) == 48 * 48, "small trees share a masked block"


def test_kernel_edges_beyond_512_keys() -> None:
    plan = plan_of([(700, [30, 600])])
    inputs = inputs_of(plan, heads=2, key_heads=1, size=4)
    for window in (None, 600, 130):
        masked = masked_attention(*inputs, plan, window=window, scale=SCALE)
        expected = value_and_gradients(masked, inputs)
        assert (
            worst(value_and_gradients(by_blocks(*inputs, plan, window), inputs), expected) < 1e-12
        )


SEVERAL: list[Shape] = [(40, [20, 30]), (5, [6, 7]), (3, [4]), (0, [70, 2]), (1, [1, 0, 1])]


def test_softcap_and_sinks_equal_paths() -> None:
    plan = plan_of(SEVERAL)
    inputs = inputs_of(plan)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    for window, softcap, used in itertools.product((None, 9), (None, 1.5), (None, sinks)):
        leaves = inputs if used is None else (*inputs, used)
        expected = oracle(*inputs, plan.spans, window=window, softcap=softcap, sinks=used)
        masked = masked_attention(
            *inputs, plan, window=window, scale=SCALE, softcap=softcap, sinks=used
        )
        wanted = value_and_gradients(expected, leaves)
        assert worst(value_and_gradients(masked, leaves), wanted) < 1e-12
        batched = batched_attention(
            *inputs, plan, window=window, scale=SCALE, softcap=softcap, sinks=used, run_tokens=64
        )
        assert worst(value_and_gradients(batched, leaves), wanted) < 1e-12


def test_oracle_comparison_rejects_wrong_plans() -> None:
    """Each of these is a bug that somebody has shipped; none may pass for rounding."""
    batch = batch_of(SEVERAL)
    plan = TreePlan(batch.spans, batch.depth)
    inputs = inputs_of(plan)
    merged = tuple(TreeSpans(t.trunk, (Span(t.trunk.end, t.end),)) for t in batch.spans)
    packed_index = torch.arange(plan.token_count)
    wrong = (
        ("siblings see each other", TreePlan(merged, batch.depth), None, None),
        ("window on the packed index", TreePlan(batch.spans, packed_index), 9, 9),
        ("window one too long", plan, 10, 9),
        ("window ignored", plan, None, 9),
    )
    for name, wrong_plan, window, right in wrong:
        expected = value_and_gradients(oracle(*inputs, batch.spans, window=right), inputs)
        masked = masked_attention(*inputs, wrong_plan, window=window, scale=SCALE)
        assert worst(value_and_gradients(masked, inputs), expected) > 1e-2, name
        batched = batched_attention(*inputs, wrong_plan, window=window, scale=SCALE)
        assert worst(value_and_gradients(batched, inputs), expected) > 1e-2, name
        if name != "window on the packed index":  # blocks know depth from the spans alone
            blocks = by_blocks(*inputs, wrong_plan, window)
            assert worst(value_and_gradients(blocks, inputs), expected) > 1e-2, name
    expected = value_and_gradients(oracle(*inputs, batch.spans), inputs)
    program = plan.program(None, torch.float64)._replace(cross=())
    without = block_attention(*inputs, program, SCALE)
    assert worst(value_and_gradients(without, inputs), expected) > 1e-2, "branches lose the trunk"


def test_gradient_rejects_unmerged_log_sum_exp(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass of a block must get the merged statistics, not the block's own."""
    plan = plan_of([(40, [20, 30])])
    inputs = inputs_of(plan)
    expected = value_and_gradients(oracle(*inputs, plan.spans), inputs)
    real = attention_kernels._backward_block

    def wrong(block, grad, q, k, v, out, lse, scale):
        rows = slice(*block.rows)
        own_out, own_lse = attention_kernels._forward_block(block, q, k, v, scale)
        out, lse = out.clone(), lse.clone()
        out[:, :, rows], lse[:, :, rows] = own_out, own_lse
        return real(block, grad, q, k, v, out, lse, scale)

    out = by_blocks(*inputs, plan, None)
    assert worst([out], expected[:1]) < 1e-12
    monkeypatch.setattr(attention_kernels, "_backward_block", wrong)
    assert worst(value_and_gradients(out, inputs), expected) > 1e-2


def test_gradients_by_finite_differences() -> None:
    plan = plan_of([(30, [20, 18])])
    assert plan.token_count > DENSE_TOKENS
    inputs = inputs_of(plan, heads=2, key_heads=1, size=2)
    assert torch.autograd.gradcheck(
        lambda *x: by_blocks(*x, plan, None), inputs, fast_mode=True, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision(dtype: torch.dtype) -> None:
    plan = plan_of(SEVERAL)
    exact = inputs_of(plan)
    inputs = tuple(x.detach().to(dtype).requires_grad_() for x in exact)
    reference = tuple(x.detach().double().requires_grad_() for x in inputs)
    expected = value_and_gradients(oracle(*reference, plan.spans, window=9), reference)
    program = plan.program(9, torch.float32)
    got = value_and_gradients(block_attention(*inputs, program, SCALE), inputs)
    assert all(x.dtype == dtype for x in got)
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert worst([x.double() for x in got], expected) < tolerance


def test_block_kernel_is_used_here() -> None:
    """Fails where a new PyTorch changes the private kernel: training would be right but slower."""
    assert block_attention_works()


def test_twin_serves_where_the_kernel_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(SEVERAL)
    inputs = inputs_of(plan)
    module = torch.nn.Identity()

    def call() -> Tensor:
        return tree_attention(
            module, *inputs, None, scaling=SCALE, tree_plan=plan, sliding_window=9
        )[0]

    fast = call()
    monkeypatch.setattr(attention, "block_attention_works", lambda: False)
    slow = call()
    assert type(fast.grad_fn).__name__ == "_BlockAttentionBackward"
    assert type(slow.grad_fn).__name__ == "CatBackward0"
    assert worst([fast], [slow]) < 1e-12


def test_value_heads_of_another_size_take_the_twin() -> None:
    """Multi-head latent attention (DeepSeek) has smaller values than queries."""
    plan = plan_of(SEVERAL)
    q, k, v = inputs_of(plan)
    out, _ = tree_attention(
        torch.nn.Identity(), q, k, v[..., :5], None, scaling=SCALE, tree_plan=plan
    )
    assert worst([out], [oracle(q, k, v, plan.spans)[..., :5]]) < 1e-12


def test_unknown_tensor_argument_is_refused() -> None:
    plan = plan_of([(2, [2])])
    inputs = inputs_of(plan)
    with pytest.raises(ValueError, match="position_bias"):
        tree_attention(
            torch.nn.Identity(), *inputs, None, tree_plan=plan, position_bias=torch.zeros(1)
        )


def test_dense_mask_forms_agree() -> None:
    plan = plan_of([(9, [])])
    inputs = inputs_of(plan)
    visible = torch.ones(9, 9, dtype=torch.bool).tril()
    additive = torch.zeros(9, 9, dtype=torch.float64).masked_fill(~visible, float("-inf"))
    for softcap in (None, 2.0):
        a = dense_attention(*inputs, visible, scale=SCALE, softcap=softcap)
        b = dense_attention(*inputs, additive, scale=SCALE, softcap=softcap)
        expected = oracle(*inputs, plan.spans, softcap=softcap).transpose(1, 2)
        assert worst([a], [expected]) < 1e-12
        assert worst([b], [expected]) < 1e-12


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gemma2", "mistral", "gpt2", "gpt_oss"])
def test_installed_model_is_an_ordinary_one_without_a_plan(name: str) -> None:
    """Masks, left padding and generation must work: the implementation is never switched back."""
    model = tiny_model(name).eval()
    ids = torch.randint(3, 90, (3, 11), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # padded on the left, as for generation
    mask[2, 8:] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}

    def run() -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
            tokens = model.generate(input_ids=ids[:2], attention_mask=mask[:2], **options)
            return model(input_ids=ids).logits, logits, tokens

    plain = run()
    install(model)
    assert is_installed(model)
    installed = run()
    for a, b in zip(plain[:2], installed[:2], strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-6
    assert torch.equal(plain[2], installed[2])


def test_installation_leaves_no_trace_in_what_is_saved(tmp_path: Path) -> None:
    model = tiny_model("llama")
    before = json.loads(model.config.to_json_string())
    install(model)
    assert model.config._attn_implementation == ATTENTION_NAME
    model.save_pretrained(tmp_path)
    assert ATTENTION_NAME not in (tmp_path / "config.json").read_text()
    after = json.loads((tmp_path / "config.json").read_text())
    assert after["architectures"] == ["LlamaForCausalLM"]
    assert {k: v for k, v in after.items() if k != "architectures"} == {
        k: v for k, v in before.items() if k != "architectures"
    }


@pytest.mark.parametrize(("name", "own"), [("llama", "sdpa"), ("gemma2", "eager")])
def test_plain_attention_and_uninstall_restore(name: str, own: str) -> None:
    model = tiny_model(name)
    install(model)
    install(model)
    with pytest.raises(RuntimeError, match="inside"), plain_attention(model):
        assert model.config._attn_implementation == own
        raise RuntimeError("inside")
    assert is_installed(model)
    uninstall(model)
    assert model.config._attn_implementation == own
    with plain_attention(model):
        pass
    assert not is_installed(model)


def test_window_of_the_tiny_models_is_met_by_random_trees() -> None:
    """Guard of the other tests: a window that no tree outgrows would prove nothing."""
    batch = pack(random_trees(0))
    plan = TreePlan(batch.spans, batch.depth)
    assert plan.effective_window(WINDOW) == WINDOW
    assert plan.effective_window(plan.deepest) is None
    assert plan.effective_window(plan.deepest - 1) == plan.deepest - 1
