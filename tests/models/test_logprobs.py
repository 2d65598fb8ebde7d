"""Fused token log-probs against plain autograd over full logits, finite differences, and memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trimtab.models import logprob_function
from trimtab.models.logprobs import (
    LogitHead,
    TokenStats,
    token_stats,
    token_stats_reference,
)

TOKENS, VOCABULARY, WIDTH = 13, 37, 8
ONE_ROW = 1  # chunk_bytes: one token a chunk
FIVE_ROWS = 5 * VOCABULARY * 8
TWO_ROWS = 2 * VOCABULARY * 8


class Case(NamedTuple):
    hidden: Tensor
    head: LogitHead
    targets: Tensor
    reference: tuple[Tensor, LogitHead]

    def leaves(self) -> list[Tensor]:
        tensors = [self.hidden, self.head.weight, self.head.bias]
        return [t for t in tensors if t is not None and t.requires_grad]


def make_case(
    dtype: torch.dtype = torch.float64,
    *,
    tokens: int = TOKENS,
    vocabulary: int = VOCABULARY,
    bias: bool = True,
    scale: float = 1.0,
    softcap: float | None = None,
    frozen: bool = False,
    size: float = 1.0,
) -> Case:
    g = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    hidden = (size * draw(tokens, WIDTH)).to(dtype).requires_grad_()
    weight = draw(vocabulary, WIDTH).to(dtype).requires_grad_(not frozen)
    offset = draw(vocabulary).to(dtype).requires_grad_(not frozen) if bias else None
    targets = torch.randint(vocabulary, (tokens,), generator=g)
    other = LogitHead(draw(vocabulary, WIDTH).to(dtype), None, 0.7, softcap)
    head = LogitHead(weight, offset, scale, softcap)
    return Case(hidden, head, targets, (draw(tokens, WIDTH).to(dtype), other))


def objective(stats: TokenStats) -> Tensor:
    """A scalar in which every differentiable output of every token has a coefficient of its own."""
    ramp = torch.linspace(-1, 2, stats.logp.numel(), dtype=torch.float64)
    total = (ramp * stats.logp).sum()
    if stats.entropy is not None:
        total = total + (ramp.flip(0) * stats.entropy).sum()
    if stats.kl is not None:
        total = total + (ramp.cos() * stats.kl).sum()
    return total


def run(function: Any, case: Case, **options: Any) -> tuple[TokenStats, list[Tensor]]:
    stats = function(case.hidden, case.head, case.targets, **options)
    return stats, list(torch.autograd.grad(objective(stats), case.leaves()))


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


# --- half precision (pitfall B10) ---------------------------------------------------------------


def bf16_case(**settings: Any) -> Case:
    """Logits up to about 25, where bf16 has steps of 1/8; targets that the model would sample."""
    case = make_case(torch.bfloat16, vocabulary=2000, tokens=64, size=2.0, **settings)
    logits = wide(case).head.logits(case.hidden.detach().double())
    torch.manual_seed(0)
    return case._replace(targets=logits.detach().softmax(-1).multinomial(1).squeeze(1))


def wide(case: Case) -> Case:
    """The very same numbers in fp64."""

    def double(head: LogitHead, train: bool) -> LogitHead:
        weight = head.weight.detach().double().requires_grad_(train)
        bias = None if head.bias is None else head.bias.detach().double().requires_grad_(train)
        return LogitHead(weight, bias, head.scale, head.softcap)

    states, other = case.reference
    return Case(
        case.hidden.detach().double().requires_grad_(),
        double(case.head, True),
        case.targets,
        (states.double(), double(other, False)),
    )


def plain_logprobs(case: Case, dtype: torch.dtype) -> Tensor:
    """What other systems do: a bf16 product, then a log-softmax in ``dtype``."""
    logits = case.head.raw(case.hidden).detach().to(dtype)
    return logits.log_softmax(-1).gather(1, case.targets[:, None]).squeeze(1)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.detach().double() - b.detach()).norm() / b.detach().norm())


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"softcap": 20.0}, {"scale": 0.5}])
def test_bf16_logprobs_near_fp64(settings: dict[str, Any]) -> None:
    """Within 1e-2 nats a token of fp64 arithmetic on the same bf16 hidden states and weights."""
    case = bf16_case(**settings)
    stats = token_stats(case.hidden, case.head, case.targets, entropy=True)
    exact = run(token_stats_reference, wide(case), entropy=True)[0]
    assert stats.logp.dtype == torch.float32
    assert stats.entropy is not None and exact.entropy is not None
    assert (stats.logp - exact.logp).abs().max() < 1e-2
    assert (stats.entropy - exact.entropy).abs().max() < 3e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rejects_log_softmax_of_rounded_logits(dtype: torch.dtype) -> None:
    """The bound of the test above is out of reach in bf16, and in fp32 after a plain product."""
    case = bf16_case(bias=False)
    exact = token_stats_reference(*wide(case)[:3]).logp
    assert (plain_logprobs(case, dtype) - exact).abs().max() > 3e-2


@pytest.mark.parametrize("keep_bytes", [0, 2**30])
def test_bf16_gradients_near_fp64(keep_bytes: int) -> None:
    case = bf16_case(softcap=20.0)
    got = run(token_stats, case, entropy=True, keep_bytes=keep_bytes, chunk_bytes=2**16)[1]
    wanted = run(token_stats_reference, wide(case), entropy=True)[1]
    assert [g.dtype for g in got] == [torch.bfloat16] * 3
    for x, y in zip(got, wanted, strict=True):
        assert relative(x, y) < 6e-3


def test_bf16_kl_gradients() -> None:
    """A reference close to the policy, where p - q cancels most digits of both (spec. #788)."""
    case = bf16_case(bias=False)
    near = (case.hidden.detach() * 1.05, LogitHead(case.head.weight.detach()))
    case = case._replace(reference=near)
    exact = wide(case)
    kl = token_stats_reference(*exact[:3], reference=exact.reference).kl
    fused = token_stats(*case[:3], reference=near).kl
    assert kl is not None and fused is not None
    wanted = torch.autograd.grad(kl.sum(), exact.leaves())
    got = torch.autograd.grad(fused.sum(), case.leaves())
    assert max(relative(x, y) for x, y in zip(got, wanted, strict=True)) < 0.08
    for dtype in (torch.bfloat16, torch.float32):  # after a plain product, in either
        raws = case.head.raw(case.hidden), near[1].raw(near[0])
        p, q = (raw.detach().to(dtype).softmax(-1) for raw in raws)
        assert relative((p - q).double() @ exact.head.weight, wanted[0]) > 0.3


def test_bf16_weight_gradient_is_summed_in_fp32() -> None:
    """Many chunks that add the same small number: bf16 would stop growing at 256 of them."""
    chunks = 1000
    hidden = torch.ones(chunks, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(chunks, dtype=torch.int64)
    logp = token_stats(hidden, LogitHead(weight), targets, chunk_bytes=ONE_ROW).logp
    (grad,) = torch.autograd.grad(logp.sum(), weight)
    assert grad.flatten().tolist() == [500.0, -500.0]
    wrong = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(chunks):
        wrong += torch.tensor(0.5, dtype=torch.bfloat16)
    assert wrong.item() < 200  # what a bf16 sum would have given


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


def test_bf16_response_of_a_thousand_tokens_is_within_half_a_percent() -> None:
    """P11: less than 1e-2 nats a token on average, less than 0.5 % of the sequence's log-prob."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1000, 64, generator=generator, dtype=torch.float64)
    weight = torch.randn(512, 64, generator=generator, dtype=torch.float64) * 0.3
    targets = torch.randint(0, 512, (1000,), generator=generator)
    low = hidden.bfloat16(), weight.bfloat16()
    exact = token_stats(low[0].double(), LogitHead(low[1].double()), targets).logp
    found = token_stats(low[0], LogitHead(low[1]), targets).logp
    assert found.dtype == torch.float32
    assert (found.double() - exact).abs().mean() < 1e-2
    assert abs(found.double().sum() - exact.sum()) < 5e-3 * abs(exact.sum())
    # The wrong variant: log-probs that are themselves bf16 lose the sum.
    rounded = exact.bfloat16()
    assert (rounded.double() - exact).abs().mean() > (found.double() - exact).abs().mean()
