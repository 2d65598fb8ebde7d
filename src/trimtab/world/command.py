"""What the programs of this package share: compare, reward_study, over_optimise, calibrate."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping

from trimtab.errors import TrimtabError, UsageError


def exit_code(work: Callable[[], None]) -> int:
    """Do ``work``: 0, a TrimtabError's own code with its one line on stderr, 130 after Ctrl-C."""
    try:
        work()
    except TrimtabError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def require_positive(options: Mapping[str, float], zero: Collection[str] = ()) -> None:
    """Raise a UsageError for an option that is not above 0; those in ``zero`` may be 0."""
    for name, value in options.items():
        if value < 0 or (value == 0 and name not in zero):
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be above 0")
