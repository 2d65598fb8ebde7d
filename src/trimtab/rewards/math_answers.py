r"""Whether a text arrives at a given answer: the answer is found in it and compared as a number.

The answer of a text is, in this order: what its last ``\boxed{...}`` holds; what follows its last
``####`` on that line (GSM8K); what follows its last "answer is" or "answer:"; its last number. Of
a text with ``</think>`` only what follows it is read.

Two answers are the same number where they are equal (1,234 and 1234; 1/2, \frac{1}{2} and 0.5), or
where one is the other rounded to the two or more decimals that it shows, with a relative error
of at most the tolerance (0.67 for 2/3, but not 3 for 2.5). 60% is 60 and 0.6. Where the given
answer is no number, the texts are compared without case, spaces and LaTeX's settings.
"""

from __future__ import annotations

import re

from trimtab.rewards.math_values import Exact, Value, plain, unwrapped, value

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
_ANSWER = re.compile(r"\banswers?\b\**\s*(?:is|are|[:=])\s*:?\s*\**\s*(\S[^\n]*)", re.IGNORECASE)
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_PLAIN = rf"(?:{_WHOLE}(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"
_GROUP = r"(?:\{[^{}]*\}|\d)"
_NUMBER = re.compile(
    rf"(?<![\w.])-?\\?\$?(?:{_WHOLE}\s*)?\\[dtc]?frac\s*{_GROUP}\s*{_GROUP}"
    rf"|(?:(?<![\w.)}}\]])[-−])?\\?\$?(?:{_WHOLE}\s+\d+/\d+|{_PLAIN}(?:\s?/\s?{_PLAIN})?)"
    r"\s?(?:\\?%)?"
)

_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def agree(text: str, gold: str, tolerance: float = 0.01) -> bool | None:
    """Whether ``text`` arrives at ``gold``; None where ``gold`` holds no answer at all."""
    wanted = _given(gold)
    if wanted is None:
        return None
    found = final_answer(text)
    if found is None:
        return False
    number = value(wanted)
    if number is None:
        return _as_text(found) == _as_text(wanted)
    other = value(found) or _only_number(found)
    return other is not None and same_number(other, number, tolerance)


def same_number(one: Value, other: Value, tolerance: float = 0.01) -> bool:
    """Equal, or equal but for the rounding of one of them; a percentage is read both ways."""
    for left in _readings(one):
        for right in _readings(other):
            if _same(left, right, tolerance):
                return True
    return False


def final_answer(text: str) -> str | None:
    """The answer that a text arrives at, as it is written there; None where there is none."""
    text = text.rpartition("</think>")[2]
    explicit = _explicit(text)
    if explicit is not None:
        return explicit
    said = [found[1] for found in _ANSWER.finditer(text)]
    if said:
        numbers = _numbers(said[-1])
        return numbers[0] if numbers else said[-1].strip(" *.$")
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _explicit(text: str) -> str | None:
    """What is in the last box, or behind the last ``####``."""
    boxes = list(_BOXED.finditer(text))
    if boxes:
        return _box(text, boxes[-1].end())
    _, marks, rest = text.rpartition("####")
    return rest.strip().split("\n")[0].strip() if marks else None


def _box(text: str, start: int) -> str:
    """The content of the braces at ``start``; what a missing brace leaves open ends the text."""
    if not text.startswith("{", start):
        return text[start:].split(maxsplit=1)[0].strip("$.") if text[start:].split() else ""
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + 1 : place].strip()
    return text[start + 1 :].strip()


def _given(gold: str) -> str | None:
    """The answer in what a row gives: an answer, or a whole solution that ends in one."""
    explicit = _explicit(gold)
    if explicit is not None:
        return explicit or None
    gold = gold.strip()
    if not gold:
        return None
    # A lone answer is taken as it stands: "x+1" has a last number and is none.
    return final_answer(gold) if "\n" in gold or len(_WORD.findall(gold)) > 2 else gold


def _numbers(text: str) -> list[str]:
    return [found[0].strip() for found in _NUMBER.finditer(text)]


def _only_number(text: str) -> Value | None:
    numbers = _numbers(text)
    return value(numbers[0]) if len(numbers) == 1 else None


def _readings(written: Value) -> list[Value]:
    if not written.percent:
        return [written]
    places = None if written.decimals is None else written.decimals + 2
    return [written, Value(written.number / 100, places)]


def _same(one: Value, other: Value, tolerance: float) -> bool:
    a, b = one.number, other.number
    if a == b:
        return True
    apart, size = abs(float(a) - float(b)), max(abs(float(a)), abs(float(b)))
    if (isinstance(a, float) or isinstance(b, float)) and apart <= 1e-9 * size:
        return True  # the floats' own noise
    return _rounds(a, b, one.decimals, tolerance) or _rounds(b, a, other.decimals, tolerance)


def _rounds(written: Exact, exact: Exact, decimals: int | None, tolerance: float) -> bool:
    """Whether ``written`` is ``exact`` rounded to its decimals; one decimal is too coarse."""
    if decimals is None or decimals < 2:
        return False
    apart = abs(float(written) - float(exact))
    close = apart <= tolerance * abs(float(exact)) * (1 + 1e-9)
    return close and apart <= 0.5 * 10.0**-decimals * (1 + 1e-9)


def _as_text(text: str) -> str:
    bare = re.sub(r"[\s\\]+", "", plain(unwrapped(text))).strip(".").lower()
    letter = re.fullmatch(r"\((\w)\)", bare)
    return letter[1] if letter else bare
