"""What is said of tools and their options, read from the table of tools and their functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_type_hints

from cyclopts import Parameter

from trimtab.cli.explain.entry import Entry, entry


class Option(NamedTuple):
    """A parameter of a tool: how it is typed, and what its docstring says of it."""

    name: str
    typed: str
    positional: bool
    default: str
    what: str


def tools() -> dict[str, Entry]:
    """Everything of ``TOOLS``; one within a group is named as it is typed, ``data check``."""
    from trimtab.cli.tools import TOOLS, Verb, help_of

    found: dict[str, Entry] = {}

    def add(name: str, function: Verb) -> None:
        known = list(_options(function))
        found[name] = entry(
            "tool",
            name,
            help_of(name) or (inspect.getdoc(function) or "").split("\n\n")[0],
            arguments=", ".join(one.typed for one in known if one.positional),
            options=", ".join(one.typed for one in known if not one.positional),
            more=f"trimtab {name} --help",
        )

    for name, tool in TOOLS.items():
        if isinstance(tool, dict):
            verbs = ", ".join(f"trimtab {name} {verb}" for verb in tool)
            found[name] = entry("tool", name, help_of(name), verbs=verbs)
            for verb, function in tool.items():
                add(f"{name} {verb}", function)
        else:
            add(name, tool)
    return found


def options() -> dict[str, Entry]:
    """Options of tools by name; where several tools have it, what each says."""
    from trimtab.cli.tools import TOOLS

    owners: dict[str, list[tuple[str, Option]]] = {}
    for name, tool in TOOLS.items():
        inner = tool if isinstance(tool, dict) else {"": tool}
        for last, function in inner.items():
            for one in _options(function):
                if not one.positional:
                    owners.setdefault(one.name, []).append((f"{name} {last}".strip(), one))
    return {name: _option(name, of) for name, of in owners.items()}


def _option(name: str, owners: list[tuple[str, Option]]) -> Entry:
    return entry(
        "option",
        name,
        _by_owner([(tool, one.what) for tool, one in owners], "{owners}: {text}", " "),
        default=_by_owner([(tool, one.default) for tool, one in owners], "{text} ({owners})", "; "),
        of=", ".join(f"trimtab {tool}" for tool, _ in owners),
        option=owners[0][1].typed,
    )


def _by_owner(told: list[tuple[str, str]], pattern: str, between: str) -> str:
    """What all say, or each with those who say it."""
    texts: dict[str, list[str]] = {}
    for owner, text in told:
        texts.setdefault(text, []).append(owner)
    if len(texts) == 1:
        return next(iter(texts))
    return between.join(
        pattern.format(text=text, owners=", ".join(owners))
        for text, owners in texts.items()
        if text
    )


def _options(function: Callable[..., int]) -> Iterator[Option]:
    """Its parameters of which the docstring says something: others are for programs."""
    said = _said(inspect.getdoc(function) or "")
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in said:
            continue
        positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        names = [
            typed
            for extra in getattr(hints[name], "__metadata__", ())
            if isinstance(extra, Parameter)
            for typed in extra.name or ()
        ]
        typed = names[0] if names else f"--{name.replace('_', '-')}"
        yield Option(
            typed.lstrip("-").replace("-", "_"),
            name.upper() if positional else typed,
            positional,
            _shown(parameter.default),
            said[name],
        )


def _shown(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "required"
    if default is None or isinstance(default, bool) or default == ():
        return ""  # an option that is not given is nothing
    return str(default)


def _said(text: str) -> dict[str, str]:
    """The section Parameters of a docstring: name -> text."""
    _, _, section = text.partition("Parameters\n----------\n")
    found: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line and not line.startswith(" "):
            found[line.strip()] = []
        elif line.strip():
            next(reversed(found.values())).append(line.strip())
    return {name: " ".join(lines) for name, lines in found.items()}
