"""What every entry of PREFERENCE_LOSSES must satisfy; a new entry is covered by being there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.losses import (
    PREFERENCE_LOSSES,
    LossSpec,
    Pair,
    PreferenceTerms,
    RankingTerms,
    UnpairedTerms,
    bind,
    describe,
    dpo_loss,
)
from trimtab.losses.contract import example, with_policy
from trimtab.proof.differences import differences

from .support import F64, arguments, close, gradients, leaf, map_sums, move, select, sums_of

NAMES = list(PREFERENCE_LOSSES)
TERMS = {"pair": PreferenceTerms, "unpaired": UnpairedTerms, "ranking": RankingTerms}

Loss = Callable[..., Any]

# Where a loss is of another kind than DPO, and on purpose; each has to be so (tested below).
WEIGHTED = {"wpo", "wpo_clamped"}  # weights that are constants for the gradient
UPHILL = {"discopop"}  # at the reference it trains the wrong way: its blend has a bump there
ANCHORED = {  # equal responses do not cancel: where each of them is counts by itself
    *("apo_down", "nca", "bco_pair", "sppo", "slic_hf", "dpop", "irpo", "rpo"),
}


def fresh(name: str) -> Loss:
    """The loss with its defaults, and after a ``prepare`` where it has one."""
    loss, spec = bind(name, {}), describe(name)
    if spec.prepare_needs:
        inputs = example(spec, size=6, seed=9, dtype=F64)
        loss.prepare(**{key: inputs[key] for key in spec.prepare_needs})  # type: ignore[attr-defined]
    return loss


def inputs_of(
    spec: LossSpec, *, at_reference: bool = False, **options: Any
) -> tuple[dict[str, Any], list[Tensor]]:
    """Made-up inputs of a call, and the policy's sums, which collect gradients."""
    inputs = example(spec, **{"size": 6, "dtype": F64, **options})
    if at_reference and "reference" in inputs:
        inputs["policy"] = map_sums(inputs["reference"], torch.clone)
        if "policy_tokens" in inputs:
            inputs["policy_tokens"] = inputs["reference_tokens"]
    policy = map_sums(inputs["policy"], lambda s: s.detach().requires_grad_())
    inputs = with_policy(inputs, policy)
    return arguments(spec, inputs), sums_of(inputs["policy"])


# ---------------------------------------------------------------- checks, one function each


def is_unreduced(loss: Loss, spec: LossSpec) -> bool:
    """One loss per unit, finite, fp32 from fp32, the right result type, rewards detached."""
    inputs, _ = inputs_of(spec, dtype=torch.float32)
    terms = loss(**inputs)
    rewards = (6, 4) if spec.kind == "ranking" else (6,)
    return (
        isinstance(terms, TERMS[spec.kind])
        and terms.losses.shape == (6,)
        and terms.losses.requires_grad
        and all(r.shape == rewards and not r.requires_grad for r in terms[1:])
        and all(bool(part.isfinite().all()) for part in terms)
        and all(part.dtype == torch.float32 for part in terms)
    )


def pushes_the_right_way(loss: Loss, spec: LossSpec) -> bool:
    """At the reference the wanted responses' log-probs are pushed up and the unwanted ones' down.

    (Elsewhere a loss may push both down, as APO-down does.)
    """
    inputs, leaves = inputs_of(spec, at_reference=True)
    found = gradients(loss(**inputs).losses, *leaves)
    if spec.kind == "pair":
        up, down = found
    elif spec.kind == "unpaired":
        labels = inputs["labels"]
        up, down = found[0][labels], found[0][~labels]
    else:
        last = inputs["policy"].mask.sum(1, keepdim=True) - 1
        up, down = found[0][:, 0], found[0].gather(1, last)
    moved = bool((up != 0).any() or (down != 0).any())
    if spec.name in UPHILL:
        return bool((up > 0).all()) and bool((down < 0).all())
    return moved and bool((up <= 0).all()) and bool((down >= 0).all())


