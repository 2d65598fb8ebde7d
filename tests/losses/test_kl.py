"""KL estimators: their values, and the gradients that they really have, by enumeration."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trimtab.losses import KL_ESTIMATORS, kl_k1, kl_k2, kl_k3, reinforce_loss, weighted_kl

from .bandit import BETA, OPTIMUM, REFERENCE, REWARDS, gradient, kl, mean_gradient, same
from .support import F64, close, leaf, slopes_agree

Q = torch.tensor([0.5, 0.3, 0.2], dtype=F64).log()  # the policy
P = torch.tensor([0.4, 0.4, 0.2], dtype=F64).log()  # the reference
OLD = torch.tensor([0.3, 0.3, 0.4], dtype=F64).log()  # a policy that sampled
TO_REFERENCE = torch.tensor([0.0989382, -0.09388477, -0.005053431], dtype=F64)  # d KL(q || p)
FROM_REFERENCE = torch.tensor([0.1, -0.1, 0.0], dtype=F64)  # d KL(p || q)


def average(estimator: Callable[[Tensor, Tensor], Tensor]) -> float:
    return (Q.exp() * estimator(Q, P)).sum().item()


def test_values_of_a_token() -> None:
    """l = -1, l_reference = -1.5: d = -0.5."""
    logp, ref = torch.tensor([-1.0], dtype=F64), torch.tensor([-1.5], dtype=F64)
    assert kl_k1(logp, ref).item() == 0.5
    assert kl_k2(logp, ref).item() == 0.125
    assert kl_k3(logp, ref).item() == pytest.approx(0.10653065971263342, abs=1e-15)
    assert list(KL_ESTIMATORS) == ["k1", "k2", "k3"]
    assert [KL_ESTIMATORS[k] for k in KL_ESTIMATORS] == [kl_k1, kl_k2, kl_k3]


def test_golden_means() -> None:
    assert average(kl_k1) == pytest.approx(0.02526715392, abs=5e-12)
    assert average(kl_k3) == pytest.approx(0.02526715392, abs=5e-12)
    assert average(kl_k2) == pytest.approx(0.02486240734, abs=5e-12)
    assert kl(P, Q).item() == pytest.approx(0.02581540846, abs=5e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda logp, ref: ref - logp,  # sign
        lambda logp, ref: (logp - ref).exp() - 1 - (logp - ref),  # k3 of the other ratio
        lambda logp, ref: (ref - logp).exp() - 1 + (ref - logp),  # sign within k3
        lambda logp, ref: (ref - logp).square(),  # k2 without its half
    ],
)
def test_wrong_variants_miss_the_golden_means(wrong: Callable[..., Tensor]) -> None:
    assert abs(average(wrong) - 0.02526715392) > 1e-4
    assert abs(average(wrong) - 0.02486240734) > 1e-4


def test_gradients_as_terms_of_a_loss() -> None:
    """k1 ignores the reference; k2 has the gradient of KL(q || p); k3 that of KL(p || q)."""
    assert close(gradient(lambda logp: kl(logp, P), Q), TO_REFERENCE, 0, 5e-8)
    assert close(gradient(lambda logp: kl(P, logp), Q), FROM_REFERENCE, 0, 1e-14)
    found = {n: mean_gradient(lambda x, k=k: k(x, P), Q) for n, k in KL_ESTIMATORS.items()}
    assert same(found["k1"], torch.zeros(3, dtype=F64), 1e-15)
    assert same(found["k2"], gradient(lambda logp: kl(logp, P), Q), 1e-15)
    assert same(found["k3"], gradient(lambda logp: kl(P, logp), Q), 1e-15)
    assert not same(found["k2"], found["k3"], 1e-3)


@pytest.mark.parametrize("sampler", [Q, OLD], ids=["own samples", "samples of an older policy"])
def test_gradients_of_the_weighted_forms(sampler: Tensor) -> None:
    """With the gradient through the ratio k1 and k3 become KL(q || p), whoever sampled."""
    found = {
        n: mean_gradient(lambda x, n=n: weighted_kl(n, x, P, sampler), Q, sampler)
        for n in KL_ESTIMATORS
    }
    wanted = gradient(lambda logp: kl(logp, P), Q)
    assert same(found["k1"], wanted)
    assert same(found["k3"], wanted)
    mean_of_k2 = gradient(lambda logp: (logp.exp() * (P - logp).square() / 2).sum(), Q)
    assert same(found["k2"], mean_of_k2)
    assert not same(mean_of_k2, wanted, 1e-4)


def test_the_ratio_is_not_a_constant() -> None:
    """Wrong variants: the ratio detached has k3's own gradient, without it samples are biased."""
    wanted = gradient(lambda logp: kl(logp, P), Q)

    def detached(logp: Tensor) -> Tensor:
        return (logp - OLD).exp().detach() * kl_k3(logp, P)

    assert same(mean_gradient(detached, Q, OLD), gradient(lambda logp: kl(P, logp), Q))
    assert not same(mean_gradient(detached, Q, OLD), wanted, 1e-3)
    plain = mean_gradient(lambda logp: kl_k3(logp, P), Q, OLD)
    assert not same(plain, gradient(lambda logp: kl(P, logp), Q), 1e-3)
    values = (OLD.exp() * weighted_kl("k3", Q, P, OLD)).sum()
    assert values.item() == pytest.approx(0.02526715392, abs=5e-12)


