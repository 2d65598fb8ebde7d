"""The slash commands of a conversation: what there is, and how a line is read."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from trimtab.errors import UsageError


class Command(NamedTuple):
    """``takes``: what stands behind it; empty for nothing, in brackets where it may be left out."""

    name: str
    takes: str
    what: str


COMMANDS = (
    Command("help", "", "show this"),
    Command("temperature", "[NUMBER]", "divide the logits; 0 is greedy"),
    Command("top_p", "[NUMBER]", "only the likeliest tokens with this probability together"),
    Command("top_k", "[NUMBER]", "only the k likeliest tokens; 0 is all"),
    Command("max", "[NUMBER]", "tokens after which an answer is cut off"),
    Command("seed", "[NUMBER]", "of the draws: the same seed and words give the same answers"),
    Command("system", "[TEXT]", "system message (chat style); /system none takes it away"),
    Command("format", "[chat|plain]", "through the chat template, or plain text to go on with"),
    Command("newline", "[on|off]", "whether a plain prompt ends with a line break"),
    Command("settings", "", "show all of these"),
    Command("history", "", "show the conversation"),
    Command("regenerate", "", "answer again, with other draws"),
    Command("continue", "", "go on with an answer that was cut off"),
    Command("undo", "", "forget your last message and the answer"),
    Command("reset", "", "forget the conversation; settings stay"),
    Command("save", "FILE", "write the conversation and its settings"),
    Command("load", "FILE", "go on with one that was saved"),
    Command("quit", "", "leave (so does Ctrl-D)"),
)
ALIASES = {
    "temp": "temperature",
    "topp": "top_p",
    "top-p": "top_p",
    "topk": "top_k",
    "top-k": "top_k",
    "max_new_tokens": "max",
    "retry": "regenerate",
    "clear": "reset",
    "exit": "quit",
    "q": "quit",
    "h": "help",
    "?": "help",
}
_BY_NAME = {command.name: command for command in COMMANDS}


def read_command(line: str) -> tuple[str, str] | None:
    """Name and argument of a command, None for a message; UsageError for what is neither.

    A message that begins with a slash is written with two.
    """
    if not line.startswith("/") or line.startswith("//"):
        return None
    word, _, rest = line[1:].partition(" ")
    name, rest = ALIASES.get(word, word), rest.strip()
    if name not in _BY_NAME:
        found = difflib.get_close_matches(name, [*_BY_NAME, *ALIASES], n=1)
        hint = f"did you mean /{found[0]}?" if found else "/help lists them"
        raise UsageError(f"/{word}: no such command; {hint} (// begins a message with a slash)")
    takes = _BY_NAME[name].takes
    if rest and not takes:
        raise UsageError(f"/{name}: takes nothing behind it")
    if not rest and takes and not takes.startswith("["):
        raise UsageError(f"/{name}: {takes} is missing")
    return name, rest


def message_of(line: str) -> str:
    """A message as it is meant: two slashes at its start are one."""
    return line[1:] if line.startswith("//") else line


def help_text() -> str:
    """All commands, a line each."""
    rows = [(f"/{one.name} {one.takes}".rstrip(), one.what) for one in COMMANDS]
    width = max(len(usage) for usage, _ in rows)
    lines = [f"{usage:<{width}}  {what}" for usage, what in rows]
    return "\n".join([*lines, "Ctrl-C stops an answer. // begins a message with a slash."])
