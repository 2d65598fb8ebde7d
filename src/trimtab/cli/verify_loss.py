"""``trimtab verify-loss``: what the bench found, as tables or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trimtab.config.merge import COMMAND_LINE
from trimtab.config.messages import one_line
from trimtab.config.recipes import LossChoice
from trimtab.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from trimtab.proof.verify import Verdict

USAGE = """Usage: trimtab verify-loss FILE.py:FUNCTION | NAME | SUM [--beta 0.2 ...] [--json]

Put a preference loss on the bench: your own (docs/losses.md, "Your own loss"), one of the built-in
ones by its name, or a weighted sum of those ("dpo + 0.2 hinge"). Its hyper-parameters are options
(of a sum: --hinge.beta 0.5); --json prints one JSON object.

Its gradient is compared with finite differences; it has to push the right way, to stay finite at
extreme inputs, and to judge every row for itself: exit code 1 where one of these fails. The rest
says what kind of loss it is: which invariances hold, and where it leads when its exact expectation
is minimised on a language of six responses, beside the optimum of KL-regularised reward
maximisation (pi* ~ pi_ref exp(r / beta)) and IPO's.
"""
_MARKS = {
    "passed": "[green]passed[/]",
    "failed": "[bold red]FAILED[/]",
    "note": "[yellow]note[/]",
    "yes": "yes",
    "no": "no",
    "does not apply": "[dim]does not apply[/]",
}


def verify_loss(tokens: Sequence[str]) -> int:
    """``trimtab verify-loss TOKENS``: 0, or 1 where a hard check failed."""
    if any(token in ("--help", "-h") for token in tokens):
        print(USAGE, end="")
        return 0
    target, parameters, as_json = _read(tokens)
    key = "file" if ":" in target or target.endswith(".py") else "name"
    try:
        choice = LossChoice.model_validate({key: target, **parameters})
    except ValidationError as error:
        raise RecipeError(one_line(error, LossChoice, lambda _: COMMAND_LINE)) from None
    from trimtab.proof.verify import verify

    verdict = verify(choice)
    if as_json:
        print(json.dumps(verdict.as_record()))
    else:
        _print(verdict, Console(highlight=False))
    return 1 if verdict.failed else 0


def _read(tokens: Sequence[str]) -> tuple[str, dict[str, Any], bool]:
    """The loss, its hyper-parameters and whether to print JSON."""
    target: str | None = None
    parameters: dict[str, Any] = {}
    as_json = False
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            if target is not None:
                raise UsageError(f"{token}: one loss at a time, and {target} is given already")
            target = token
            continue
        raw, equals, value = token[2:].partition("=")
        name = raw.replace("-", "_").removeprefix("loss.")
        if name == "json":
            as_json = True
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"--{raw}: a value is missing")
            value = rest.pop(0)
        if name in parameters:
            raise UsageError(f"--{raw}: given twice")
        parameters[name] = value
    if target is None:
        raise UsageError("verify-loss: which one? Give FILE.py:FUNCTION, or the name of a loss")
    return target, parameters, as_json


def _print(verdict: Verdict, out: Console) -> None:
    spec = verdict.spec
    settings = ", ".join(f"{k}={v}" for k, v in verdict.parameters.items()) or "none"
    asked = sorted((spec.needs | spec.prepare_needs) - {"policy"})
    out.print(
        f"[bold]{escape(spec.name)}[/]: a loss of kind {spec.kind}; hyper-parameters: "
        f"{escape(settings)}; asks for: {', '.join(asked) or 'nothing but the policy'}\n"
    )
    checks = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in ("check", "result", ""):
        checks.add_column(column, no_wrap=column == "result")
    for check in verdict.checks:
        checks.add_row(escape(check.name), _MARKS[check.status], escape(check.detail))
    out.print(checks)
    _print_optimum(verdict, out)
    failed = ", ".join(check.name for check in verdict.failed)
    out.print(f"[bold red]FAILED[/]: {escape(failed)}" if failed else "[green]all checks passed[/]")


def _print_optimum(verdict: Verdict, out: Console) -> None:
    found = verdict.optimum
    out.print(
        f"\nIts optimum over exact preferences, beta {verdict.beta:g}: [bold]{found.verdict}[/]"
    )
    out.print(
        f"KL(pi* || it) = {found.kl_to_best:.3g} nats, KL(IPO's || it) = {found.kl_to_ipo:.3g} "
        f"nats; largest entry of the gradient there {found.gradient:.1g}\n"
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("response")
    for name in ("reward", "reference", "pi*", "IPO's", verdict.spec.name):
        table.add_column(escape(name), justify="right")
    columns = (found.rewards, found.reference, found.best, found.ipo, found.found)
    for text, *numbers in zip(found.texts, *(c.tolist() for c in columns), strict=True):
        table.add_row(text, f"{numbers[0]:.3g}", *(f"{number:.4f}" for number in numbers[1:]))
    out.print(table)
    out.print()
