"""Golden numbers of those losses of the family that read more than two sums, and who fails them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trimtab.losses import (
    Pair,
    PairTokens,
    PairValues,
    PreferenceTerms,
    RankingTerms,
    SequenceLogprobs,
    TokenLogprobs,
    UnpairedTerms,
    apo_zero_unpaired_loss,
    bco_loss,
    bind,
    cpo_loss,
    dpo_loss,
    ld_dpo_loss,
    nll,
    slic_hf_loss,
    tdpo1_loss,
    tdpo2_loss,
    wpo_clamped_loss,
    wpo_loss,
)

from .support import F64, GOLDEN, close, golden_case, gradients, leaf, pair, ranking, responses

RTOL = 6e-9


# ---------------------------------------------------------------- LD-DPO


def tokens_of(rows: list[list[float]]) -> TokenLogprobs:
    """Responses of single tokens, padded to five, with a gradient."""
    mask = torch.arange(5) < torch.tensor([[len(row)] for row in rows])
    logp = [row + [0.0] * (5 - len(row)) for row in rows]
    return TokenLogprobs(leaf(logp), mask)


def whole(tokens: TokenLogprobs) -> SequenceLogprobs:
    return SequenceLogprobs((tokens.logp * tokens.mask).sum(-1), tokens.mask.sum(-1))


def ld_dpo_agrees(loss: Callable[..., Any]) -> bool:
    """Value, and slopes by an early and by a late token of the longer response."""
    golden = GOLDEN["ld_dpo"]
    policy = PairTokens(
        tokens_of([golden["policy_chosen"]]), tokens_of([golden["policy_rejected"]])
    )
    reference = PairTokens(
        tokens_of([golden["reference_chosen"]]), tokens_of([golden["reference_rejected"]])
    )
    losses = loss(
        Pair(*map(whole, policy)),
        Pair(*map(whole, reference)),
        policy,
        reference,
        **golden["hyperparameters"],
    ).losses
    up, down, frozen = gradients(
        losses, policy.chosen.logp, policy.rejected.logp, reference.chosen.logp
    )
    early = -golden["by_chosen"]
    late = golden["by_late_rejected"]
    return (
        close(losses.detach(), [golden["value"]], RTOL)
        and close(up[0], [golden["by_chosen"]] * 3 + [0.0] * 2, RTOL)
        and close(down[0], [early] * 3 + [late] * 2, RTOL)
        and close(frozen, torch.zeros(1, 5), 0.0)
    )


def wrong_ld_dpo(
    which: str,
) -> Callable[..., Any]:
    def loss(
        policy: Pair, reference: Pair, ours: Any, theirs: Any, *, beta: float, alpha: float
    ) -> PreferenceTerms:
        if which == "longer length":
            length = policy.chosen.length.maximum(policy.rejected.length)
            policy = Pair(*(side._replace(length=length) for side in policy))
        if which == "reference whole":
            theirs = PairTokens(*(t._replace(logp=torch.zeros_like(t.logp)) for t in theirs))
        if which == "alpha for 1 - alpha, on the beginning":
            return dpo_loss(policy, reference, beta=beta * alpha)
        return ld_dpo_loss(policy, reference, ours, theirs, beta=beta, alpha=alpha)

    return loss


def test_ld_dpo() -> None:
    assert ld_dpo_agrees(ld_dpo_loss)


@pytest.mark.parametrize(
    "which", ["longer length", "reference whole", "alpha for 1 - alpha, on the beginning"]
)
def test_ld_dpo_rejects(which: str) -> None:
    assert not ld_dpo_agrees(wrong_ld_dpo(which))


# ---------------------------------------------------------------- WPO


def wpo_agrees(loss: Callable[..., Any], key: str = "value") -> bool:
    """Value and slope, with probabilities of the golden rows and log-ratios 1 and -1.5."""
    golden = GOLDEN["wpo"]
    rows = torch.tensor(golden["policy"], dtype=F64).log()
    square = (2 * rows).logsumexp(-1).sum().reshape(1)
    sums = [leaf([rows[[0, 1], golden[side]].sum().item()]) for side in ("chosen", "rejected")]
    reference = [
        s.detach() - golden[f"{side}_log_ratio"]
        for s, side in zip(sums, ("chosen", "rejected"), strict=True)
    ]
    losses = loss(
        pair(*sums, 2, 2),
        pair(*reference, 2, 2),
        PairValues(square, square),
        **golden["hyperparameters"],
    ).losses
    weight = golden["chosen_weight"] * golden["rejected_weight"]
    slope = golden["by_chosen"] / (1 if key == "value" else weight)
    return close(losses.detach(), [golden[key]], RTOL) and close(
        torch.stack(gradients(losses, *sums)), [[slope], [-slope]], RTOL
    )


def _wpo(power: float, per_token: bool = True, held: bool = True) -> Callable[..., Any]:
    def loss(policy: Pair, reference: Pair, log_square: PairValues, beta: float) -> Any:
        sides = zip(policy, log_square, strict=True)
        found: Tensor = sum(  # type: ignore[assignment]
            (side.sum - power * square) / (side.length if per_token else 1)
            for side, square in sides
        )
        weight = (found.detach() if held else found).exp()
        terms = dpo_loss(policy, reference, beta=beta)
        return terms._replace(losses=weight * terms.losses)

    return loss


def test_wpo() -> None:
    assert wpo_agrees(wpo_loss)
    assert wpo_agrees(wpo_clamped_loss, "clamped")
    assert not wpo_agrees(wpo_loss, "clamped") and not wpo_agrees(wpo_clamped_loss)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(_wpo(1.0, held=False), id="weight with gradient"),
        pytest.param(_wpo(1.0, per_token=False), id="sum for mean"),
        pytest.param(_wpo(0.0), id="weight without alignment"),
        pytest.param(_wpo(0.5), id="square root"),
    ],
)
def test_wpo_rejects(broken: Any) -> None:
    assert not wpo_agrees(broken)


# ---------------------------------------------------------------- TDPO1


def tdpo1_agrees(loss: Callable[..., Any]) -> bool:
    """The golden value, and opposite slopes by the two KLs."""
    golden = GOLDEN["tdpo1"]
    policy, reference, leaves = golden_case(golden["case"])
    kl = PairValues(leaf([golden["chosen_kl"]]), leaf([golden["rejected_kl"]]))
    losses = loss(policy, reference, kl, **golden["hyperparameters"]).losses
    by_chosen, by_kl_chosen, by_kl_rejected = gradients(losses, leaves[0], *kl)
    return (
        close(losses.detach(), [golden["value"]], RTOL)
        and close(by_kl_chosen, by_chosen, RTOL)
        and close(by_kl_rejected, -by_chosen, RTOL)
        and bool(by_chosen < 0)
    )


def test_tdpo1() -> None:
    assert tdpo1_agrees(tdpo1_loss)
    for alpha in (0.5, 1.0):  # TDPO2 at 1 has the value and not the gradient
        assert not tdpo1_agrees(
            lambda *a, beta, alpha=alpha: tdpo2_loss(*a, beta=beta, alpha=alpha)
        )


# ---------------------------------------------------------------- single responses


def unpaired_agrees(loss: Callable[..., Any], name: str) -> bool:
    golden = GOLDEN[name]
    sides = ("desirable", "undesirable")
    if name == "bco":
        ratios = [golden[f"{side}_log_ratio"] for side in sides]
        values, slopes = [golden["value"]] * 2, [golden[f"by_{side}"] for side in sides]
        more: list[Tensor] = [leaf(golden["delta"])]
    else:
        ratios, values, slopes = (
            [golden[side][key] for side in sides] for key in ("log_ratio", "value", "gradient")
        )
        more = []
    sums = leaf([-20.0 + a for a in ratios])
    found = loss(
        responses(sums),
        responses([-20.0, -20.0]),
        torch.tensor([True, False]),
        *more,
        **golden["hyperparameters"],
    ).losses
    (by_sums,) = gradients(found, sums)
    by_more = gradients(found[0], *more) if more else []  # of both rows it would cancel
    return (
        close(found.detach(), values, RTOL)
        and close(by_sums, slopes, RTOL)
        and all(close(g, 0.0, 0.0) for g in by_more)
    )


def _bco(shift: Callable[[Tensor, Tensor, float], Tensor], flip: bool = False) -> Any:
    def loss(policy: Any, reference: Any, labels: Any, delta: Any, beta: float) -> UnpairedTerms:
        u = shift(beta * (policy.sum - reference.sum), delta, beta)
        losses = -F.logsigmoid(torch.where(labels != flip, u, -u))
        return UnpairedTerms(losses, losses.detach())

    return loss


def test_unpaired() -> None:
    assert unpaired_agrees(bco_loss, "bco")
    assert unpaired_agrees(apo_zero_unpaired_loss, "apo_zero_unpaired")


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(_bco(lambda r, d, b: r), id="no shift"),
        pytest.param(_bco(lambda r, d, b: r - d), id="shift with gradient"),
        pytest.param(_bco(lambda r, d, b: r - b * d.detach()), id="shift inside beta"),
        pytest.param(_bco(lambda r, d, b: r + d.detach()), id="shift's sign"),
        pytest.param(_bco(lambda r, d, b: r - d.detach(), flip=True), id="labels flipped"),
    ],
)
def test_bco_rejects(broken: Any) -> None:
    assert not unpaired_agrees(broken, "bco")


def test_apo_zero_unpaired_rejects() -> None:
    for labels in (lambda x: ~x, lambda x: torch.ones_like(x)):
        assert not unpaired_agrees(
            lambda p, r, given, beta, f=labels: apo_zero_unpaired_loss(p, r, f(given), beta=beta),
            "apo_zero_unpaired",
        )


# ---------------------------------------------------------------- K responses with scores


def scored_agrees(loss: Callable[..., Any], name: str) -> bool:
    golden, given = GOLDEN[name], GOLDEN["scored"]
    sums = leaf([[a - 30.0 for a in given["log_ratios"]] + [7.0]])
    mask = torch.tensor([[True, True, True, False]])
    reference = ranking(torch.full((1, 4), -30.0).double(), mask)
    scores = torch.tensor([[*given["scores"], 9.0]], dtype=F64)
    found = loss(ranking(sums, mask), reference, scores, **golden["hyperparameters"]).losses
    by_sums = gradients(found, sums)[0][0]
    return close(found.detach(), [golden["value"]], RTOL) and close(
        by_sums, [*golden["gradient"], 0.0], 6e-8
    )


def _scored(form: str) -> Callable[..., Any]:
    def loss(policy: Any, reference: Any, scores: Any, beta: float, **scale: float) -> Any:
        r = (beta * (policy.sum - reference.sum))[:, :3]
        (temperature,) = scale.values()
        w = (scores[:, :3] / temperature).log_softmax(-1)
        if form == "temperature upside down":
            w = (scores[:, :3] * temperature).log_softmax(-1)
        if form == "worst first":
            w = w.flip(-1)
        if form == "noise not shared":  # K times too much of it
            losses = -(w.exp() * F.logsigmoid(r) + F.logsigmoid(-r)).sum(-1)
        elif form == "forward KL":
            losses = (w.exp() * (w - r.log_softmax(-1))).sum(-1)
        else:
            losses = -(w.exp() * r.log_softmax(-1)).sum(-1)
        return RankingTerms(losses, policy.sum.detach())

    return loss


@pytest.mark.parametrize("name", ["infonca", "nca_rewards", "exo_rewards"])
def test_scored(name: str) -> None:
    hyperparameters = GOLDEN[name]["hyperparameters"]
    assert scored_agrees(lambda *a, **_: bind(name, hyperparameters)(*a), name)
    forms = ["temperature upside down", "worst first", "noise not shared", "forward KL"]
    for form in forms:
        assert not scored_agrees(_scored(form), name), form
    assert scored_agrees(_scored("plain"), name) == (name == "infonca")


# ---------------------------------------------------------------- with a likelihood


@pytest.mark.parametrize("case", "ABC")
def test_cpo_with_its_likelihood(case: str) -> None:
    """CPO and its NLL per token (a term of its own); a sum is another number."""
    wanted = GOLDEN["cpo_total"]

    def total(divisor: int) -> tuple[Tensor, list[Tensor]]:
        policy, _, leaves = golden_case(case)
        losses = cpo_loss(policy, beta=wanted["beta"]).losses + nll(policy.chosen.sum) / divisor
        return losses.detach(), gradients(losses, *leaves)

    value, slopes = total(8)
    assert close(value, [wanted[case]["value"]], RTOL)
    assert not close(total(1)[0], [wanted[case]["value"]], 1e-2)
    if "chosen" in wanted[case]:
        expected = [[wanted[case]["chosen"]], [wanted[case]["rejected"]]]
        assert close(torch.stack(slopes), expected, 6e-8)


@pytest.mark.parametrize("case", "ABC")
def test_slic_hf_ranks_alone(case: str) -> None:
    """Without its regulariser the margin of 1 is already there in all three cases."""
    policy, _, leaves = golden_case(case)
    golden = GOLDEN["slic_hf_rank_only"]
    losses = slic_hf_loss(policy, delta=golden["delta"], target_weight=0.0).losses
    assert losses.item() == golden[case] == 0
    assert close(torch.stack(gradients(losses, *leaves)), torch.zeros(2, 1), 0.0)
