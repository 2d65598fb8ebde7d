"""Which loss becomes which (P2 to P4), and where each one by itself is at rest."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trimtab.losses import (
    Pair,
    PairTokens,
    PairValues,
    PreferenceTerms,
    TokenLogprobs,
    bco_loss,
    bind,
    describe,
    kto_loss,
)
from trimtab.losses.contract import example, with_policy

from .support import (
    F64,
    arguments,
    close,
    gradients,
    leaf,
    map_sums,
    pair,
    ranking,
    responses,
    sums_of,
)

CALLS = 40


def inputs_of(name: str, size: int = CALLS) -> dict[str, Any]:
    """Made-up inputs with gradients for the sums, of any paired loss."""
    inputs = example(describe(name), size=size, seed=3, dtype=F64)
    inputs["policy"] = map_sums(inputs["policy"], lambda s: s.requires_grad_())
    return inputs


def same(one: Any, other: Any, policy: Any, rtol: float = 1e-9) -> bool:
    """Values and gradients of two losses of one policy."""
    a, b = one.losses, other.losses
    slopes = [torch.stack(gradients(x, *sums_of(policy))) for x in (a, b)]
    return close(a.detach(), b.detach(), rtol, 1e-12) and close(*slopes, rtol, 1e-12)


# ---------------------------------------------------------------- P4: which becomes which

# (loss, settings) becomes (loss, settings); "apart": a setting of the first with which it does not.
IDENTITIES: list[tuple[str, dict[str, float], str, dict[str, float], dict[str, float]]] = [
    ("cdpo", {"epsilon": 0.0}, "dpo", {}, {"epsilon": 0.1}),
    ("robust", {"epsilon": 0.0}, "dpo", {}, {"epsilon": 0.1}),
    ("r_dpo", {"alpha": 0.0}, "dpo", {}, {"alpha": 0.05}),
    ("dpop", {"penalty": 0.0, "beta": 0.1}, "dpo", {}, {"penalty": 5.0, "beta": 0.1}),
    ("tdpo2", {"alpha": 0.0}, "dpo", {}, {"alpha": 0.5}),
    ("ld_dpo", {"alpha": 1.0}, "dpo", {}, {"alpha": 0.5}),
    ("irpo", {"alpha": 0.0}, "dpo", {}, {"alpha": 1.0}),
    ("irpo", {"alpha": 0.5}, "rpo", {"alpha": 0.5, "beta": 0.1}, {"alpha": 0.4}),
    ("fdpo_alpha", {"alpha": 1e-9}, "dpo", {}, {"alpha": 0.5}),
    ("fdpo_alpha", {"alpha": 1.0}, "fdpo_forward", {}, {"alpha": 0.9}),
    ("simpo_ratio", {"gamma_beta_ratio": 0.5}, "simpo", {"gamma": 1.0}, {"gamma_beta_ratio": 1.0}),
    (
        "alphapo",
        {"alpha": 0.0, "beta": 2.0, "gamma": 1.0},
        "simpo",
        {},
        {"alpha": 0.25, "beta": 2.0, "gamma": 1.0},
    ),
    ("alphapo", {"alpha": 1e-9}, "simpo", {"beta": 2.5, "gamma": 0.1}, {"alpha": 0.1}),
]


@pytest.mark.parametrize(("name", "settings", "limit", "limits", "apart"), IDENTITIES)
def test_becomes(
    name: str,
    settings: dict[str, float],
    limit: str,
    limits: dict[str, float],
    apart: dict[str, float],
) -> None:
    inputs = inputs_of(name)
    wanted = bind(limit, limits)(**arguments(describe(limit), inputs))
    given = arguments(describe(name), inputs)
    rtol = 1e-9 if 1e-9 not in settings.values() else 1e-6
    assert same(bind(name, settings)(**given), wanted, inputs["policy"], rtol)
    assert not same(bind(name, apart)(**given), wanted, inputs["policy"], 1e-4)


def test_hinge_is_dpo_of_large_beta() -> None:
    """-log sigmoid(z) / z -> max(0, -z): hinge without its margin."""
    inputs = inputs_of("dpo")
    sharp = bind("dpo", {"beta": 1e4})(**arguments(describe("dpo"), inputs)).losses / 1e4
    (w, x), (rw, rl) = inputs["policy"], inputs["reference"]
    hinge = torch.relu(-((w.sum - rw.sum) - (x.sum - rl.sum)))
    assert close(sharp.detach(), hinge.detach(), 1e-3, 1e-3)


@pytest.mark.parametrize("size", [2, 3])
def test_scores_that_decide_leave_one_response(size: int) -> None:
    """alpha -> 0: InfoNCA of two is DPO, and NCA of two its paired form."""
    draws = torch.Generator().manual_seed(size)
    sums, reference = (-10 * torch.rand(5, size, generator=draws, dtype=F64) for _ in range(2))
    sums.requires_grad_()
    scores = torch.arange(size, 0, -1, dtype=F64).expand(5, size)
    found = {
        name: bind(name, {"alpha": 1e-3, "beta": 0.1})(
            ranking(sums), ranking(reference), scores
        ).losses
        for name in ("infonca", "nca_rewards")
    }
    ours, theirs = pair(*sums.unbind(1)[:2]), pair(*reference.unbind(1)[:2])
    dpo = bind("dpo", {"beta": 0.1})(ours, theirs).losses
    nca = bind("nca", {"beta": 0.1})(ours, theirs).losses
    for name, wanted in (("infonca", dpo), ("nca_rewards", nca)):
        equal = close(found[name].detach(), wanted.detach(), 1e-9) and close(
            *(gradients(x, sums)[0] for x in (found[name], wanted)), 1e-9, 1e-12
        )
        assert equal == (size == 2)


def test_equal_scores_ask_for_equal_rewards() -> None:
    sums = leaf([[-9.0, -9.0, -9.0]])
    zero = torch.zeros(1, 3, dtype=F64)
    reference = ranking(torch.full((1, 3), -9.0, dtype=F64))
    for name in ("infonca", "exo_rewards", "nca_rewards"):
        losses = bind(name, {})(ranking(sums), reference, zero).losses
        assert close(gradients(losses, sums)[0], zero, 0.0, 1e-15), name


def test_scores_in_the_padding_are_never_read() -> None:
    sums = leaf([[-5.0, -7.0, float("nan")]])
    mask = torch.tensor([[True, True, False]])
    reference = ranking(torch.tensor([[-6.0, -6.0, 1.0]], dtype=F64), mask)
    junk = torch.tensor([[2.0, 1.0, float("inf")]], dtype=F64)
    for name in ("infonca", "exo_rewards", "nca_rewards"):
        padded = bind(name, {})(ranking(sums, mask), reference, junk)
        dense = bind(name, {})(ranking(sums[:, :2]), ranking(reference.sum[:, :2]), junk[:, :2])
        assert torch.equal(padded.losses, dense.losses), name
        assert gradients(padded.losses, sums)[0][0, 2] == 0
        assert padded.rewards[0, 2] == 0


def test_exo_of_two_scores_is_exo_of_a_pair() -> None:
    """Scores whose difference is the target's log-odds make the same target."""
    sums = leaf([[-12.0, -15.5]])
    odds = math.log((1 - 1e-3) / 1e-3)
    scores = torch.tensor([[odds, 0.0]], dtype=F64)
    listed = bind("exo_rewards", {"reward_beta": 1.0})(
        ranking(sums), ranking(torch.tensor([[-13.0, -14.0]], dtype=F64)), scores
    )
    paired = bind("exo", {})(
        pair(*sums.unbind(1)), pair(*torch.tensor([[-13.0], [-14.0]]).double())
    )
    assert close(listed.losses.detach(), paired.losses.detach(), 1e-9)
    assert close(*(gradients(x.losses, sums)[0] for x in (listed, paired)), 1e-9)


