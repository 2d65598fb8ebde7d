"""What every entry of PREFERENCE_LOSSES must satisfy; a new entry is covered by being there."""

from __future__ import annotations

import json
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
from trimtab.losses.contract import example

from .support import F64, arguments, close, gradients, leaf, map_sums, move, select, sums_of

NAMES = list(PREFERENCE_LOSSES)
TERMS = {"pair": PreferenceTerms, "unpaired": UnpairedTerms, "ranking": RankingTerms}

Loss = Callable[..., Any]


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
    inputs["policy"] = map_sums(inputs["policy"], lambda s: s.detach().requires_grad_())
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
    good = True
    for seed, stretch in [(0, 1.0), (1, 1.0), (2, 5.0), (3, 0.1)]:
        inputs, _ = inputs_of(spec, seed=seed)
        inputs["policy"] = map_sums(inputs["policy"], lambda s, k=stretch: k * s.detach())
        points = [s.requires_grad_() for s in sums_of(inputs["policy"])]

        def of_sums(*sums: Tensor, inputs: dict[str, Any] = inputs) -> Tensor:
            queue = list(sums)
            policy = map_sums(inputs["policy"], lambda _: queue.pop(0))
            return loss(**{**inputs, "policy": policy}).losses

        good &= torch.autograd.gradcheck(
            of_sums, tuple(points), eps=1e-5, rtol=1e-6, atol=1e-9, raise_exception=False
        )
    return good


def descends(loss: Loss, spec: LossSpec) -> bool:
    """One small step down the gradient lowers every row's loss (P12)."""
    good = True
    for seed in range(5):
        inputs, leaves = inputs_of(spec, seed=seed)
        before = loss(**inputs).losses
        steps = iter(gradients(before, *leaves))
        policy = map_sums(inputs["policy"], lambda s, it=steps: (s - 1e-3 * next(it)).detach())
        after = loss(**{**inputs, "policy": policy}).losses
        good &= bool((after < before).all())
    return good


def leaves_the_reference_alone(loss: Loss, spec: LossSpec) -> bool:
    """The reference gets no gradient, even if somebody hands it in with a graph (P8)."""
    if "reference" not in spec.needs:
        return True
    inputs, _ = inputs_of(spec)
    inputs["reference"] = map_sums(inputs["reference"], lambda s: s.detach().requires_grad_())
    found = gradients(loss(**inputs).losses, *sums_of(inputs["reference"]))
    return all(bool((g == 0).all()) for g in found)


def is_still_on_identical_responses(loss: Loss, spec: LossSpec) -> bool:
    """chosen = rejected gives no gradient at all, not a small one (P9)."""
    if spec.kind != "pair":
        return True
    inputs, _ = inputs_of(spec)
    policy = inputs["policy"].chosen._replace(sum=leaf(inputs["policy"].chosen.sum.tolist()))
    inputs["policy"] = Pair(policy, policy)
    for name in ("reference", "sequence_kl"):
        if name in inputs:
            inputs[name] = type(inputs[name])(inputs[name].chosen, inputs[name].chosen)
    return gradients(loss(**inputs).losses, policy.sum)[0].tolist() == [0.0] * 6


def survives(loss: Loss, spec: LossSpec) -> bool:
    """Log-probs and log-ratios of up to 1e5 nats: finite losses and gradients."""
    inputs, _ = inputs_of(spec, dtype=torch.float32)
    for factor in (0.0, 1e-6, 1e3, 1e4):
        inputs["policy"] = map_sums(
            inputs["policy"], lambda s, k=factor: (k * s.detach()).requires_grad_()
        )
        losses = loss(**inputs).losses
        found = gradients(losses, *sums_of(inputs["policy"]))
        if not all(bool(part.isfinite().all()) for part in (losses, *found)):
            return False
        inputs["policy"] = inputs_of(spec, dtype=torch.float32)[0]["policy"]
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
    ln2 = torch.tensor(2.0, dtype=F64).log().item()
    spec = describe(name)
    loss = bind(name, {})
    inputs, _ = inputs_of(spec, at_reference=True)
    losses = loss(**inputs).losses.detach()
    if name in ("dpo", "beta_dpo"):
        assert close(losses, [ln2] * 6, 1e-12)
    elif name == "kto":
        assert close(losses, [0.5] * 6, 1e-12)
    elif name == "plackett_luce":
        factorials = [2.0, 6.0, 24.0] * 2
        assert close(losses, torch.tensor(factorials, dtype=F64).log(), 1e-12)
    elif name == "tdpo2":
        gap = inputs["sequence_kl"].rejected - inputs["sequence_kl"].chosen
        assert close(losses, torch.log1p(torch.exp(0.05 * gap)), 1e-12)
    else:
        assert "reference" not in spec.needs


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
        inputs["policy"] = map_sums(inputs["policy"], lambda s: s.requires_grad_())
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
