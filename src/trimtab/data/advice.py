"""What to tell a user whose columns do not fit: what was found, what is wanted, what to write."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from trimtab.data.build import REQUIRED, needed
from trimtab.data.rows import KINDS, Kind
from trimtab.errors import DataError

# What others call our columns; used for advice only, never to guess what a column means.
_OTHER_NAMES = {
    "prompt": "question query instruction problem input context post user",
    "completion": "response answer output target solution reply assistant chosen",
    "chosen": "good better preferred accepted winner win best chosen_response y_w",
    "rejected": "bad worse dispreferred loser lose worst rejected_response y_l",
    "text": "content document body story article passage sentence review",
    "messages": "dialogue dialog chat turns conversation conversations",
    "responses": "answers completions candidates outputs generations",
    "ranks": "rank ranking rankings order",
    "scores": "score rewards reward ratings rating correct",
    "label": "labels desirable thumbs_up liked kto_tag is_good good class category sentiment",
}


def not_wanted(
    kinds: Sequence[Kind],
    present: Collection[str],
    accept: Collection[str] | None,
    there: Sequence[str],
    where: str,
) -> DataError:
    """The columns are of no kind (``kinds`` is empty), or of none that the stage accepts."""
    wanted: list[Kind] = [kind for kind in KINDS if accept is None or kind in accept]
    message = f"{where}: columns found: {_shown(there)}; "
    if kinds:
        message += f"these are {kinds[0]} rows, but this stage takes {listed(wanted)} rows"
    else:
        message += "the type of the rows is not known from them"
    needs = "; ".join(f"{kind}: {_needs(kind)}" for kind in wanted)
    return DataError(f"{message} ({needs}){_remedy(wanted, present)}")


def missing(kind: Kind, present: Collection[str], there: Sequence[str], where: str) -> DataError:
    """The columns are not enough for the kind that the user named."""
    return DataError(
        f"{where}: columns found: {_shown(there)}; kind {kind!r} needs {_needs(kind)}"
        + _remedy([kind], present)
    )


def no_column(ours: str, theirs: str, there: Sequence[str], where: str) -> DataError:
    """A renamed column is not in the rows."""
    near = difflib.get_close_matches(theirs, there, n=1)
    hint = f"; did you mean --columns {ours}={near[0]}?" if near else ""
    return DataError(
        f"{where}: no column {theirs!r} (--columns {ours}={theirs}); "
        f"columns found: {_shown(there)}{hint}"
    )


def listed(words: Collection[str]) -> str:
    """``a, b or c``."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _remedy(kinds: Collection[Kind], present: Collection[str]) -> str:
    """``; write --columns prompt=question`` where renaming gives one of the kinds."""
    lacking: list[str] | None = None  # of the kind that lacks least
    for kind, needs in REQUIRED:
        if kind not in kinds:
            continue
        renames: dict[str, str] = {}
        for name in needs:
            if name not in present:
                taken = {*needs, *renames.values()}
                found = _similar(name, sorted(set(present) - taken))
                if found is None:
                    break
                renames[name] = found
        else:
            if not renames:  # such as completions with a label, for a stage that wants none
                return f"; to read them as such, give the source kind: {kind}"
            return "; write --columns " + ",".join(f"{a}={b}" for a, b in renames.items())
        lacks = [name for name in needs if name not in present]
        if lacking is None or len(lacks) < len(lacking):
            lacking = lacks
    return f"; name yours: --columns {lacking[0]}=YOUR_COLUMN" if lacking else ""


def _similar(name: str, columns: Sequence[str]) -> str | None:
    lower = {column.lower(): column for column in columns}
    for other in (name, *_OTHER_NAMES.get(name, "").split()):
        if other in lower:
            return lower[other]
    near = difflib.get_close_matches(name, list(lower), n=1, cutoff=0.75)
    return lower[near[0]] if near else None


def _needs(kind: Kind) -> str:
    columns = ", ".join(needed(kind))
    return f"{columns} or scores" if kind == "ranked" else columns


def _shown(columns: Sequence[str]) -> str:
    names = [" ".join(column.split())[:40] or repr(column) for column in columns]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(names[:20]) or "none") + more
