"""Fused token log-probs against plain autograd over full logits, finite differences, and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.logprob_cases import ONE_ROW, VOCABULARY, WIDTH, make_case, run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trimtab.models import logprob_function
from trimtab.models.logprobs import (
    LogitHead,
    TokenStats,
    token_stats,
    token_stats_reference,
)

FIVE_ROWS = 5 * VOCABULARY * 8

TWO_ROWS = 2 * VOCABULARY * 8


def assert_same(a: TokenStats, b: TokenStats, tolerance: float) -> None:
    for name in TokenStats._fields:
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=name)


def assert_grads(a: list[Tensor], b: list[Tensor], tolerance: float) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


HEADS: dict[str, dict[str, Any]] = {
    "plain": {"bias": False},
    "bias": {},
    "frozen": {"frozen": True},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0, "scale": 1.5},
    "softcap-frozen": {"softcap": 2.0, "scale": 1.5, "frozen": True},
}

ASKED: dict[str, dict[str, bool]] = {
    "logp": {},
    "logp-correct-square": {"correct": True, "square": True},
    "entropy": {"entropy": True},
    "all": {"entropy": True, "correct": True, "square": True, "kl": True},
}


@pytest.mark.parametrize("block_bytes", [2**20, TWO_ROWS])
@pytest.mark.parametrize("chunk_bytes", [ONE_ROW, FIVE_ROWS, 2**20])
@pytest.mark.parametrize("keep_bytes", [0, 2**20])
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("head", HEADS)
def test_equals_twin_in_fp64(
    head: str,
    asked: str,
    keep_bytes: int,
    chunk_bytes: int,
    block_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every way to differentiate, with one block of rows a chunk and with several."""
    monkeypatch.setattr(logprob_function, "BLOCK_BYTES", block_bytes)
    case = make_case(**HEADS[head])
    options: dict[str, Any] = dict(ASKED[asked])
    if options.pop("kl", False):
        options["reference"] = case.reference
    options["temperature"] = 0.7
    slow, slow_grads = run(token_stats_reference, case, **options)
    fast, fast_grads = run(
        token_stats, case, **options, chunk_bytes=chunk_bytes, keep_bytes=keep_bytes
    )
    assert_same(fast, slow, 1e-12)
    assert_grads(fast_grads, slow_grads, 1e-12)


@pytest.mark.parametrize("keep_bytes", [0, 2**20])
@pytest.mark.parametrize("frozen", [False, True])
def test_equals_twin_in_fp32(frozen: bool, keep_bytes: int) -> None:
    case = make_case(torch.float32, frozen=frozen, softcap=5.0)
    options: dict[str, Any] = {"entropy": True, "square": True, "reference": case.reference}
    slow, slow_grads = run(token_stats_reference, case, **options)
    fast, fast_grads = run(
        token_stats, case, **options, chunk_bytes=FIVE_ROWS, keep_bytes=keep_bytes
    )
    assert fast.logp.dtype == torch.float32
    assert_same(fast, slow, 1e-6)
    assert_grads(fast_grads, slow_grads, 3e-6)


