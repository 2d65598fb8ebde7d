"""``trimtab chat``: loads the models, then talks with whoever writes: a person, or a pipe."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import Literal

from trimtab.chat.conversation import Conversation
from trimtab.chat.judges import Judges
from trimtab.chat.session import Settings
from trimtab.chat.speaker import Speaker
from trimtab.chat.view import view_for
from trimtab.errors import RecipeError, UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """The command line's options, by the same names."""

    run: str
    vs: str | None = None
    prompt: str | None = None
    settings: Settings = dataclasses.field(default_factory=Settings)
    style: Literal["auto", "chat", "plain"] = "auto"
    reward_model: str | None = None
    reward_funcs: tuple[str, ...] = ()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    as_json: bool = False


def chat(options: ChatOptions) -> int:
    """Talk until /quit or the end of input; returns 0.

    Raises UsageError for models and options that will not do, and, where lines come from a pipe,
    for a line that will not do: a program should not go on after it.
    """
    person = options.prompt is None and sys.stdin.isatty()
    talk = _conversation(options, person and sys.stdout.isatty() and not options.as_json)
    if options.prompt is not None:
        if not options.prompt.strip():
            raise RecipeError("prompt: is empty")
        talk.ask(options.prompt)
        return 0
    if person:
        _with_person(talk)
    else:
        for line in sys.stdin:
            if not talk.line(line):
                break
    return 0


def _conversation(options: ChatOptions, terminal: bool) -> Conversation:
    paths = [path for path in (options.run, options.vs) if path is not None]
    names = _short(paths)
    view = view_for(names, as_json=options.as_json, terminal=terminal)
    judges = Judges(options.reward_model, options.reward_funcs)
    speakers: list[Speaker] = []
    for path, name, key in zip(paths, names, ("run", "vs"), strict=False):
        one = Speaker.load(
            path, precision=options.precision, style=options.style, key=key, note=_quiet_note
        )
        one.name = name
        speakers.append(one)
        why = "" if one.manner.reason == "asked for" else f": {one.manner.reason}"
        print(f"{name} ({path}): {one.style} style{why}", file=sys.stderr)
    if options.settings.system and any(one.style == "plain" for one in speakers):
        raise RecipeError("system: a model that is asked by plain text has no system message")
    return Conversation(speakers, options.settings, judges, view)


def _quiet_note(_: str) -> None:
    """The line that says where a model was found stands in the greeting already."""


def _short(paths: list[str]) -> list[str]:
    """Names to tell the models apart by: the last parts of their paths, where those differ."""
    ends = [path.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or path for path in paths]
    return ends if len(set(ends)) == len(ends) else paths


def _with_person(talk: Conversation) -> None:
    """Prompt, answer, and again; a mistake is told and nothing ends."""
    talk.view.say("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves")
    for line in _typed(talk):
        try:
            if not talk.line(line):
                return
        except UsageError as error:
            talk.view.say(str(error))
        except KeyboardInterrupt:  # within a command, or while a reward is computed
            talk.view.say("stopped")


def _typed(talk: Conversation) -> Iterator[str]:
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 - its import gives input() a line that can be edited
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            talk.view.say("Ctrl-D or /quit leaves")
