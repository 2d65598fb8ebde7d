"""The prompt of a pair that has none: what chosen and rejected have in common at their start.

Conversations are compared message by message. For plain text the longest common prefix is cut back
to a place where the two parts can be tokenised one by one without tearing anything (reference:
TRL's ``extract_prompt`` cuts by characters; see TRL issue 6433 for what that costs): never inside
a word, a number or a run of punctuation, never inside something that looks like a special token
(``<|im_start|>``, ``[INST]``, ``<b>``), and before the space that precedes a word rather than
after it. No character is lost: prompt + chosen is the text as it was.
"""

from __future__ import annotations

import re
import unicodedata

from trimtab.data.quarantine import BadRow
from trimtab.data.rows import Message

_REACH = 64  # longer things in angle brackets are not special tokens
_NUMBER = re.compile(r"\d[.,]\|\d|\d\|[.,]\d")  # 3.14, cut at the bar
_TOKEN = re.compile(r"<[^\s<>]+>|\[/?[A-Za-z_]+\]")


def split_messages(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """Prompt, chosen and rejected of two conversations; at least one message is left to each.

    Raises:
        BadRow: they have no first message in common, or part at a message that the assistant did
            not write, so that they are no answers to one prompt.
    """
    shortest = min(len(chosen), len(rejected))
    same = 0
    while same < shortest - 1 and chosen[same] == rejected[same]:
        same += 1
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        role = messages[same]["role"]
        if role not in ("assistant", "tool"):
            raise BadRow(f"{name}[{same}]", "chosen and rejected part at a message of the " + role)
    if same == 0:
        raise BadRow("prompt", "missing", "chosen and rejected have no first message in common")
    return chosen[:same], chosen[same:], rejected[same:]


def split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Prompt, chosen and rejected of two different texts; the prompt may be empty.

    Neither continuation is blank, unless the text that it came from is.
    """
    longest = min(len(chosen.rstrip()), len(rejected.rstrip())) - 1
    cut = 0
    while cut < longest and chosen[cut] == rejected[cut]:
        cut += 1
    while cut > 0 and not (_can_cut(chosen, cut) and _can_cut(rejected, cut)):
        cut -= 1
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _can_cut(text: str, place: int) -> bool:
    """Whether ``text[:place]`` and ``text[place:]`` can be tokenised apart."""
    before, after = text[place - 1], text[place]
    if after.isspace():
        return not before.isspace()
    if before.isspace():
        return before == "\n"
    if unicodedata.category(after)[0] == "M" or after in "\u200d\ufe0f":
        return False  # belongs to the character before it
    if _is_word(before) == _is_word(after) and not (_is_ideograph(before) or _is_ideograph(after)):
        return False
    if "'" in (before, after) or "’" in (before, after):
        return False  # don't
    if _NUMBER.search(text[max(0, place - 2) : place] + "|" + text[place : place + 2]):
        return False
    nearby = _TOKEN.finditer(text, max(0, place - _REACH), place + _REACH)
    return not any(token.start() < place < token.end() for token in nearby)


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M"


def _is_ideograph(char: str) -> bool:
    """A letter of a script that puts no spaces between words, each close to a word of its own."""
    return char.isalnum() and unicodedata.east_asian_width(char) in "WF"