def test_finite_differences() -> None:
    case = make_case(tokens=3, vocabulary=7, softcap=3.0, scale=1.2)
    assert case.head.bias is not None

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        head = LogitHead(weight, bias, case.head.scale, case.head.softcap)
        stats = token_stats(
            hidden,
            head,
            case.targets,
            temperature=1.3,
            entropy=True,
            reference=case.reference,
            chunk_bytes=ONE_ROW,
        )
        assert stats.entropy is not None and stats.kl is not None
        return stats.logp, stats.entropy, stats.kl

    inputs = (case.hidden, case.head.weight, case.head.bias)
    assert torch.autograd.gradcheck(function, inputs, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("only", ["entropy", "kl"])
def test_gradient_without_logp(only: str) -> None:
    """An output that the objective does not use sends no gradient, not a wrong one."""
    case = make_case()
    options = {"entropy": True, "reference": case.reference}
    grads = []
    for function in (token_stats, token_stats_reference):
        stats = function(case.hidden, case.head, case.targets, **options)
        grads.append(list(torch.autograd.grad(getattr(stats, only).sum(), case.leaves())))
    assert_grads(grads[0], grads[1], 1e-12)


def test_golden_values() -> None:
    """Two equal logits: ln 1/2, entropy ln 2, sum of squares 1/2; KL of (3/4, 1/4) to it."""
    head = LogitHead(torch.zeros(2, 1, dtype=torch.float64))
    log3 = torch.tensor([[3.0], [1.0]], dtype=torch.float64).log()
    stats = token_stats(
        torch.ones(1, 1, dtype=torch.float64),
        head,
        torch.tensor([1]),
        entropy=True,
        square=True,
        correct=True,
        reference=(torch.ones(1, 1, dtype=torch.float64), LogitHead(log3)),
    )
    values = [float(x) for x in (stats.logp, stats.entropy, stats.log_square, stats.kl)]  # type: ignore[arg-type]
    assert values == pytest.approx(
        [-0.6931471806, 0.6931471806, -0.6931471806, 0.1308120359], abs=1e-9
    )
    assert stats.correct is not None and not stats.correct.item()


@pytest.mark.parametrize("entropy", [False, True])
def test_ways_agree(entropy: bool) -> None:
    """scale, residual or keep (with a differentiated entropy) and recompute: one function."""
    trained = make_case(softcap=4.0)
    options = {"chunk_bytes": FIVE_ROWS, "entropy": entropy}
    by_keep = run(token_stats, trained, **options)[1]
    by_recompute = run(token_stats, trained, **options, keep_bytes=0)[1]
    for kept, again in zip(by_keep, by_recompute, strict=True):
        assert torch.equal(kept, again)  # the memory at hand must not change a bit
    if not entropy:
        frozen = make_case(frozen=True, softcap=4.0)
        by_scale = run(token_stats, frozen, **options)[1][0]
        torch.testing.assert_close(by_scale, by_keep[0], rtol=1e-13, atol=1e-13)


def test_no_tokens() -> None:
    case = make_case(tokens=0)
    stats, grads = run(token_stats, case, entropy=True, reference=case.reference)
    assert stats.logp.shape == (0,)
    assert all(not g.any() for g in grads)
    assert [g.shape for g in grads] == [leaf.shape for leaf in case.leaves()]
    frozen = make_case(tokens=0, frozen=True)
    assert run(token_stats, frozen)[1][0].shape == (0, WIDTH)


def test_not_differentiable_outputs_and_no_grad() -> None:
    case = make_case()
    stats = token_stats(case.hidden, case.head, case.targets, square=True, correct=True)
    assert stats.log_square is not None and not stats.log_square.requires_grad
    assert stats.logp.requires_grad
    with torch.no_grad():
        assert not token_stats(case.hidden, case.head, case.targets).logp.requires_grad


def test_tied_head_adds_to_the_embedding() -> None:
    """One parameter used as embedding and as head receives the sum of both gradients."""
    weight = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, requires_grad=True)
    ids, targets = torch.arange(5), torch.arange(1, 6)

    def grads(function: Any, embedding: Tensor, head: Tensor) -> tuple[Tensor, ...]:
        hidden = torch.nn.functional.embedding(ids, embedding).sin()
        logp = function(hidden, LogitHead(head), targets).logp
        return torch.autograd.grad(logp.sum(), {embedding: 0, head: 0}.keys())

    copy = weight.detach().clone().requires_grad_()
    (together,) = grads(token_stats, weight, weight)
    apart = grads(token_stats_reference, weight, copy)
    torch.testing.assert_close(together, apart[0] + apart[1], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(together, apart[1])  # the head's part alone is not enough


# --- wrong variants are seen ----------------------------------------------------------------------


def test_rejects_missing_softcap() -> None:
    case = make_case(softcap=2.0)
    right = token_stats_reference(case.hidden, case.head, case.targets).logp
    wrong = token_stats(case.hidden, LogitHead(case.head.weight, case.head.bias), case.targets).logp
    assert (wrong - right).abs().max() > 0.1


def test_rejects_temperature_after_log_sum_exp() -> None:
    case = make_case()
    right = token_stats(case.hidden, case.head, case.targets, temperature=0.5).logp
    wrong = token_stats(case.hidden, case.head, case.targets).logp / 0.5
    twin = token_stats_reference(case.hidden, case.head, case.targets, temperature=0.5).logp
    assert (right - twin).abs().max() < 1e-12
    assert (wrong - twin).abs().max() > 0.1


def test_rejects_temperature_before_softcap() -> None:
    case = make_case(softcap=2.0)
    right = token_stats(case.hidden, case.head, case.targets, temperature=0.5).logp
    hotter = LogitHead(case.head.weight, case.head.bias, 2.0, case.head.softcap)
    wrong = token_stats(case.hidden, hotter, case.targets).logp
    assert (wrong - right).abs().max() > 0.1


def test_rejects_reversed_kl() -> None:
    case = make_case()
    states, head = case.reference
    right = token_stats(case.hidden, case.head, case.targets, reference=case.reference).kl
    wrong = token_stats(states, head, case.targets, reference=(case.hidden, case.head)).kl
    assert right is not None and wrong is not None
    assert (right - wrong).abs().max() > 0.1


# --- memory ---------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any tensor made under it has."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("keep_bytes", [0, 2**20])
def test_never_makes_tokens_by_vocabulary(frozen: bool, keep_bytes: int) -> None:
    case = make_case(torch.float32, tokens=60, frozen=frozen)
    four_rows = 4 * VOCABULARY * 4
    with LargestTensor() as largest:
        run(
            token_stats,
            case,
            entropy=not frozen,
            chunk_bytes=four_rows,
            keep_bytes=keep_bytes,
            reference=None if frozen else case.reference,
        )
    assert largest.numel == max(60 * WIDTH, VOCABULARY * WIDTH) < 60 * VOCABULARY
    with LargestTensor() as largest:
        run(token_stats_reference, case)
    assert largest.numel == 60 * VOCABULARY  # the recorder does see it in the slow twin


def test_keep_bytes_is_a_limit() -> None:
    """What is saved for the backward pass beyond inputs and vectors stays within ``keep_bytes``."""
    case = make_case(torch.float32, tokens=60, bias=False)
    logits_bytes = 60 * VOCABULARY * 4

    def saved(keep_bytes: int) -> int:
        stats = token_stats(
            case.hidden,
            case.head,
            case.targets,
            chunk_bytes=4 * VOCABULARY * 4,
            keep_bytes=keep_bytes,
        )
        tensors = stats.logp.grad_fn.saved_tensors  # type: ignore[union-attr]
        big = [t for t in tensors if t is not None and t.ndim == 2]
        return sum(t.numel() * t.element_size() for t in big) - (60 + VOCABULARY) * WIDTH * 4

    assert saved(logits_bytes) == logits_bytes
    assert saved(logits_bytes - 1) == 0


def test_an_entropy_that_is_only_logged_leaves_the_gradient_alone() -> None:
    """A frozen head: same values, and the same gradient of logp as with the slower way."""
    torch.manual_seed(0)
    weight, targets = torch.randn(23, 8), torch.randint(0, 23, (11,))
    found = []
    for logged_only in (True, False):
        hidden = torch.randn(11, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        stats = token_stats(
            hidden, LogitHead(weight), targets, entropy=True, entropy_gradient=not logged_only
        )
        assert stats.entropy is not None and stats.entropy.requires_grad is not logged_only
        stats.logp.sum().backward()
        found.append((stats.logp, stats.entropy, hidden.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