# Where the whole objective, reward and KL term, has no gradient: the fixed point of training.


def rlhf(name: str, log_policy: Tensor) -> Tensor:
    """Mean gradient of -r log pi + beta estimator, samples from the policy itself."""

    def loss(logp: Tensor) -> Tensor:
        own = logp.detach()
        if name.startswith("weighted "):
            term = weighted_kl(name[9:], logp, REFERENCE, own)
        elif name == "k1 in the reward":
            term = reinforce_loss(logp, -kl_k1(own, REFERENCE))
        else:
            term = KL_ESTIMATORS[name](logp, REFERENCE)
        return reinforce_loss(logp, REWARDS) + BETA * term

    return mean_gradient(loss, log_policy)


# beta p_ref / (lambda - r), with the lambda that makes it sum to 1
K3_POINT = BETA * REFERENCE.exp() / (2.10044781 - REWARDS)


@pytest.mark.parametrize("name", ["k1 in the reward", "k2", "weighted k1", "weighted k3"])
def test_forms_that_stop_at_the_optimum(name: str) -> None:
    zero = torch.zeros(6, dtype=F64)
    assert same(rlhf(name, OPTIMUM), zero, 1e-14)
    assert not same(
        rlhf(
            name,
            K3_POINT.log(),
        ),
        zero,
        1e-3,
    )


def test_k3_in_the_loss_stops_elsewhere() -> None:
    golden = [0.09554698, 0.03036179, 0.04938524, 0.77545682, 0.02148382, 0.02776535]
    assert close(K3_POINT, golden, 0, 6e-9)
    assert same(rlhf("k3", K3_POINT.log()), torch.zeros(6, dtype=F64), 5e-8)
    assert not same(rlhf("k3", OPTIMUM), torch.zeros(6, dtype=F64), 1e-2)


def test_k1_in_the_loss_is_no_regulariser() -> None:
    """Its whole gradient is the reward's, at any policy."""
    for log_policy in (REFERENCE, OPTIMUM):
        alone = mean_gradient(lambda logp: reinforce_loss(logp, REWARDS), log_policy)
        assert same(rlhf("k1", log_policy), alone, 1e-15)
        assert alone.abs().max() > 0.1


# Numbers


def test_gradients_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(3)
    logp, ref, old = (-3 * torch.rand(3, 40, dtype=F64, generator=generator)).unbind()
    for name, estimator in KL_ESTIMATORS.items():
        assert slopes_agree(lambda x, k=estimator: k(x, ref), logp)
        assert slopes_agree(lambda x, n=name: weighted_kl(n, x, ref, old), logp)
    assert not slopes_agree(lambda x: (x - old).exp().detach() * kl_k3(x, ref), logp)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_extremes_are_finite(dtype: torch.dtype) -> None:
    logp, other = (
        leaf([-1e4, -100.0, 0.0, -1e4], dtype),
        torch.tensor([0.0, 0.0, -1e4, -1e4]).to(dtype),
    )
    for name, estimator in KL_ESTIMATORS.items():
        for losses in (estimator(logp, other), weighted_kl(name, logp, other, other)):
            assert torch.isfinite(losses).all()
            assert torch.isfinite(torch.autograd.grad(losses.sum(), logp)[0]).all()
    assert not torch.isfinite((other - logp).float().exp()).all()  # what the clamp is for
    k3 = kl_k3(leaf([-25.0]), torch.zeros(1, dtype=F64))
    assert k3.item() == pytest.approx(485165195.40979 - 21, rel=1e-12)


def test_k3_keeps_its_digits_next_to_the_reference() -> None:
    """d near 0.001 in fp32; exp(d) - 1 - d literally is off by several per cent."""
    ref = torch.linspace(0.0007, 0.0013, 50)
    exact = kl_k3(torch.zeros(1, dtype=F64), ref.double())
    assert close(kl_k3(torch.zeros(1), ref), exact, 5e-4)
    assert ((ref.exp() - 1 - ref) / exact - 1).abs().max() > 0.03


def test_the_reference_and_the_old_policy_get_no_gradient() -> None:
    logp, ref, old = leaf([-1.0, -2.0]), leaf([-1.5, -1.0]), leaf([-1.2, -1.1])
    for name, estimator in KL_ESTIMATORS.items():
        total = (estimator(logp, ref) + weighted_kl(name, logp, ref, old)).sum()
        found = torch.autograd.grad(total, (logp, ref, old), allow_unused=True)
        assert found[0] is not None
        assert found[1:] == (None, None)


def test_half_precision_is_compared_in_fp32() -> None:
    half = torch.tensor([-250.7]).bfloat16()
    for name, estimator in KL_ESTIMATORS.items():
        assert estimator(half, half).dtype == torch.float32
        assert weighted_kl(name, half, half, half).item() == 0.0