def test_unpaired_losses_become_each_other() -> None:
    sums = leaf([-9.0, -12.0, -10.5])
    inputs = (responses(sums), responses([-10.0] * 3), torch.tensor([True, False, True]))
    zero = torch.zeros((), dtype=F64)
    apo = bind("apo_zero_unpaired", {})(*inputs)
    kto = kto_loss(*inputs, zero)
    assert torch.equal(apo.losses, kto.losses) and torch.equal(apo.rewards, kto.rewards)
    assert not close(apo.losses.detach(), kto_loss(*inputs, zero + 0.5).losses.detach(), 1e-3)
    # BCO without its shift is the paired short form's two halves.
    bco = bco_loss(*inputs, zero, beta=0.1).losses
    short = bind("bco_pair", {"beta": 0.1})(
        pair(sums[:1], sums[1:2]), pair(*[zero.new_full((1,), -10)] * 2)
    )
    assert close(bco[:2].sum().detach(), short.losses.detach(), 1e-12)
    zeros = bind("apo_zero", {})(pair(sums[:1], sums[1:2]), pair(*[zero.new_full((1,), -10)] * 2))
    assert close(apo.losses[:2].sum().detach(), zeros.losses.detach(), 1e-12)


def test_exo_of_its_authors_has_the_gradient_of_ours() -> None:
    """Targets of log 1 and -10 are those of epsilon = sigmoid(-10), moved by a constant."""
    epsilon = 1 / (1 + math.exp(10))
    inputs = inputs_of("exo")
    ours = bind("exo", {"epsilon": epsilon})(**arguments(describe("exo"), inputs))
    theirs = bind("exo_authors", {})(**arguments(describe("exo"), inputs))
    shifted = theirs._replace(losses=theirs.losses - math.log1p(-epsilon))
    assert same(ours, shifted, inputs["policy"])
    assert not close(ours.losses.detach(), theirs.losses.detach(), 1e-12)