def ignores_order(loss: Loss, spec: LossSpec) -> bool:
    """Permuting the rows permutes the outputs; a batch is its rows one by one (P6, P7)."""
    inputs, _ = inputs_of(spec)
    whole = loss(**inputs)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = loss(**{key: select(value, order) for key, value in inputs.items()})
    good = all(close(p, w[order], 1e-12) for p, w in zip(permuted, whole, strict=True))
    for row in range(6):
        one = torch.tensor([row])
        alone = loss(**{key: select(value, one) for key, value in inputs.items()})
        good &= all(close(a, w[one], 1e-12) for a, w in zip(alone, whole, strict=True))
    return good


def has_exact_gradient(loss: Loss, spec: LossSpec) -> bool:
    """fp64 central differences by the policy's log-probs (P1), over small and large arguments."""
    good, stops = True, False
    for seed, stretch in [(0, 1.0), (2, 5.0), (3, 0.1)]:
        inputs, _ = inputs_of(spec, seed=seed, size=3)
        scaled = map_sums(inputs["policy"], lambda s, k=stretch: k * s.detach())
        points = [s.requires_grad_() for s in sums_of(scaled)]

        def of_sums(*sums: Tensor, inputs: dict[str, Any] = inputs) -> Tensor:
            queue = list(sums)
            policy = map_sums(inputs["policy"], lambda _: queue.pop(0))
            return loss(**with_policy(inputs, policy)).losses

        if spec.name in WEIGHTED:
            found = differences(of_sums, [p.detach() for p in points])
            good &= found.held < 1e-6
            stops |= found.plain > 1e-6
            continue
        # Differences of a loss of 1e8 (an exponent's) are no better than its last digits.
        atol = max(1e-9, 1e-10 * of_sums(*points).detach().abs().max().item())

        good &= torch.autograd.gradcheck(
            of_sums, tuple(points), eps=1e-5, rtol=1e-6, atol=atol, raise_exception=False
        )
    return good and stops == (spec.name in WEIGHTED)


def descends(loss: Loss, spec: LossSpec) -> bool:
    """One small step down the gradient lowers every row's loss that has a gradient (P12).

    A weight that follows the policy may rise by more than the rest falls: WPO is not held to it.
    """
    good, moved = True, False
    for seed in range(5):
        inputs, leaves = inputs_of(spec, seed=seed)
        before = loss(**inputs).losses
        slopes = gradients(before, *leaves)
        steps = iter(slopes)
        policy = map_sums(inputs["policy"], lambda s, it=steps: (s - 1e-3 * next(it)).detach())
        after = loss(**with_policy(inputs, policy)).losses
        size = sum(g.reshape(len(before), -1).abs().sum(1) for g in slopes)
        still = torch.as_tensor(size) < 1e-12
        good &= bool(((after < before) | still).all())
        moved |= not bool(still.all())
    return (good and moved) or spec.name in WEIGHTED


def leaves_the_reference_alone(loss: Loss, spec: LossSpec) -> bool:
    """The reference gets no gradient, even if somebody hands it in with a graph (P8)."""
    if "reference" not in spec.needs:
        return True
    inputs, _ = inputs_of(spec)
    inputs["reference"] = map_sums(inputs["reference"], lambda s: s.detach().requires_grad_())
    found = gradients(loss(**inputs).losses, *sums_of(inputs["reference"]))
    return all(bool((g == 0).all()) for g in found)


def is_still_on_identical_responses(loss: Loss, spec: LossSpec) -> bool:
    """chosen = rejected gives no gradient at all, not a small one (P9), if only the two compare."""
    if spec.kind != "pair":
        return True
    inputs, _ = inputs_of(spec)
    policy = inputs["policy"].chosen._replace(sum=leaf(inputs["policy"].chosen.sum.tolist()))
    inputs["policy"] = Pair(policy, policy)
    for name in inputs.keys() - {"policy", "margins"}:
        inputs[name] = type(inputs[name])(inputs[name].chosen, inputs[name].chosen)
    inputs = with_policy(inputs, inputs["policy"])
    slope = gradients(loss(**inputs).losses, policy.sum)[0].abs().max().item()
    if spec.name == "apo_zero":  # computed so that its tails are exact: equal to the last digit
        return slope < 1e-16
    return (slope == 0.0) != (spec.name in ANCHORED)


