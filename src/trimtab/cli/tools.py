"""The verbs that are not training: a function each, whose parameters are its options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from cyclopts import App, Group, Parameter

from trimtab.cli.chat_verb import chat
from trimtab.cli.compare_verb import compare
from trimtab.cli.data_verbs import check, inspect
from trimtab.cli.demo_verb import demo
from trimtab.cli.doctor_verb import doctor
from trimtab.cli.evaluate_verb import evaluate
from trimtab.cli.explain.command import explain
from trimtab.cli.export_verb import export
from trimtab.cli.recipes_verb import cp, ls, show
from trimtab.cli.report_verb import report
from trimtab.cli.sample_verb import sample
from trimtab.cli.score_verb import score

Verb = Callable[..., int]


def _verify_loss(*tokens: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> int:
    from trimtab.cli.verify_loss import verify_loss

    return verify_loss(tokens)


def _plan(*tokens: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> int:
    from trimtab.cli.plan_verb import plan

    return plan(tokens)


TOOLS: dict[str, Verb | dict[str, Verb]] = {
    "chat": chat,
    "compare": compare,
    "data": {"inspect": inspect, "check": check},
    "demo": demo,
    "doctor": doctor,
    "evaluate": evaluate,
    "explain": explain,
    "export": export,
    "plan": _plan,
    "recipes": {"ls": ls, "show": show, "cp": cp},
    "report": report,
    "sample": sample,
    "score": score,
    "verify-loss": _verify_loss,
}
_HELP = {
    "compare": "Train several methods from one model under one budget; draw reward against KL.",
    "data": "Look at data before training on it.",
    "plan": "Say what a recipe needs in memory and time, before a weight is loaded.",
    "recipes": "List, show and copy the recipes that come with trimtab.",
    "verify-loss": "Put a preference loss on the bench: a built-in one, or FILE.py:FUNCTION.",
}
# Whose options cyclopts does not know (a loss's hyper-parameters, a recipe's keys): own --help.
_RAW = {"compare", "plan", "verify-loss"}


def help_of(name: str) -> str:
    """What is said of a tool that has no docstring of its own, or nothing."""
    return _HELP.get(name, "")


def add_tools(app: App, group: Group) -> None:
    """Give ``app`` every tool, in alphabetical order."""
    for name, verb in sorted(TOOLS.items()):
        if isinstance(verb, dict):
            commands = App(name=name, help=_HELP[name], group=group)
            for command, function in verb.items():
                commands.command(function, name=command)
            app.command(commands)
        elif name in _RAW:
            raw = App(name=name, help=_HELP.get(name), help_flags=[], version_flags=[], group=group)
            raw.default(verb)
            app.command(raw)
        else:
            app.command(verb, name=name, group=group)
