"""How unlike each other answers are: distinct-n and self-BLEU, over words (what space separates).

Both depend on how many answers there are and how long they are: compare models on the same prompts
with as many answers each.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.evaluation.statistics import cluster_mean, cluster_numbers
from trimtab.intervals import Interval, t_quantile

Words = Sequence[str]
Gram = tuple[str, ...]

ORDER = 4  # of BLEU
_EPSILON = 0.1  # stands for no match (Chen and Cherry 2014, method 1, as NLTK has it)


def ngrams(words: Words, n: int) -> list[Gram]:
    """All runs of n words, in order."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct_n(texts: Sequence[Words], n: int) -> float:
    """Different n-grams by all n-grams of the texts together (Li et al. 2016, arXiv:1510.03055).

    NaN where no text has n words.
    """
    every = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(every)) / len(every) if every else math.nan


def distinct_interval(
    texts: Sequence[Words], prompts: Sequence[Hashable], n: int, *, confidence: float = 0.95
) -> Interval:
    """``distinct_n`` with a jackknife over prompts and t.

    No bootstrap: a prompt drawn twice repeats every n-gram of its answers. The jackknife's variance
    is, on average, not too small for any statistic (Efron and Stein 1981). One prompt has an
    unbounded interval; ``n`` counts texts.
    """
    numbers = cluster_numbers(list(prompts))
    groups = int(numbers.max()) + 1
    totals = np.zeros(groups)
    owners: dict[Gram, int] = {}  # the one prompt that has it; -1 for several
    for number, text in zip(numbers.tolist(), texts, strict=True):
        grams = ngrams(text, n)
        totals[number] += len(grams)
        for gram in grams:
            if owners.setdefault(gram, number) != number:
                owners[gram] = -1
    if not owners:
        return Interval(math.nan, math.nan, math.nan, len(texts))
    estimate = len(owners) / float(totals.sum())
    alone = np.bincount([o for o in owners.values() if o >= 0], minlength=groups)
    left = totals.sum() - totals
    if groups == 1 or not left.all():
        return Interval(estimate, -math.inf, math.inf, len(texts))
    without = (len(owners) - alone) / left
    error = math.sqrt((groups - 1) / groups * float(np.square(without - without.mean()).sum()))
    half = t_quantile(confidence, groups - 1) * error
    return Interval(estimate, max(0.0, estimate - half), min(1.0, estimate + half), len(texts))


def self_bleu(texts: Sequence[Words]) -> list[float]:
    """BLEU-4 of each text, the others being its references (Zhu et al. 2018, arXiv:1802.01886).

    1 says that another text has all of its n-grams. Clipped precisions of 1 to 4 words with equal
    weights, the brevity penalty against the nearest length, 0.1 in place of no match. A text
    without words has 0. NaN for a text that is alone.
    """
    if len(texts) < 2:
        return [math.nan] * len(texts)
    lengths = sorted(len(text) for text in texts)
    precisions = [_precisions(texts, n) for n in range(1, ORDER + 1)]
    found: list[float] = []
    for index, text in enumerate(texts):
        if not text:
            found.append(0.0)
            continue
        mean = math.fsum(math.log(part[index]) for part in precisions) / ORDER
        nearest = _nearest(lengths, len(text))
        penalty = min(0.0, 1 - nearest / len(text))
        found.append(math.exp(mean + penalty))
    return found


def self_bleu_interval(
    texts: Sequence[Words], prompts: Sequence[Hashable], *, seed: int = 0
) -> tuple[Interval, str]:
    """Mean self-BLEU and what its references are: "prompt" or "all".

    Where prompts have several answers, the references are the other answers to the same prompt, and
    prompts are drawn. With one answer each they are the answers to all other prompts, which the
    interval takes as given.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(index)
    several = any(len(group) > 1 for group in groups.values())
    values = np.full(len(texts), math.nan)
    for group in groups.values() if several else [list(range(len(texts)))]:
        values[group] = self_bleu([texts[i] for i in group])
    known = ~np.isnan(values)
    scope = "prompt" if several else "all"
    if not known.any():
        return Interval(math.nan, math.nan, math.nan, len(texts)), scope
    numbers: NDArray[np.int64] = cluster_numbers(list(prompts))
    return cluster_mean(values[known], numbers[known], seed=seed), scope


def _precisions(texts: Sequence[Words], n: int) -> list[float]:
    """Of each text, the share of its n-grams that another text has, each as often as it has it."""
    counts = [Counter(ngrams(text, n)) for text in texts]
    most: dict[Gram, tuple[int, int, int]] = {}  # highest count, whose it is, the next highest
    for index, own in enumerate(counts):
        for gram, count in own.items():
            first, owner, second = most.get(gram, (0, -1, 0))
            if count > first:
                most[gram] = (count, index, first)
            else:
                most[gram] = (first, owner, max(second, count))
    found: list[float] = []
    for index, own in enumerate(counts):
        matched = sum(
            min(count, most[gram][2] if most[gram][1] == index else most[gram][0])
            for gram, count in own.items()
        )
        found.append((matched or _EPSILON) / max(1, sum(own.values())))
    return found


def _nearest(lengths: Sequence[int], own: int) -> int:
    """The length nearest to ``own`` among the others' (sorted, ``own`` once among them)."""
    place = bisect_left(lengths, own)
    others = [lengths[i] for i in (place - 1, place + 1) if 0 <= i < len(lengths)]
    return min(others, key=lambda length: (abs(length - own), length))