# ---------------------------------------------------------------- P2, P3

SHIFTED: dict[bool, tuple[str, ...]] = {
    True: (
        *("dpo", "cdpo", "robust", "ipo_sum", "hinge", "exo", "exo_authors", "discopop"),
        *("r_dpo", "tdpo1", "cpo"),
    ),
    False: (
        *("nca", "bco_pair", "sppo", "apo_zero", "apo_down", "dpop", "irpo", "rpo", "slic_hf"),
        *("ipo", "ln_dpo", "simpo", "orpo", "alphapo", "fdpo_forward", "fdpo_js", "fdpo_alpha"),
        *("wpo", "ld_dpo"),  # as both responses' tokens move, and not their common length's alone
    ),
}


@pytest.mark.parametrize(("name", "still"), [(n, k) for k, all_ in SHIFTED.items() for n in all_])
def test_a_shift_of_both_responses(name: str, still: bool) -> None:
    """P3: it changes nothing that compares sums, and everything absolute or per token."""
    inputs, loss = inputs_of(name), bind(name, {})
    moved = with_policy(inputs, map_sums(inputs["policy"], lambda s: s - 1.7))
    spec = describe(name)
    found, shifted = (loss(**arguments(spec, i)).losses.detach() for i in (inputs, moved))
    assert close(found, shifted, 1e-9, 1e-12) == still


@pytest.mark.parametrize("name", ["cdpo", "exo"])
def test_exchanging_the_pair_exchanges_epsilon(name: str) -> None:
    """P2: L_epsilon(w, l) is L_(1 - epsilon)(l, w), written out where epsilon is above a half."""
    inputs = inputs_of(name)
    policy, reference = inputs["policy"], inputs["reference"]
    back = bind(name, {"epsilon": 0.2})(
        Pair(policy.rejected, policy.chosen), Pair(reference.rejected, reference.chosen)
    )
    z = 0.1 * (
        (policy.chosen.sum - reference.chosen.sum) - (policy.rejected.sum - reference.rejected.sum)
    )
    up, down = torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z)
    target = torch.tensor([0.2, 0.8], dtype=F64).log()  # epsilon = 0.8, as it stands
    written = {
        "cdpo": -0.2 * up - 0.8 * down,
        "exo": up.exp() * (up - target[0]) + down.exp() * (down - target[1]),
    }[name]
    assert close(back.losses.detach(), written.detach(), 1e-9)


# ---------------------------------------------------------------- at rest by themselves


def slope(name: str, settings: dict[str, float], gap: tuple[float, float]) -> list[float]:
    """Slopes of a pair with these log-ratios."""
    leaves = [leaf([gap[0] - 20.0]), leaf([gap[1] - 20.0])]
    losses = bind(name, settings)(pair(*leaves), pair(*[torch.tensor([-20.0], dtype=F64)] * 2))
    return [g.item() for g in gradients(losses.losses, *leaves)]


