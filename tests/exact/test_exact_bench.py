"""``verify``: what the bench says of every built-in loss, and that it refuses broken ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.docs.scripts_of import script
from tests.exact import wrong_losses

from trimtab.config.recipes import LossChoice
from trimtab.losses import PREFERENCE_LOSSES
from trimtab.proof.differences import differences
from trimtab.proof.verify import Verdict, verify

F64 = torch.float64


loss_tables = script("loss_tables")


def verdict(name: str, **parameters: Any) -> Verdict:
    key = "file" if ":" in name else "name"
    return verify(LossChoice.model_validate({key: name, **parameters}))


def answers(found: Verdict) -> dict[str, str]:
    return {check.name: check.status for check in found.checks}


# ---------------------------------------------------------------------- the built-in ones

SAME, SWAP = "unchanged by translation", "swapping: L(l,w) - L(w,l) = reward margin"
SCALE, LENGTH = "beta only scales log-probs", "depends on lengths"
REFERENCE, VALUE = "needs a reference", "value at policy = reference"
PI_STAR = "pi*, the optimum of KL-regularised reward maximisation"
OWN = "an optimum of its own"
COLLAPSES = "collapses: the probability of some responses goes to 0 without end"
KINK = "not settled: it has kinks, and the search stopped at one"

# reference, translation, swap, scaling, lengths, value, where it leads (docs/losses.md)
KNOWN: dict[str, tuple[str, str, str, str, str, float | None, str]] = {
    "dpo": ("yes", "yes", "yes", "yes", "no", 0.693147181, PI_STAR),
    "simpo": ("no", "no", "no", "yes", "yes", None, OWN),
    "orpo": ("no", "no", "no", "no", "yes", None, OWN),
    "tdpo2": ("yes", "yes", "no", "yes", "no", 0.693147181, OWN),
    "kto": ("yes", "does not apply", "does not apply", "yes", "no", 0.5, COLLAPSES),
    "beta_dpo": ("yes", "yes", "yes", "yes", "no", 0.693147181, PI_STAR),
    "plackett_luce": ("yes", "yes", "does not apply", "yes", "no", None, PI_STAR),
    "ipo_sum": ("yes", "yes", "no", "does not apply", "no", 25.0, "IPO's optimum"),
    "wpo": ("yes", "no", "no", "no", "yes", 0.0, PI_STAR),
    "hinge": ("yes", "yes", "no", "yes", "no", 1.0, KINK),
    "apo_down": ("yes", "no", "no", "yes", "no", 1.0, COLLAPSES),
    "exo_rewards": ("yes", "yes", "does not apply", "yes", "no", None, PI_STAR),
}
# Hard checks that pass with a note, and why.
NOTES = {
    **dict.fromkeys(("wpo", "wpo_clamped"), ("gradient = finite differences", "detaches")),
    "apo_down": ("raises what is wanted", "raises the chosen in 0%, lowers the rejected in 100%"),
    "discopop": ("raises what is wanted", "towards the rejected there, and towards the chosen"),
    "slic_hf": ("raises what is wanted", "raises the chosen in 100%"),
}


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_built_in_losses(name: str) -> None:
    """All hard checks pass, invariances and optima are as known, and docs/losses.md says so."""
    found = verdict(name)
    assert not found.failed
    hard = [check for check in found.checks if check.hard]
    noted = [(check.name, check.detail) for check in hard if check.status != "passed"]
    assert len(hard) == 4 and len(noted) == (name in NOTES)
    for check, detail in noted:
        assert check == NOTES[name][0] and NOTES[name][1] in detail
    text = loss_tables.DOCS.read_text(encoding="utf-8")
    assert loss_tables.glance_row(name, found) in loss_tables.rows_in(text, loss_tables.GLANCE)
    assert loss_tables.family_row(name, found) in loss_tables.rows_in(text, loss_tables.FAMILY)
    if name not in KNOWN:
        return
    reference, same, swap, scale, length, value, leads = KNOWN[name]
    said = answers(found)
    assert (said[REFERENCE], said[SAME], said[SWAP]) == (reference, same, swap)
    assert (said[SCALE], said[LENGTH], found.optimum.verdict) == (scale, length, leads)
    there = next(check for check in found.checks if check.name == VALUE)
    if there.status == "yes":
        assert there.value == (None if value is None else pytest.approx(value, abs=1e-8))
    assert (found.optimum.kl_to_best < 1e-8) == (leads == PI_STAR)


def test_the_table_of_golden_values_is_the_file() -> None:
    rows = [loss_tables.value_row(entry) for entry in loss_tables.golden()["pairs"]]
    text = loss_tables.DOCS.read_text(encoding="utf-8")
    assert loss_tables.rows_in(text, loss_tables.VALUES) == rows


def test_a_row_that_is_out_of_date_is_seen() -> None:
    found = verdict("cdpo", epsilon=0.2)
    text = loss_tables.DOCS.read_text(encoding="utf-8")
    assert loss_tables.glance_row("cdpo", verdict("cdpo")) in text
    assert loss_tables.glance_row("dpo", found) not in text
    assert loss_tables.family_row("cdpo", verdict("dpo")) not in text


def test_a_sum_of_losses_on_the_bench() -> None:
    found = verdict("0.5 dpo + 0.5 dpop", **{"dpop.beta": 0.1, "dpop.penalty": 0.0})
    assert not found.failed and found.optimum.verdict == PI_STAR
    assert found.spec.name == "dpo+dpop" and found.beta == 0.1
    assert verdict("dpo + 0.3 hinge").optimum.kl_to_best > 1e-3


def test_settings_change_what_a_loss_is() -> None:
    assert verdict("tdpo2", alpha=0.0).optimum.verdict == PI_STAR
    assert verdict("tdpo2", alpha=0.0).beta == 0.1 and verdict("dpo", beta=2.0).beta == 2.0
    assert answers(verdict("simpo", gamma=0.0))[SWAP] == "yes"


def test_ipo_leads_to_its_own_optimum() -> None:
    found = verdict(f"{wrong_losses.__file__}:own_ipo")
    assert not found.failed and found.optimum.verdict == "IPO's optimum"
    assert found.optimum.kl_to_ipo < 1e-8 < 0.1 < found.optimum.kl_to_best
    assert found.beta == 0.5, "tau plays beta's part"
    for wrong in wrong_losses.IPO:
        there = verdict(f"{wrong_losses.__file__}:{wrong.__name__}").optimum
        assert there.verdict == OWN and there.kl_to_ipo > 1e-3
    record = found.as_record()
    assert record["optimum"]["ipo"] == pytest.approx(record["optimum"]["found"], abs=1e-9)
    assert record["needs"] == ["policy", "reference"] and record["passed"] is True


@pytest.mark.parametrize("wrong", wrong_losses.DPO, ids=lambda f: f.__name__)
def test_wrong_versions_of_dpo_lead_elsewhere(wrong: Any) -> None:
    """Nothing is broken about them as losses: it is the optimum that tells."""
    found = verdict(f"{wrong_losses.__file__}:{wrong.__name__}")
    assert not found.failed and found.optimum.kl_to_best > 0.01
    said = answers(found)
    told = {"mean_for_sum": LENGTH, "reference_left_out": REFERENCE, "beta_outside": SCALE}
    assert said[told[wrong.__name__]] != answers(verdict("dpo"))[told[wrong.__name__]]


# ---------------------------------------------------------------------- broken ones

BROKEN = '''
import torch
from trimtab.losses import Pair, PreferenceTerms, Ranking, RankingTerms, SequenceLogprobs
from trimtab.losses import UnpairedTerms, dpo_loss, kto_loss

def flipped(policy: Pair, reference: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    return dpo_loss(Pair(policy.rejected, policy.chosen),
                    Pair(reference.rejected, reference.chosen), beta=beta)

def flipped_labels(policy: SequenceLogprobs, reference: SequenceLogprobs, labels: torch.Tensor
                   ) -> UnpairedTerms:
    return kto_loss(policy, reference, ~labels, torch.zeros(()))

def worst_first(policy: Ranking, reference: Ranking) -> RankingTerms:
    rewards = torch.where(policy.mask, policy.sum - reference.sum, 0.0)
    return RankingTerms(rewards[:, 0] - rewards[:, 1], rewards.detach())

class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z): return z.clone()
    @staticmethod
    def backward(ctx, gradient): return gradient / 2

def half_backward(policy: Pair, reference: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    terms = dpo_loss(policy, reference, beta=beta)
    return terms._replace(losses=_Half.apply(terms.losses))

def ascending(policy: Pair, reference: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    """The right value with a gradient of the wrong sign."""
    terms = dpo_loss(policy, reference, beta=beta)
    return terms._replace(losses=2 * terms.losses.detach() - terms.losses)

def overflowing(policy: Pair, reference: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    terms = dpo_loss(policy, reference, beta=beta)
    z = beta * ((policy.chosen.sum - reference.chosen.sum)
                - (policy.rejected.sum - reference.rejected.sum))
    return terms._replace(losses=torch.log(1 + torch.exp(-z)))

def neighbours(policy: Pair, reference: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    terms = dpo_loss(policy, reference, beta=beta)
    return terms._replace(losses=terms.losses - 0.5 * terms.losses.mean())

def one_sided(policy: Pair, reference: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    """The rejected side gets no gradient: nothing impossible, and perhaps not meant."""
    still = policy.rejected._replace(sum=policy.rejected.sum.detach())
    return dpo_loss(Pair(policy.chosen, still), reference, beta=beta)

def weighted(policy: Pair, reference: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    """A weight that is a constant for the gradient, as in WPO."""
    terms = dpo_loss(policy, reference, beta=beta)
    with torch.no_grad():
        weight = policy.chosen.mean.exp() * policy.rejected.mean.exp()
    return terms._replace(losses=weight * terms.losses)
'''


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("broken") / "broken.py"
    path.write_text(BROKEN)
    return path


@pytest.mark.parametrize(
    ("name", "failed", "detail"),
    [
        ("flipped", "raises what is wanted", "it trains towards the rejected"),
        ("flipped_labels", "raises what is wanted", "it trains towards the undesirable"),
        ("worst_first", "raises what is wanted", "it trains towards the worst"),
        ("half_backward", "gradient = finite differences", "autograd's gradient is another"),
        ("ascending", "raises what is wanted", "it trains towards the rejected"),
        ("overflowing", "finite at extreme inputs", "at log-ratios of 1000 nats in fp32"),
        ("neighbours", "every row for itself", "a row's loss depends on its neighbours"),
    ],
)
def test_broken_losses_are_refused(broken: Path, name: str, failed: str, detail: str) -> None:
    found = verdict(f"{broken}:{name}")
    assert failed in [check.name for check in found.failed]
    assert detail in next(check.detail for check in found.checks if check.name == failed)


@pytest.mark.parametrize("name", ["one_sided", "weighted"])
def test_stopped_gradients_are_pointed_out_and_no_error(broken: Path, name: str) -> None:
    found = verdict(f"{broken}:{name}")
    assert not found.failed
    gradient, direction = found.checks[:2]
    assert gradient.status == "note" and "what the loss detaches held constant" in gradient.detail
    assert direction.status == ("note" if name == "one_sided" else "passed")
    if name == "one_sided":
        assert "raises the chosen in 100%, lowers the rejected in 0% of rows" in direction.detail


# ---------------------------------------------------------------------- differences


def test_differences_hold_what_leaves_the_graph() -> None:
    x = torch.linspace(-3, 2, 7, dtype=F64)

    def under_no_grad(a: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            weight = (2 * a).exp() + a.mean()
        return a.exp() * weight

    for stopped in (
        lambda a: a.exp() * a.detach().square(),
        lambda a: a.exp() * a.data.square(),
        lambda a: a.exp() * a.detach().mean().item(),
        under_no_grad,
    ):
        found = differences(stopped, [x])
        assert found.held < 1e-8 < 1e-2 < found.plain
    smooth = differences(lambda a, b: (a * b.sigmoid()).exp(), [x, -x])
    assert smooth.plain < 1e-8 and smooth.held < 1e-8
    kink = differences(lambda a: (1 - a).relu(), [x])
    assert kink.plain < 1e-8
