"""What the programs of this package share: compare_data, family, reward_study, over_optimise."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError, UsageError
from trimtab.training.files import write_atomic


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


def begin(
    what: str, demo: Path, folder: Path, settings: Mapping[str, Any], *, models: Collection[str]
) -> None:
    """Make or enter the folder of a program, which holds ``what`` (a study, say) of one setting.

    Raises UsageError where it holds one of other settings, or the demo lacks one of ``models``.
    """
    path, mine = folder / "settings.json", {"demo": str(demo), **settings}
    if path.exists() and (old := json.loads(path.read_text(encoding="utf-8"))) != mine:
        raise UsageError(
            f"output_dir={folder}: holds a {what} with {old}; give the same options, or another "
            "--output-dir"
        )
    for name in models:
        if not (demo / name / "config.json").exists():
            raise UsageError(
                f"demo={demo}: has no model {name}; run trimtab demo, or name its folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(mine, indent=1) + "\n").encode())