def test_where_a_pair_is_at_rest() -> None:
    odds = math.log(0.9 / 0.1)
    for name in ("cdpo", "exo"):
        settings = {"beta": 0.5, "epsilon": 0.1}
        assert slope(name, settings, (odds / 0.5, 0.0)) == pytest.approx([0, 0], abs=1e-12)
        assert slope(name, settings, (odds / 0.5 - 0.1, 0.0))[0] < -1e-4
        assert slope(name, settings, (odds / 0.5 + 0.1, 0.0))[0] > 1e-4
    assert slope("exo_authors", {"beta": 0.5}, (20.0, 0.0))[0] == pytest.approx(0, abs=1e-12)
    assert slope("ipo_sum", {"tau": 0.1}, (4.0, -1.0)) == pytest.approx([0, 0], abs=1e-12)
    assert slope("ipo", {"tau": 0.1}, (40.0, 0.0)) == pytest.approx([0, 0], abs=1e-12)
    assert slope("nca", {"beta": 0.5}, (math.log(2) / 0.5, 0.0))[0] == pytest.approx(0, abs=1e-12)
    assert slope("nca", {"beta": 0.5}, (math.log(2) / 0.5 + 0.1, 0.0))[0] > 1e-3
    assert slope("sppo", {"eta": 10.0}, (5.0, -5.0)) == pytest.approx([0, 0], abs=1e-12)
    assert slope("hinge", {"beta": 0.5}, (1.9, 0.0))[0] == -0.5
    assert slope("hinge", {"beta": 0.5}, (2.1, 0.0)) == [0, 0]


def test_cdpo_is_lowest_at_the_entropy_of_its_noise() -> None:
    odds, leaves = math.log(0.8 / 0.2), [torch.tensor([x], dtype=F64) for x in (-10.0, -20.0)]
    reference = pair(leaves[0] - odds / 0.1, leaves[1])
    value = bind("cdpo", {"epsilon": 0.2})(pair(*leaves), reference).losses.item()
    assert value == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2), rel=1e-12)


def test_rdpo_is_dpo_on_the_right_labels_in_the_mean() -> None:
    """(1 - epsilon) L(w, l) + epsilon L(l, w) = DPO(w, l), whatever the policy; it is negative."""
    inputs = inputs_of("dpo")
    policy, reference = inputs["policy"], inputs["reference"]
    loss = bind("robust", {"epsilon": 0.2, "beta": 0.3})
    flipped = loss(
        Pair(policy.rejected, policy.chosen), Pair(reference.rejected, reference.chosen)
    ).losses
    mean = 0.8 * loss(policy, reference).losses + 0.2 * flipped
    wanted = bind("dpo", {"beta": 0.3})(policy, reference)
    zero = torch.zeros(CALLS, dtype=F64)
    assert same(PreferenceTerms(mean, zero, zero), wanted, policy)
    assert bool((loss(policy, reference).losses < 0).any()), "a pair's loss has no lower bound"


def test_apo_down_pushes_both_down() -> None:
    up, down = slope("apo_down", {"beta": 0.1}, (1.0, -1.5))
    assert 0 < up < down


def test_dpops_penalty_acts_only_where_the_chosen_response_lost() -> None:
    settings = {"beta": 0.1, "penalty": 5.0}
    assert slope("dpop", settings, (0.5, -1.0)) == slope("dpo", {"beta": 0.1}, (0.5, -1.0))
    up, down = slope("dpop", settings, (-0.5, -1.0))
    assert up == pytest.approx(-6 * down, rel=1e-12)


def test_r_dpo_a_longer_chosen_response_has_a_smaller_gradient() -> None:
    def push(chosen: int, rejected: int) -> float:
        leaves = [leaf([-12.0]), leaf([-15.0])]
        reference = pair(*[torch.tensor([-13.0], dtype=F64)] * 2, chosen, rejected)
        losses = bind("r_dpo", {})(pair(*leaves, chosen, rejected), reference).losses
        return -gradients(losses, leaves[0])[0].item()

    assert push(20, 10) < push(10, 10) < push(10, 20)


