"""Reward functions that come with trimtab; each entry of ``BUILTINS`` makes one from its options.

All follow TRL's protocol and take whatever columns there are. Where ``completion_ids`` are given,
lengths and n-grams are counted in tokens, otherwise in words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.rewards import math_answers, math_values
from trimtab.rewards.math_answers import agree

Completion = str | Sequence[Mapping[str, Any]]
Reward = Callable[..., list[float | None]]

THINK = r"^<think>(?!.*<think>)(.*?)</think>.*$"
THINK_ANSWER = r"^<think>(?!.*<think>).*?</think>\s*<answer>(?!.*<answer>).*?</answer>\s*$"
_TAGS = {"think": THINK, "think_answer": THINK_ANSWER}


def text_of(completion: Completion) -> str:
    """A completion's text: of messages, what the assistant said last."""
    if isinstance(completion, str):
        return completion
    said = [turn for turn in completion if turn.get("role", "assistant") == "assistant"]
    content = said[-1].get("content") if said else ""
    if isinstance(content, list):  # parts
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""


def math_answer(*, tolerance: float = 0.01) -> Reward:
    """1.0 where the answer of a completion is that of the row, 0.0 where not, None without one.

    The row's is column ``answer``, else ``solution``. How answers are found and compared is told
    in ``math_answers``; ``tolerance`` is the largest relative error of a rounded decimal.
    """
    if not _is_number(tolerance) or not 0 <= tolerance < 1:
        raise ValueError(f"option tolerance={tolerance!r} is no share from 0 to below 1")

    def reward(
        completions: Sequence[Completion],
        answer: Sequence[Any] | None = None,
        solution: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        given = [column for column in (answer, solution) if column is not None]
        found: list[float | None] = []
        for index, completion in enumerate(completions):
            gold = next((c[index] for c in given if c[index] not in (None, "")), None)
            same = None if gold is None else agree(text_of(completion), str(gold), tolerance)
            found.append(None if same is None else float(same))
        return found

    reward.one_of = ("answer", "solution")  # type: ignore[attr-defined]
    return reward


def form(*, pattern: str | None = None, tags: str = "think") -> Reward:
    """1.0 where a completion has the form, 0.0 where not.

    Without ``pattern`` the form is reasoning between think tags with anything behind it (TRL's
    think_format_reward), or with ``tags="think_answer"`` an answer between answer tags behind it.
    ``pattern`` is matched from the start of the text, and ``.`` matches line breaks.
    """
    if tags not in _TAGS:
        raise ValueError(f"option tags={tags!r} is none of {', '.join(map(repr, _TAGS))}")
    if pattern is not None and tags != "think":
        raise ValueError("options pattern and tags exclude each other")
    try:
        wanted = re.compile(_TAGS[tags] if pattern is None else pattern, re.DOTALL)
    except (re.error, TypeError) as error:
        raise ValueError(f"option pattern={pattern!r} is no regular expression: {error}") from None

    def reward(completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        return [1.0 if wanted.match(text_of(one)) else 0.0 for one in completions]

    return reward


def think_format() -> Reward:
    """TRL's think_format_reward: reasoning in think tags, then anything."""
    return form()


def length(
    *, target: int | None = None, cap: int | None = None, buffer: int | None = None
) -> Reward:
    """0 at the right length, down to -1: by distance from ``target``, or by excess over ``cap``.

    With n tokens (or words): ``target`` T gives -min(1, |n - T| / T). ``cap`` C with ``buffer`` B
    gives 0 up to C - B, then (C - B - n) / B, and -1 above C (DAPO, arXiv:2503.14476, equation 13);
    B is 0 by default: free up to C.
    """
    if (target is None) == (cap is None):
        raise ValueError("length takes one of target and cap, e.g. length(target=200)")
    if buffer is not None and cap is None:
        raise ValueError("option buffer belongs to cap")
    for name, value, least in (("target", target, 1), ("cap", cap, 1), ("buffer", buffer, 0)):
        if value is not None and (not _is_whole(value) or value < least):
            raise ValueError(f"option {name}={value!r} is no whole number from {least} on")
    soft = buffer or 0
    if cap is not None and soft > cap:
        raise ValueError(f"option buffer={buffer} is more than cap={cap}")

    def one(n: int) -> float:
        if target is not None:
            return -min(1.0, abs(n - target) / target) + 0.0  # no -0.0
        assert cap is not None
        if n <= cap - soft:
            return 0.0
        return (cap - soft - n) / soft if n <= cap else -1.0

    def reward(
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        return [one(len(units)) for units in _units(completions, completion_ids)]

    return reward


def repetition(*, ngram_size: int = 3, max_penalty: float = -1.0) -> Reward:
    """``max_penalty`` times the share of repeated n-grams: 1 - different ones / all.

    arXiv:2502.03373, appendix C.2. A completion of fewer than ``ngram_size`` tokens (or words,
    case aside) has 0.
    """
    if not _is_whole(ngram_size) or ngram_size < 1:
        raise ValueError(f"option ngram_size={ngram_size!r} is no whole number from 1 on")
    if not _is_number(max_penalty) or not -float("inf") < max_penalty <= 0:
        raise ValueError(f"option max_penalty={max_penalty!r} is no number of at most 0")

    def one(units: Sequence[Any]) -> float:
        grams = [tuple(units[i : i + ngram_size]) for i in range(len(units) - ngram_size + 1)]
        share = 1 - len(set(grams)) / len(grams) if grams else 0.0
        return share * max_penalty if share else 0.0

    def reward(
        completions: Sequence[Completion],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        return [one(units) for units in _units(completions, completion_ids)]

    return reward


def _units(
    completions: Sequence[Completion], ids: Sequence[Sequence[int]] | None
) -> list[Sequence[Any]]:
    if ids is not None:
        return list(ids)
    return [text_of(completion).lower().split() for completion in completions]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


BUILTINS: dict[str, Callable[..., Reward]] = {
    "math_answer": math_answer,
    "accuracy_reward": math_answer,
    "format": form,
    "think_format_reward": think_format,
    "length": length,
    "repetition": repetition,
}

SOURCES = (Path(__file__), Path(math_answers.__file__), Path(math_values.__file__))
"""The files that decide what a built-in gives."""
