"""Choices, frontiers, win rates and sentences of made-up measurements, against hand computation."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.comparison.analysis import Analysis, won
from trimtab.comparison.measured import Measured, Setting
from trimtab.comparison.verdict import verdict

SEEDS, PROMPTS, SAMPLES = 3, 40, 2
RNG = np.random.default_rng(0)
HARD = RNG.normal(0, 0.05, (1, PROMPTS, 1))  # how hard a prompt is, for all alike


def setting(
    method: str,
    gold: float,
    kl: float,
    *,
    step: int = 4,
    final: bool = True,
    proxy: float = 0.0,
    choose: float | None = None,
    length: float = 20.0,
    text: float = 2.0,
    **settings: float,
) -> Setting:
    """A setting of given means; ``choose`` is its gold on the choosing prompts (None: the same)."""

    def column(mean: float, spread: float, shift: float = 0.0) -> np.ndarray:
        noise = RNG.normal(0, spread, (SEEDS, PROMPTS, SAMPLES))
        noise -= noise.mean()
        return mean + shift + noise + (HARD if spread else 0)

    def part(value: float) -> dict[str, np.ndarray]:
        return {
            "gold": column(value, 0.02),
            "proxy": column(proxy, 0.02),
            "kl": np.full((SEEDS, PROMPTS, SAMPLES), kl),
            "length": column(length, 1.0),
            "ended": np.ones((SEEDS, PROMPTS, SAMPLES)),
        }

    losses = np.stack([np.full((SEEDS, 6), 10 * text), np.full((SEEDS, 6), 10.0)], axis=2)
    losses[:, :, 0] += RNG.normal(0, 0.001, (SEEDS, 6))
    return Setting(
        method,
        settings,
        step,
        final,
        (0, 1, 2),
        {"choose": part(gold if choose is None else choose), "examine": part(gold)},
        losses,
        (1.0,) * SEEDS,
        (100,) * SEEDS,
        ("run",) * SEEDS,
        (),
    )


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    base = setting("sft", 0.4, 0.0, step=0)
    dpo = [
        setting("dpo", 0.6, 2.0, beta=0.1, text=2.1),
        setting("dpo", 0.52, 1.0, beta=1.0),
        setting("dpo", 0.53, 1.5, beta=0.5),  # below the line from 1 to 2 nats
        setting("dpo", 0.55, 4.0, beta=0.01),
    ]
    ppo = [
        setting("ppo", 0.5, 1.0, step=2, final=False, proxy=1.0),
        setting("ppo", 0.6, 3.0, step=4, final=False, proxy=2.0, length=30.0),
        setting("ppo", 0.45, 9.0, step=6, proxy=3.0),
    ]
    lucky = [setting("lucky", 0.41, 0.5, choose=0.9), setting("lucky", 0.45, 0.7, n=2)]
    return Analysis(Measured(base, {"dpo": dpo, "ppo": ppo, "lucky": lucky}, ()), [1.0, 3.0])


def test_choices_and_frontiers_are_of_the_choosing_prompts(analysis: Analysis) -> None:
    assert analysis.chosen["dpo"].settings == {"beta": 0.1}
    assert analysis.chosen["ppo"].step == 4
    # It looked best on the choosing prompts, and is reported as it is on the others.
    assert analysis.chosen["lucky"].settings == {}
    assert analysis.of(analysis.chosen["lucky"], "gold").mean == pytest.approx(0.41, abs=0.03)
    kl = {name: [one.cells("kl").mean() for one in own] for name, own in analysis.frontiers.items()}
    assert kl == {"dpo": [1.0, 2.0], "ppo": [1.0, 3.0], "lucky": [0.5]}


def test_gold_within_a_kl_is_read_along_the_frontier(analysis: Analysis) -> None:
    one, three = analysis.at_kl
    prompts = float(HARD.mean())
    assert one.gold["dpo"].mean == pytest.approx(0.52 + prompts, abs=1e-9)
    # dpo went to 4 nats and had its best at 2; lucky never went to 1.
    assert three.gold["dpo"].mean == pytest.approx(0.6 + prompts, abs=1e-9)
    assert three.gold["ppo"].mean == pytest.approx(0.6 + prompts, abs=1e-9)
    assert set(one.gold) == set(three.gold) == {"dpo", "ppo"}
    ((a, b, difference, p),) = three.differences
    assert (a, b) == ("dpo", "ppo")
    assert difference.low < 0 < difference.high
    assert p > 0.05


def test_win_rates_by_hand() -> None:
    mine = np.array([[[1.0, 3.0], [2.0, 2.0]]])
    theirs = np.array([[[2.0, 0.0], [2.0, 2.0]]])
    assert won(mine, theirs).tolist() == [[0.75, 0.5]]
    assert (won(theirs, mine) == 1 - won(mine, theirs)).all()


def test_pairs_differ_where_they_do(analysis: Analysis) -> None:
    assert len(analysis.pairs) == 6
    assert analysis.pair("dpo", "sft").win_rate.mean > 0.95
    assert analysis.pair("dpo", "sft").differs
    same = analysis.pair("dpo", "ppo")
    assert not same.differs
    assert same.win_rate.low <= 0.5 <= same.win_rate.high
    turned = analysis.pair("ppo", "dpo")
    assert turned.win_rate.mean == pytest.approx(1 - same.win_rate.mean)
    assert (turned.win_rate.low, turned.p) == (pytest.approx(1 - same.win_rate.high), same.p)
    with pytest.raises(KeyError):
        analysis.pair("dpo", "nobody")


def test_intervals_hold_their_means_and_the_tax_is_paired(analysis: Analysis) -> None:
    gold = analysis.of(analysis.chosen["dpo"], "gold")
    assert gold.low < gold.mean < gold.high
    assert gold.n == SEEDS * PROMPTS
    gain = analysis.gain(analysis.chosen["dpo"], analysis.base)
    assert gain.high - gain.low < gold.high - gold.low, "what makes prompts hard drops out"
    tax = analysis.tax(analysis.chosen["dpo"])
    assert tax is not None
    assert tax.mean == pytest.approx(0.1, abs=1e-3)


def test_sentences_say_what_differs_and_no_more(analysis: Analysis) -> None:
    said = verdict(analysis, "gold")
    assert said[0].startswith(("dpo, at its best setting", "ppo, at its best setting"))
    assert "against lucky, and cannot be told from" in said[0]
    (fallen,) = analysis.fallen
    assert (fallen.setting.step, fallen.peak.step) == (6, 4)
    over = next(line for line in said if "over-optimised" in line)
    assert over.startswith("ppo (default) was over-optimised: from step 4 to step 6")
    assert any(line.startswith("Within a KL of 3 nats") for line in said)
    tax = next(line for line in said if line.startswith("Loss on held-out text"))
    assert "rose with dpo +0.1" in tax


def test_without_a_difference_none_is_said() -> None:
    base = setting("sft", 0.4, 0.0, step=0)
    twins = {name: [setting(name, 0.4, 1.0)] for name in ("a", "b")}
    said = verdict(Analysis(Measured(base, twins, ()), [0.5]), "gold")
    assert "by win rates it cannot be told from any other method" in said[0]
    assert "No difference from the model at the start was found for a and b." in said
    assert not any("ahead" in line for line in said)