def test_wpo_weighs_by_what_the_policy_would_have_written() -> None:
    """Weight 1 for a policy that spreads evenly; a pair it never writes teaches next to nothing."""
    policy, reference = (
        pair(*[torch.tensor([s], dtype=F64) for s in (-8 * math.log(5), -10 * math.log(5))]),
        pair(*[torch.tensor([s], dtype=F64) for s in (-13.0, -14.0)]),
    )
    even = PairValues(*(torch.tensor([-n * math.log(5)], dtype=F64) for n in (8, 10)))
    loss, dpo = bind("wpo", {"beta": 0.1}), bind("dpo", {})
    assert close(loss(policy, reference, even).losses, dpo(policy, reference).losses, 1e-12)
    sure = PairValues(*(torch.zeros(1, dtype=F64),) * 2)
    rare = loss(policy, reference, sure).losses / dpo(policy, reference).losses
    assert close(rare, [1 / 25], 1e-9)


def test_ld_dpo_reads_only_the_common_length_at_0() -> None:
    """alpha = 0: whatever comes behind the shorter response's length has no slope."""
    mask = torch.arange(4) < torch.tensor([[2], [4]])
    logp = [leaf([[-1.0, -2.0, 0.0, 0.0]]), leaf([[-0.5, -1.5, -2.5, -0.1]])]
    tokens = PairTokens(*(TokenLogprobs(x, m[None]) for x, m in zip(logp, mask, strict=True)))
    whole = Pair(*(responses(t.logp.sum(-1), int(t.mask.sum())) for t in tokens))
    zero = PairTokens(*(t._replace(logp=torch.zeros_like(t.logp)) for t in tokens))
    still = Pair(*(s._replace(sum=torch.zeros_like(s.sum)) for s in whole))
    losses = bind("ld_dpo", {"alpha": 0.0})(whole, still, tokens, zero).losses
    up, down = gradients(losses, *logp)
    assert close(down[0, 2:], [0.0, 0.0], 0.0, 1e-16) and down[0, 0] == down[0, 1] > 0
    assert up[0, 0] == up[0, 1] < 0
    z = 0.1 * (-3.0 + 2.0)
    assert close(losses.detach(), [math.log1p(math.exp(-z))], 1e-12)


def test_alphapo_bends_the_reward_of_means() -> None:
    """P^-alpha grows where a response is unlikely: its slope there is larger than SimPO's."""
    for mean in (-3.0, -0.01):
        sums = leaf([8 * mean])
        terms = bind("alphapo", {"alpha": 0.25})(pair(sums, torch.tensor([-10.0], dtype=F64)))
        wanted = -2.5 * math.expm1(-0.25 * mean) / 0.25
        assert close(terms.chosen_rewards, [wanted], 1e-9)
        assert abs(wanted) > abs(2.5 * mean)


def test_a_step_of_discopop_at_the_reference_goes_the_wrong_way() -> None:
    """With the authors' tau its slope there is (5 (1 - ln 2) - 0.75) beta, above 0."""
    slopes = slope("discopop", {}, (0.0, 0.0))
    wanted = 0.05 * (5 * (1 - math.log(2)) - 0.75)
    assert slopes == pytest.approx([wanted, -wanted], rel=1e-9)
    assert slope("discopop", {}, (5.0, 0.0))[0] < 0 and slope("discopop", {}, (-5.0, 0.0))[0] < 0


@pytest.mark.parametrize("name", ["fdpo_forward", "fdpo_alpha", "alphapo"])
def test_capped_exponents_end_where_they_say(name: str) -> None:
    """At 40 nats in the exponent; beyond, the value stays and the gradient is 0."""
    alpha = {"fdpo_forward": 1.0, "fdpo_alpha": 0.5, "alphapo": 0.25}[name]
    edge = 40.0 / alpha
    found = []
    for a in (-edge + 0.5, -edge - 0.5, -edge - 50.0):
        leaves = [leaf([a * (8 if name == "alphapo" else 1)]), leaf([-1.0])]
        zero = torch.zeros(1, dtype=F64)
        given = (pair(*leaves),) if name == "alphapo" else (pair(*leaves), pair(zero, zero))
        losses = bind(name, {"beta": 1e-8})(*given).losses
        found.append((losses.item(), gradients(losses, leaves[0])[0].item()))
    assert found[0][1] < 0 and found[1][1] == found[2][1] == 0
    assert found[1][0] == found[2][0]