def survives(loss: Loss, spec: LossSpec) -> bool:
    """Log-probs and log-ratios of up to 1e5 nats: finite losses and gradients."""
    inputs, _ = inputs_of(spec, dtype=torch.float32)
    for factor in (0.0, 1e-6, 1e3, 1e4):
        policy = map_sums(inputs["policy"], lambda s, k=factor: (k * s.detach()).requires_grad_())
        losses = loss(**with_policy(inputs, policy)).losses
        found = gradients(losses, *sums_of(policy))
        if not all(bool(part.isfinite().all()) for part in (losses, *found)):
            return False
    return True


CHECKS = [
    is_unreduced,
    pushes_the_right_way,
    ignores_order,
    has_exact_gradient,
    descends,
    leaves_the_reference_alone,
    is_still_on_identical_responses,
    survives,
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_every_loss(check: Callable[[Loss, LossSpec], bool], name: str) -> None:
    assert check(fresh(name), describe(name))


# ------------------------------------------------------------- each check can fail


def reduced(policy: Pair, reference: Pair) -> PreferenceTerms:
    terms = dpo_loss(policy, reference)
    return terms._replace(losses=terms.losses.mean())


def attached(policy: Pair, reference: Pair) -> PreferenceTerms:
    terms = dpo_loss(policy, reference)
    return terms._replace(chosen_rewards=policy.chosen.sum - reference.chosen.sum)


def flipped(policy: Pair, reference: Pair) -> PreferenceTerms:
    return dpo_loss(
        Pair(policy.rejected, policy.chosen), Pair(reference.rejected, reference.chosen)
    )


def centred(policy: Pair, reference: Pair) -> PreferenceTerms:
    """Uses the batch's own mean: what a row gets depends on its neighbours."""
    terms = dpo_loss(policy, reference)
    return terms._replace(losses=terms.losses - terms.losses.mean() / 2)


def half_detached(policy: Pair, reference: Pair) -> PreferenceTerms:
    rejected = policy.rejected._replace(sum=policy.rejected.sum.detach())
    return dpo_loss(Pair(policy.chosen, rejected), reference)


def ascending(policy: Pair, reference: Pair) -> PreferenceTerms:
    """The right value with a gradient of the wrong sign."""
    terms = dpo_loss(policy, reference)
    return terms._replace(losses=2 * terms.losses.detach() - terms.losses)


def reference_attached(policy: Pair, reference: Pair) -> PreferenceTerms:
    terms = dpo_loss(policy, reference)
    return terms._replace(losses=terms.losses + 0.1 * reference.chosen.sum)


def overflowing(policy: Pair, reference: Pair) -> PreferenceTerms:
    z = policy.chosen.sum - reference.chosen.sum - policy.rejected.sum + reference.rejected.sum
    terms = dpo_loss(policy, reference)
    return terms._replace(losses=torch.log(1 + torch.exp(-z)))


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        (is_unreduced, reduced),
        (is_unreduced, attached),
        (pushes_the_right_way, flipped),
        (ignores_order, centred),
        (has_exact_gradient, half_detached),
        (descends, ascending),
        (leaves_the_reference_alone, reference_attached),
        (is_still_on_identical_responses, half_detached),
        (survives, overflowing),
    ],
    ids=lambda f: f.__name__,
)
def test_checks_reject(check: Callable[[Loss, LossSpec], bool], broken: Loss) -> None:
    spec = describe(broken)
    assert check(dpo_loss, spec)
    assert not check(broken, spec)


# ------------------------------------------------------------- state, step 0


@pytest.mark.parametrize("name", [n for n in NAMES if describe(n).prepare_needs])
def test_prepare_gives_weights_or_nothing(name: str) -> None:
    spec, loss = describe(name), bind(name, {})
    inputs = example(spec, size=6, dtype=F64)
    found = loss.prepare(**{key: inputs[key] for key in spec.prepare_needs})  # type: ignore[attr-defined]
    assert found is None or (found.shape == (6,) and bool((found >= 0).all()))


