"""A reward of real words, that a program can check: cheerful, and of the asked length.

    pip install vaderSentiment
    trimtab grpo recipes/smollm2/grpo.yaml            (reward_funcs: [.../cheerful.py:cheerful])

VADER (Hutto and Gilbert 2014) adds up the sentiment of a text's words by a lexicon and a few rules.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise ImportError("vaderSentiment is not installed: pip install vaderSentiment") from None
    return SentimentIntensityAnalyzer()


def _text(completion: Any) -> str:
    """A completion's text: it is a string, or a list of messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def sentiment(completions: list[Any], **_: Any) -> list[float]:
    """VADER's compound score of each response, from -1 to 1."""
    return [_analyzer().polarity_scores(_text(one))["compound"] for one in completions]


def length(completions: list[Any], fewest: int = 12, most: int = 40, **_: Any) -> list[float]:
    """0 for a response of ``fewest`` to ``most`` words, falling to -1 ten words outside."""
    counts = [len(_text(one).split()) for one in completions]
    return [-min(1.0, max(fewest - n, n - most, 0) / 10) for n in counts]


def cheerful(completions: list[Any], **_: Any) -> list[float]:
    """Sentiment plus the length rule: from -2 to 1."""
    pairs = zip(sentiment(completions), length(completions), strict=True)
    return [mood + rule for mood, rule in pairs]
