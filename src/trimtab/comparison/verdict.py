"""What a comparison says in sentences: only what the intervals support, the most important first.

"Better" and "worse" are win rates that differ from one half, and "ahead" is a difference at equal
KL, both after Holm's correction for all comparisons of the kind. Where nothing differs, it says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.comparison.analysis import LEVEL, Analysis
from trimtab.config.compare_recipe import BASE
from trimtab.intervals import Interval


def verdict(analysis: Analysis, judge: str) -> list[str]:
    """Sentences."""
    if not analysis.chosen:
        return ["No method has been examined with all of its seeds yet."]
    found = [*_best(analysis, judge), *_base(analysis), *_equal_kl(analysis)]
    return [*found, *_length(analysis), *_fallen(analysis), *_tax(analysis)]


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def told(found: Interval, decimals: int = 3, *, sign: bool = False) -> str:
    """``0.712 [0.700, 0.724]``."""
    how = f"{'+' if sign else ''}.{decimals}f"
    return f"{found.mean:{how}} [{found.low:{how}}, {found.high:{how}}]"


def _best(analysis: Analysis, judge: str) -> list[str]:
    """Who has the most, and from whom that can be told."""
    names = sorted(analysis.chosen, key=lambda one: -analysis.of(analysis.chosen[one], "gold").mean)
    best = names[0]
    gold = told(analysis.of(analysis.chosen[best], "gold"))
    if len(names) == 1:
        return [f"{best} has a reward of {gold} by {judge}."]
    worse, same = [], []
    for other in names[1:]:
        pair = analysis.pair(best, other)
        (worse if pair.differs and pair.win_rate.mean > 0.5 else same).append(other)
    start = f"{best}, at its best setting, has the highest reward by {judge}, {gold}"
    if not same:
        return [f"{start}, and wins more than half of the time against every other method."]
    if not worse:
        return [f"{start}; by win rates it cannot be told from any other method."]
    return [
        f"{start}; it wins more than half of the time against {listed(worse)}, and cannot be told "
        f"from {listed(same)}."
    ]


def _base(analysis: Analysis) -> list[str]:
    better, same, worse = [], [], []
    for name in analysis.chosen:
        pair = analysis.pair(name, BASE)
        if not pair.differs:
            same.append(name)
        else:
            (better if pair.win_rate.mean > 0.5 else worse).append(name)
    found: list[str] = []
    if len(better) == len(analysis.chosen) > 1:
        rates = [analysis.pair(name, BASE).win_rate.mean for name in better]
        found.append(
            f"Every method beats the model at the start ({BASE}), with win rates from "
            f"{min(rates):.2f} to {max(rates):.2f}."
        )
    elif better:
        found.append(f"{listed(better)} beat{'s' * (len(better) == 1)} the model at the start.")
    if same:
        found.append(f"No difference from the model at the start was found for {listed(same)}.")
    if worse:
        found.append(f"{listed(worse)} lose{'s' * (len(worse) == 1)} to the model at the start.")
    return found


def _equal_kl(analysis: Analysis) -> list[str]:
    """For every level, who has the most there, and whom it is ahead of."""
    found: list[str] = []
    for level in analysis.at_kl:
        if len(level.gold) < 2:
            continue
        order = sorted(level.gold, key=lambda name: -level.gold[name].mean)
        best = order[0]
        behind = {
            b if a == best else a
            for a, b, difference, p in level.differences
            if best in (a, b) and p < LEVEL and not difference.low <= 0 <= difference.high
        }
        ahead_of = [name for name in order if name in behind]
        same = [name for name in order[1:] if name not in behind]
        parts = [f"it is ahead of {listed(ahead_of)}"] if ahead_of else []
        parts += [f"{'' if parts else 'it '}cannot be told from {listed(same)}"] if same else []
        found.append(
            f"At a KL of {level.level:g} nats {best} has the highest reward, "
            f"{told(level.gold[best])}; {' and '.join(parts)}."
        )
    return found


def _length(analysis: Analysis) -> list[str]:
    """Wins that are no wins at equal length, and the other way round."""
    lost = [
        f"{pair.a} over {pair.b} (win rate {told(pair.win_rate, 2)}, length-controlled "
        f"{told(pair.length_controlled, 2)})"
        for pair in analysis.pairs
        if pair.differs
        and (pair.win_rate.mean - 0.5) * (pair.length_controlled.mean - 0.5) < 0
        and not pair.length_controlled.low <= 0.5 <= pair.length_controlled.high
    ]
    return [f"At equal length the winner is the other one: {'; '.join(lost)}."] if lost else []


def _fallen(analysis: Analysis) -> list[str]:
    return [
        f"{one.setting.method} ({one.setting.label}) was over-optimised: from step {one.peak.step} "
        f"to step {one.setting.step} the judge's reward fell by {told(_turned(one.gold))} while "
        f"the proxy rose by {told(one.proxy, 2)}."
        for one in analysis.fallen
    ]


def _turned(found: Interval) -> Interval:
    return Interval(-found.mean, -found.high, -found.low, found.n)


def _tax(analysis: Analysis) -> list[str]:
    """Whose loss on held-out text rose, and whose did not."""
    found = {name: analysis.tax(one) for name, one in analysis.chosen.items()}
    known = {
        name: tax for name, tax in found.items() if tax is not None and _trained(analysis, name)
    }
    if not known:
        return []
    rose = sorted((n for n, t in known.items() if t.low > 0), key=lambda n: -known[n].mean)
    fell = [name for name, tax in known.items() if tax.high < 0]
    parts: list[str] = []
    if rose:
        each = listed([f"{name} {told(known[name], sign=True)}" for name in rose])
        parts.append(f"Loss on held-out text, in nats a token, rose with {each}")
    if fell:
        each = listed([f"{name} {told(known[name], sign=True)}" for name in fell])
        parts.append(f"{'it fell with' if rose else 'Loss on held-out text fell with'} {each}")
    return [f"{'; '.join(parts)}."] if parts else ["No method's loss on held-out text changed."]


def _trained(analysis: Analysis, name: str) -> bool:
    """Whether a method trains at all; the best of n does not."""
    return analysis.chosen[name].step > 0
