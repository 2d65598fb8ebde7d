"""The command line: verbs, their help and exit codes; everything heavy is imported by a verb."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(tokens: Sequence[str] | None = None) -> int:
    """Run ``trimtab TOKENS`` (the process's arguments by default) and return the exit code."""
    arguments = list(sys.argv[1:] if tokens is None else tokens)
    # The parser takes a fifth of a verb's help, and has no part in it.
    if len(arguments) == 2 and arguments[1] in ("--help", "-h"):
        from trimtab.cli.texts import TRAINING

        if arguments[0] in TRAINING:
            from trimtab.cli.verb_help import print_verb_help

            try:
                print_verb_help(arguments[0])
                sys.stdout.flush()
            except BrokenPipeError:  # the reader has left (| head)
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1
            return 0
    from trimtab.cli.app import main as run

    return run(arguments)
