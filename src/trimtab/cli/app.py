"""The entry point: dispatch to verbs, errors as one line, exit codes.

Exit codes: 0 done, 1 the run failed, 2 usage, configuration or data, 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

import cyclopts
from cyclopts import App, Group, Parameter

from trimtab.cli.texts import TRAINING
from trimtab.cli.tools import TOOLS, add_tools
from trimtab.errors import TrimtabError, UsageError

_HELP = """Align language models: from raw text to a policy that does what people prefer.

`trimtab VERB --help` lists every key of a verb. A verb takes a recipe (YAML) and overrides:
`trimtab dpo recipe.yaml --beta 0.2`. No telemetry; no network unless a hub id is named.
"""


def main(tokens: Sequence[str] | None = None) -> int:
    """Run ``trimtab TOKENS`` (the process's arguments by default) and return the exit code."""
    arguments = list(sys.argv[1:] if tokens is None else tokens)
    try:
        _refuse_unknown_verb(arguments)
        code = _app()(
            arguments,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        sys.stdout.flush()  # here, where a closed pipe can still be met quietly
        return code if isinstance(code, int) else 0
    except TrimtabError as error:
        return _fail(str(error), error.exit_code)
    except cyclopts.CycloptsError as error:
        return _fail(str(error), UsageError.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has left (| head): say nothing, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception:
        traceback.print_exc()
        return _fail("this is a bug of trimtab, please report it with the lines above", 1)


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"trimtab: {line}", file=sys.stderr)
    return code


# ---------------------------------------------------------------------- verbs


def _app() -> App:
    from trimtab import __version__

    app = App(
        name="trimtab",
        help=_HELP,
        help_format="markdown",
        version=__version__,
        suppress_keyboard_interrupt=False,  # main has the exit code
    )
    training, tools = Group("Training", sort_key=0), Group("Tools", sort_key=1)
    for number, (name, text) in enumerate(TRAINING.items()):
        verb = App(
            name=name,
            help=text.summary,
            help_flags=[],
            version_flags=[],
            group=training,
            sort_key=number,
        )
        verb.default(_training_verb(name))
        app.command(verb)
    add_tools(app, tools)
    return app


def _training_verb(name: str) -> Callable[..., int]:
    """The verb as a function of raw words: its keys are the recipe's, which cyclopts never sees."""

    def run(*tokens: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> int:
        return train(name, tokens)

    return run


def train(verb: str, tokens: Sequence[str]) -> int:
    """``trimtab VERB TOKENS``."""
    if any(token in ("--help", "-h") for token in tokens):
        from trimtab.cli.verb_help import print_verb_help

        print_verb_help(verb)
        return 0
    from trimtab.config.resolve import resolve

    resolved = resolve(verb, tokens)
    if resolved.control.offline:  # before anything reads these, which is at import
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
            os.environ[name] = "1"
    from trimtab.cli.early import refuse_early

    refuse_early(resolved)
    from trimtab.algorithms.run import run_resolved

    return run_resolved(resolved, ["trimtab", verb, *tokens])


# ---------------------------------------------------------------------- wrong verbs


def _refuse_unknown_verb(arguments: Sequence[str]) -> None:
    verbs = [*TRAINING, *sorted(TOOLS)]
    if not arguments or arguments[0].startswith("-") or arguments[0] in verbs:
        return
    from trimtab.config.hints import FOREIGN_VERBS, STAGES
    from trimtab.config.suggest import nearest

    verb, *rest = arguments
    words = [word for token in rest for word in token.split("=")]
    if verb in FOREIGN_VERBS:
        stage = next((STAGES[word] for word in words if word in STAGES), None)
        hint = f"use trimtab {stage}" if stage and verb == "train" else FOREIGN_VERBS[verb]
        raise UsageError(f"{verb}: unknown verb; {hint}")
    if verb.endswith((".yaml", ".yml")):
        raise UsageError(f"{verb}: a verb comes first, e.g. trimtab dpo {verb}")
    near = nearest(verb, verbs)
    if near is not None:
        raise UsageError(f"{verb}: unknown verb. Did you mean {near}?")
    raise UsageError(
        f"{verb}: unknown verb; to train: {', '.join(TRAINING)}; trimtab --help lists all"
    )