@pytest.mark.parametrize("name", NAMES)
def test_state_survives_json(name: str) -> None:
    spec = describe(name)
    assert spec.stateful == hasattr(bind(name, {}), "state_dict")
    if not spec.stateful:
        return
    mattered = False
    for seed in range(4):
        loss, other, new = (bind(name, {}) for _ in range(3))
        inputs = example(spec, size=6, seed=seed, dtype=F64)
        loss.prepare(**{key: inputs[key] for key in spec.prepare_needs})  # type: ignore[attr-defined]
        state = loss.state_dict()  # type: ignore[attr-defined]
        assert all(type(value) is float for value in state.values())
        other.load_state_dict(json.loads(json.dumps(state, allow_nan=False)))  # type: ignore[attr-defined]
        call = inputs_of(spec)[0]
        assert all(torch.equal(a, b) for a, b in zip(loss(**call), other(**call), strict=True))
        mattered |= not torch.equal(loss(**call).losses, new(**call).losses)
    assert mattered, "a lost state would not be noticed"


@pytest.mark.parametrize("name", NAMES)
def test_loss_at_the_reference(name: str) -> None:
    """The numbers that the self-check expects at step 0."""
    spec = describe(name)
    loss = bind(name, {})
    inputs, _ = inputs_of(spec, at_reference=True)
    losses = loss(**inputs).losses.detach()
    if name in AT_REFERENCE:
        assert close(losses, [AT_REFERENCE[name]] * 6, 1e-12)
    elif name == "plackett_luce":
        factorials = [2.0, 6.0, 24.0] * 2
        assert close(losses, torch.tensor(factorials, dtype=F64).log(), 1e-12)
    elif name in ("tdpo1", "tdpo2"):
        gap = inputs["sequence_kl"].rejected - inputs["sequence_kl"].chosen
        scale = 0.1 if name == "tdpo1" else 0.05
        assert close(losses, torch.log1p(torch.exp(scale * gap)), 1e-12)
    elif name in BY_ROW:
        spread = (losses.max() - losses.min()).item()
        assert spread > 1e-6, "it depends on the row: lengths, likelihoods, weights or scores"
    else:
        assert "reference" not in spec.needs


LN2 = math.log(2)
AT_REFERENCE = {
    **dict.fromkeys(("dpo", "cdpo", "robust", "beta_dpo", "dpop", "ln_dpo", "ld_dpo"), LN2),
    **dict.fromkeys(("fdpo_forward", "fdpo_js", "fdpo_alpha"), LN2),
    **dict.fromkeys(("nca", "nca_rewards", "bco_pair"), 2 * LN2),
    **dict.fromkeys(("hinge", "apo_zero", "apo_down"), 1.0),
    **dict.fromkeys(("kto", "apo_zero_unpaired"), 0.5),
    **dict.fromkeys(("ipo", "ipo_sum"), 25.0),
    "bco": LN2,
    "sppo": 5e5,
    "exo": -LN2 - 0.5 * (math.log(1e-3) + math.log1p(-1e-3)),
    "exo_authors": 5.0 - LN2,
    "discopop": 0.5 + LN2 / 2,
}
BY_ROW = {"irpo", "rpo", "r_dpo", "wpo", "wpo_clamped", "infonca", "exo_rewards"}


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_cuda_agrees_with_the_cpu(name: str) -> None:
    """Same values, gradients and filter, with the random draws made on the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    spec, found = describe(name), []
    for device in ("cpu", "cuda"):
        loss, inputs = bind(name, {}), example(spec, size=6, dtype=F64)
        inputs = {key: move(value, device) for key, value in inputs.items()}
        inputs = with_policy(inputs, map_sums(inputs["policy"], lambda s: s.requires_grad_()))
        weights = None
        if spec.prepare_needs:
            weights = loss.prepare(**{key: inputs[key] for key in spec.prepare_needs})  # type: ignore[attr-defined]
        terms = loss(**arguments(spec, inputs))
        assert terms.losses.device.type == device
        slopes = gradients(terms.losses, *sums_of(inputs["policy"]))
        found.append([x.detach().cpu() for x in (*terms, *slopes)])
        if weights is not None:
            assert weights.device.type == device
            found[-1].append(weights.cpu())
    assert all(close(a, b, 1e-12) for a, b in zip(*found, strict=True))
