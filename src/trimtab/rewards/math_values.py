r"""Written numbers as numbers: decimals, fractions, thousands, percent, LaTeX arithmetic.

Rational arithmetic is exact; roots, pi and fractional powers are floats. What is no number (an
equation with unknowns, words, two numbers) is None. Nothing is evaluated as code, and the work is
bounded: texts over ``LONGEST`` characters and huge powers are None.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple

LONGEST = 200
_MOST_BITS = 4096

Exact = Fraction | float


class Value(NamedTuple):
    """A number; ``decimals`` behind the point where it was written as one, ``percent`` with %."""

    number: Exact
    decimals: int | None = None
    percent: bool = False


_WORDS = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"
_REPLACED = (
    (r"\{,\}", ","),
    (r"\\[,!]", ""),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degrees?|°", ""),
    (r"\\(?:left|right|displaystyle|[;: ()\[\]])|[$~€£¥]|\\\$", " "),
    (r"\\%", "%"),
    (r"[−–]", "-"),
    (r"\\(?:times|cdot)|[×·]", "*"),
    (r"\\div|÷", "/"),
    (r"π", r"\\pi"),
)
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)")
_MIXED = re.compile(r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)")
_UNIT = re.compile(r"(?<=[\d)}%\s])\s*[A-Za-z]+\.?(?:\^\{?\d+\}?|[²³])?")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.\d*|\.\d+|\d+)(?P<power>[eE][+-]?\d+)?"
    r"|(?P<word>\\(?:frac|sqrt|pi))|(?P<sign>[-+*/^(){}\[\]]))"
)


def plain(text: str) -> str:
    """A written number without what only sets it: dollars, spaces of LaTeX, thousands' commas."""
    for pattern, new in _REPLACED:
        text = re.sub(pattern, new, text)
    return _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text).strip()


def without_words(text: str) -> str:
    r"""A text without ``\text{...}`` and the like, units with their powers included."""
    return re.sub(_WORDS + r"(?:\^\{?\d+\}?)?", " ", text)


def unwrapped(text: str) -> str:
    r"""A text with the content of ``\text{...}`` in its place."""
    return re.sub(_WORDS, r"\1", text)


def value(text: str) -> Value | None:
    """The number that a short text is, or None. Units behind it are left out."""
    if len(text) > LONGEST:
        return None
    written = plain(without_words(text))
    for sign in ("=", "≈", "\\approx"):
        written = written.rpartition(sign)[2]
    written = written.strip().rstrip(".").strip()
    found = _value(written)
    if found is None:
        bare = _UNIT.sub(" ", written).strip()
        found = _value(bare) if bare != written else None
    return found


def _value(written: str) -> Value | None:
    percent = written.endswith("%")
    body = written[:-1].rstrip() if percent else written
    body = _MIXED.sub(r"(\1+\2/\3)", body)
    try:
        number = _Parser(body).whole()
    except (_NoNumber, ArithmeticError, ValueError, RecursionError):
        return None
    if not _fits(number):
        return None
    decimal = re.fullmatch(r"[-+]?\s*\d*\.(\d+)", body)
    return Value(number, len(decimal[1]) if decimal else None, percent)


def _fits(number: Exact) -> bool:
    """Whether a float can hold it: comparisons of rounded numbers are in floats."""
    if isinstance(number, float):
        return math.isfinite(number)
    return number.numerator.bit_length() - number.denominator.bit_length() < 1000


class _NoNumber(Exception):
    """The text is no arithmetic expression."""


class _Parser:
    """Recursive descent over sums, products, powers, ``\\frac``, ``\\sqrt`` and brackets."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        place = 0
        while place < len(text):
            found = _TOKEN.match(text, place)
            if found is None:
                raise _NoNumber
            place = found.end()
            kind = found.lastgroup or ""
            if found["number"] is not None:
                self.tokens.append(("number", found["number"] + (found["power"] or "")))
            else:
                self.tokens.append((kind, found[kind]))
        self.place = 0

    def whole(self) -> Exact:
        found = self.sum()
        if self.place < len(self.tokens):
            raise _NoNumber
        return found

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.place] if self.place < len(self.tokens) else ("", "")

    def take(self, text: str) -> bool:
        if self.peek()[1] == text:
            self.place += 1
            return True
        return False

    def sum(self) -> Exact:
        found = self.product()
        while self.peek()[1] in ("+", "-"):
            sign = self.peek()[1]
            self.place += 1
            term = self.product()
            found = found + term if sign == "+" else found - term
        return found

    def product(self) -> Exact:
        found = self.signed()
        while True:
            before = self.tokens[self.place - 1]
            kind, text = self.peek()
            if text in ("*", "/"):
                self.place += 1
                other = self.signed()
                found = found * other if text == "*" else found / other
            elif text == "\\frac" and before[0] == "number" and before[1].isdigit():
                found += self.power() if found >= 0 else -self.power()  # 1\frac{1}{2}
            elif kind == "word" or text in ("(", "{"):
                found *= self.power()
            else:
                return found

    def signed(self) -> Exact:
        if self.take("-"):
            return -self.signed()
        if self.take("+"):
            return self.signed()
        return self.power()

    def power(self) -> Exact:
        base = self.atom()
        return _power(base, self.signed()) if self.take("^") else base

    def atom(self) -> Exact:
        kind, text = self.peek()
        self.place += 1
        if kind == "number":
            exponent = text.lower().partition("e")[2]
            if exponent and abs(int(exponent)) > 300:
                raise _NoNumber
            return Fraction(text)
        if text == "\\pi":
            return math.pi
        if text == "\\frac":
            top = self.group()
            return top / self.group()
        if text == "\\sqrt":
            root: Exact = Fraction(2)
            if self.take("["):
                root = self.sum()
                self.need("]")
            return _power(self.group(), 1 / root)
        for opening, closing in ("()", "{}"):
            if text == opening:
                found = self.sum()
                self.need(closing)
                return found
        raise _NoNumber

    def group(self) -> Exact:
        """What ``\\frac`` and ``\\sqrt`` stand before: braces, or one digit of what follows."""
        kind, text = self.peek()
        if kind == "number" and text.isdigit() and len(text) > 1:
            self.tokens[self.place] = (kind, text[1:])
            return Fraction(text[0])
        return self.atom()

    def need(self, text: str) -> None:
        if not self.take(text):
            raise _NoNumber


def _power(base: Exact, exponent: Exact) -> Exact:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if abs(exponent.numerator) * size > _MOST_BITS:
                raise _NoNumber
            return base**exponent.numerator
        if exponent == Fraction(1, 2) and base >= 0:  # \sqrt{16} is 4, exactly
            top, bottom = math.isqrt(base.numerator), math.isqrt(base.denominator)
            if top * top == base.numerator and bottom * bottom == base.denominator:
                return Fraction(top, bottom)
    found = float(base) ** float(exponent)
    if isinstance(found, complex):
        raise _NoNumber
    return found
