"""From what was measured to points, frontiers, choices, win rates and what differs.

Settings and checkpoints are chosen on one part of the held-out prompts (``choose``), and everything
that is reported is of the other part (``examine``), so that nothing is the best of many by luck.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.comparison.measured import OWN_PROXY, Measured, Setting
from trimtab.config.compare_recipe import BASE
from trimtab.evaluation.crossed import Resamples, holm, interval, two_sided_p, value_at
from trimtab.evaluation.length_control import controlled_rates, length_terms
from trimtab.intervals import Interval

Floats = NDArray[np.float64]

RESAMPLES = 4000
CONTROLLED = 500  # resamples of the length-controlled win rate, each of them a fit
LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Pair:
    """One method against another, both as they were chosen."""

    a: str
    b: str
    win_rate: Interval
    length_controlled: Interval
    p: float
    p_adjusted: float

    @property
    def differs(self) -> bool:
        """Whether the win rate is not one half, after correction."""
        return self.p_adjusted < LEVEL


@dataclasses.dataclass(frozen=True)
class AtKl:
    """Gold within a KL of the methods that went so far, and the differences of every two."""

    level: float
    gold: Mapping[str, Interval]
    differences: Sequence[tuple[str, str, Interval, float]]  # a, b, a - b, adjusted p


@dataclasses.dataclass(frozen=True)
class Fallen:
    """A run whose gold fell from a checkpoint to its end, while its proxy rose."""

    setting: Setting
    peak: Setting
    gold: Interval  # at the end less at the peak
    proxy: Interval
    p_adjusted: float


class Analysis:
    """Everything that a comparison says. What is of answers comes from one set of resamples."""

    def __init__(self, measured: Measured, levels: Sequence[float], seed: int = 0) -> None:
        self.measured = measured
        self.base = measured.base
        seeds, prompts = self.base.cells("gold").shape
        self.draws = Resamples(seeds, prompts, RESAMPLES, seed)
        self.alone = Resamples(1, prompts, 2000, seed)
        rows = 0 if self.base.text is None else self.base.text.shape[1]
        self.text_draws = Resamples(seeds, rows, 2000, seed) if rows else None
        self.text_alone = Resamples(1, rows, 2000, seed) if rows else None
        self.frontiers = {name: self._frontier(own) for name, own in measured.methods.items()}
        self.chosen = {
            name: max(own, key=lambda one: float(one.cells("gold", "choose").mean()))
            for name, own in measured.methods.items()
        }
        self.pairs = self._pairs()
        self.at_kl = self._levels(levels)
        self.fallen = self._fallen()

    # ------------------------------------------------------------------ one setting

    def of(self, setting: Setting, name: str) -> Interval:
        """A column over seeds and prompts."""
        cells = setting.cells(name)
        return interval(float(cells.mean()), self.draws.mean(cells), cells.size)

    def of_seed(self, setting: Setting, name: str, place: int) -> Interval:
        """A column of one seed, over prompts."""
        cells = setting.cells(name)[place : place + 1]
        return interval(float(cells.mean()), self.alone.mean(cells), cells.size)

    def gain(self, setting: Setting, other: Setting, name: str = "gold") -> Interval:
        """A column less another setting's, on the same prompts and draws."""
        cells = setting.cells(name) - other.cells(name)
        return interval(float(cells.mean()), self.draws.mean(cells), cells.size)

    def text_loss(self, setting: Setting, place: int | None = None) -> Interval | None:
        """Nats a token on held-out text, over seeds and rows, or of one seed over rows."""
        if setting.text is None or self.text_draws is None or self.text_alone is None:
            return None
        table = setting.text if place is None else setting.text[place : place + 1]
        draws = self.text_draws if place is None else self.text_alone
        nats, tokens = table[:, :, 0], table[:, :, 1]
        estimate = float(nats.sum() / tokens.sum())
        return interval(estimate, draws.ratio(nats, tokens), nats.size)

    def tax(self, setting: Setting) -> Interval | None:
        """Loss on held-out text above the model's at the start."""
        return self.tax_between(setting, self.base)

    def tax_between(self, setting: Setting, other: Setting) -> Interval | None:
        """Loss on held-out text of one less that of another, on the same rows."""
        if setting.text is None or other.text is None or self.text_draws is None:
            return None
        nats = setting.text[:, :, 0] - other.text[:, :, 0]
        tokens = setting.text[:, :, 1]
        estimate = float(nats.sum() / tokens.sum())
        return interval(estimate, self.text_draws.ratio(nats, tokens), nats.size)

    # ------------------------------------------------------------------ choices

    def _frontier(self, settings: Sequence[Setting]) -> list[Setting]:
        """By KL, the corners of the concave line from the start to the best while choosing.

        Between two policies lies every mixture that answers with either by a coin: its gold is the
        mean of theirs, and its KL at most that (KL is convex), so that what is below a line between
        two others is no gain. The best one alone where none is better than the model at the start.
        """

        def there(one: Setting, name: str) -> float:
            return float(one.cells(name, "choose").mean())

        corners = [(there(self.base, "kl"), there(self.base, "gold"), self.base)]
        for one in sorted(settings, key=lambda one: there(one, "kl")):
            kl, gold = there(one, "kl"), there(one, "gold")
            if gold <= corners[-1][1]:
                continue
            while len(corners) > 1 and _above(corners[-2], (kl, gold), corners[-1]):
                corners.pop()
            corners.append((kl, gold, one))
        found = [one for _, _, one in corners[1:]]
        return found or [max(settings, key=lambda one: there(one, "gold"))]

    # ------------------------------------------------------------------ win rates

    def _pairs(self) -> list[Pair]:
        """Every two of the chosen ones and the model at the start."""
        players = {**self.chosen, BASE: self.base}
        cut = self.draws.weights(CONTROLLED)
        found: list[tuple[str, str, Interval, Interval, float]] = []
        for a, b in itertools.combinations(players, 2):
            wins = won(players[a].columns["examine"]["gold"], players[b].columns["examine"]["gold"])
            longer = players[a].cells("length") - players[b].cells("length")
            resampled = self.draws.mean(wins)
            rate = interval(float(wins.mean()), resampled, wins.size)
            terms = length_terms(longer.ravel())
            whole = np.ones((1, wins.size))
            estimate = float(controlled_rates(wins.ravel(), terms, whole)[0])
            fits = controlled_rates(wins.ravel(), terms, cut)
            controlled = interval(estimate, fits, wins.size)
            found.append((a, b, rate, controlled, two_sided_p(rate.mean, resampled, 0.5)))
        adjusted = holm([one[-1] for one in found])
        return [Pair(*one, p) for one, p in zip(found, adjusted, strict=True)]

    def pair(self, a: str, b: str) -> Pair:
        """``a`` against ``b``, turned round where it is kept the other way."""
        for one in self.pairs:
            if (one.a, one.b) == (a, b):
                return one
            if (one.a, one.b) == (b, a):
                return Pair(
                    a,
                    b,
                    _turned(one.win_rate),
                    _turned(one.length_controlled),
                    one.p,
                    one.p_adjusted,
                )
        raise KeyError((a, b))

    # ------------------------------------------------------------------ at equal KL

    def _levels(self, levels: Sequence[float]) -> list[AtKl]:
        values: list[tuple[float, dict[str, Interval], list[Any]]] = []
        p: list[float] = []
        for level in sorted(levels):
            curves = {
                name: found
                for name in self.frontiers
                if (found := self._gold_at(name, level)) is not None
            }
            gold = {
                name: interval(mean, resampled, self.base.cells("gold").size)
                for name, (mean, resampled) in curves.items()
            }
            differences: list[Any] = []
            for a, b in itertools.combinations(curves, 2):
                resampled = curves[a][1] - curves[b][1]
                mean = curves[a][0] - curves[b][0]
                differences.append((a, b, interval(mean, resampled, self.base.cells("gold").size)))
                p.append(two_sided_p(mean, resampled))
            values.append((level, gold, differences))
        adjusted = iter(holm(p))
        return [
            AtKl(level, gold, [(a, b, found, next(adjusted)) for a, b, found in differences])
            for level, gold, differences in values
            if gold
        ]

    def _gold_at(self, name: str, level: float) -> tuple[float, Floats] | None:
        """Gold along a method's frontier within a KL; None where the method never went so far.

        Beyond the frontier's last point nothing was better, and its gold is what stays. Whether a
        method went so far is asked of all its checkpoints, by the lower end of their KL.
        """
        every = self.measured.methods[name]
        if not any(self.of(one, "kl").low >= level for one in every):
            return None
        points = [self.base, *self.frontiers[name]]
        kl, gold = (
            np.stack([self.draws.mean(one.cells(column)) for one in points], axis=1)
            for column in ("kl", "gold")
        )
        mean_kl, mean_gold = (
            np.array([[float(one.cells(column).mean()) for one in points]])
            for column in ("kl", "gold")
        )
        return float(_within(mean_kl, mean_gold, level)[0]), _within(kl, gold, level)

    # ------------------------------------------------------------------ over-optimisation

    def _fallen(self) -> list[Fallen]:
        """Runs whose gold fell on the way while the proxy rose, over all runs that have a proxy."""
        found: list[tuple[Setting, Setting, Interval, Interval]] = []
        p: list[float] = []
        for own in self.measured.methods.values():
            runs: dict[str, list[Setting]] = {}
            for one in own:
                if one.step and (one.has("proxy") or one.has(OWN_PROXY)):
                    runs.setdefault(one.label, []).append(one)
            for run in runs.values():
                last = max(run, key=lambda one: one.step)
                peak = max(run, key=lambda one: float(one.cells("gold", "choose").mean()))
                if peak is last:
                    continue
                fall = last.cells("gold") - peak.cells("gold")
                resampled = self.draws.mean(fall)
                gold = interval(float(fall.mean()), resampled, fall.size)
                proxy = "proxy" if last.has("proxy") else OWN_PROXY
                found.append((last, peak, gold, self.gain(last, peak, proxy)))
                p.append(two_sided_p(gold.mean, resampled))
        every = zip(found, holm(p), strict=True)
        return [
            Fallen(*one, adjusted)
            for one, adjusted in every
            if adjusted < LEVEL and one[2].high < 0 < one[3].low
        ]


def _above(a: Sequence[Any], b: Sequence[Any], point: Sequence[Any]) -> bool:
    """Whether the line from ``a`` to ``b`` (KL, gold, ...) runs above a point between them."""
    rise = (point[1] - a[1]) * (b[0] - a[0])
    return rise < (b[1] - a[1]) * (point[0] - a[0])


def _within(kl: Floats, gold: Floats, level: float) -> Floats:
    """[B] gold of frontiers [B, C] where they first reach a KL, or at their end."""
    found = value_at(kl, gold, level)
    return np.where(np.isnan(found), gold[:, -1], found)


def won(mine: Floats, theirs: Floats) -> Floats:
    """[seeds, prompts] share of pairs of one of mine and one of theirs that mine wins.

    Both [seeds, prompts, samples]; a tie counts one half.
    """
    gap = mine[:, :, :, None] - theirs[:, :, None, :]
    return ((gap > 0) + 0.5 * (gap == 0)).mean(axis=(2, 3))


def _turned(found: Interval) -> Interval:
    return Interval(1 - found.mean, 1 - found.high, 1 - found.low, found.n)
