"""What to tell a user whose columns do not fit: what was found, what is wanted, what to write."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from trimtab.data.build import FIELDS, REQUIRED, needed
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


class Found(NamedTuple):
    """What a source has.

    present  names after its renames and conversions
    there    columns as they stand in it
    columns  renames that the user gave, ours -> theirs
    where    ``file:line`` of its first row
    reads    whether most of its first rows can be read as a kind with such renames
    """

    present: Collection[str]
    there: Sequence[str]
    columns: Mapping[str, str]
    where: str
    reads: Callable[[Kind, Mapping[str, str]], bool]


def not_wanted(kinds: Sequence[Kind], accept: Collection[str] | None, found: Found) -> DataError:
    """The columns are of no kind (``kinds`` is empty), or of none that the stage accepts."""
    wanted: list[Kind] = [kind for kind in KINDS if accept is None or kind in accept]
    message = f"{found.where}: columns found: {_shown(found.there)}; "
    if kinds:
        message += f"these are {kinds[0]} rows, but this stage takes {listed(wanted)} rows"
    else:
        message += "the type of the rows is not known from them"
    needs = "; ".join(f"{kind}: {_needs(kind)}" for kind in wanted)
    return DataError(f"{message} ({needs}){_remedy(wanted, found)}")


def missing(kind: Kind, found: Found) -> DataError:
    """The columns are not enough for the kind that the user named."""
    return DataError(
        f"{found.where}: columns found: {_shown(found.there)}; kind {kind!r} needs {_needs(kind)}"
        + _remedy([kind], found)
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


def _remedy(kinds: Collection[Kind], found: Found) -> str:
    """``; write --columns prompt=question,...``: whole, and only where rows can be read with it."""
    partial: tuple[Kind, list[str], dict[str, str]] | None = None  # of what lacks least
    for kind, needs in REQUIRED:
        if kind not in kinds:
            continue
        lacks, columns = _renames(kind, needs, found)
        if not lacks and found.reads(kind, columns):
            if columns == found.columns:  # such as labelled completions, for a stage without labels
                return f"; to read them as such, give the source kind: {kind}"
            return f"; write --columns {_written(kind, columns)}"
        if not lacks and kind == "preference" and "prompt" not in {*columns, *found.present}:
            lacks = ["prompt"]  # the texts have none in common that could be it
        if lacks and (partial is None or len(lacks) < len(partial[1])):
            partial = kind, lacks, columns
    if partial is None:
        return ""
    kind, lacks, columns = partial
    return (
        f"; name yours: --columns {_written(kind, columns | dict.fromkeys(lacks, 'YOUR_COLUMN'))}"
    )


def _renames(kind: Kind, needs: Sequence[str], found: Found) -> tuple[list[str], dict[str, str]]:
    """The required names that nothing like them is there for, and all renames, the user's too."""
    columns = dict(found.columns)
    free = [name for name in found.present if name in found.there and name not in columns]
    lacks: list[str] = []
    # Of pairs the prompt may be in the texts, but a column that could be it is it.
    for name in dict.fromkeys(("prompt", *needs) if kind == "preference" else needs):
        if name in found.present:
            continue
        near = _similar(name, sorted({*free} - {*needs, *columns.values()}))
        if near is not None:
            columns[name] = near
        elif name in needs:
            lacks.append(name)
    return lacks, columns


def _written(kind: Kind, columns: Mapping[str, str]) -> str:
    """``prompt=question,chosen=good``: first the columns of the kind, in their order."""
    order = [*FIELDS[kind], *columns]
    return ",".join(f"{name}={columns[name]}" for name in sorted(columns, key=order.index))


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
