"""Fused token log-probs in half precision, against fp64 arithmetic on the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.logprob_cases import ONE_ROW, Case, make_case, run
from torch import Tensor

from trimtab.models.logprobs import (
    LogitHead,
    token_stats,
    token_stats_reference,
)

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
