"""An inspection for people: readable in colour, and as well without.

Token by token, every segment is cut into runs, and a run's line starts with ``+`` when its tokens
are trained and with ``.`` when they are not; a middle dot stands between tokens.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trimtab.data.inspect import Inspection, Lengths, pieces, segment_names
from trimtab.data.tokenise_report import TokeniseReport

if TYPE_CHECKING:
    from trimtab.data.rows import Example
    from trimtab.data.trees import Branch, TokenTree

_RUN = 48  # tokens of a run that are shown; of longer ones both ends
_ROW = 400  # characters of a row that are shown without a model


def show(inspection: Inspection, console: Console | None = None) -> None:
    """Print ``inspection``."""
    out = console or Console(highlight=False)
    out.print(Text(f"{inspection.path}: {_count(inspection.rows, inspection.kind + ' row')}"))
    for notice in inspection.notices:
        out.print(Text(f"note: {notice}", "yellow"))
    if inspection.bad:
        total = sum(inspection.bad.values())
        out.print(Text(f"bad rows: {total} of {inspection.rows}", "red"))
        for reason, count in inspection.bad.items():
            out.print(Text(f"  {count:>7}  {reason}"))
        for line in inspection.bad_rows:
            out.print(Text(f"  {line}"))
    if inspection.tokenised is not None:
        for notice in inspection.tokenised.notices:
            out.print(Text(f"note: {notice}", "yellow"))
    out.print(_lengths(inspection.lengths, inspection.unit))
    if inspection.tokenised is None:
        out.print("give --model to see tokens, masks and truncation")
        for example in inspection.examples:
            _show_row(example, out)
        return
    out.print(_facts(inspection, inspection.tokenised))
    for tree in inspection.trees:
        _show_tree(tree, inspection, out)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _lengths(lengths: dict[str, Lengths], unit: str) -> Table:
    table = Table("length in " + unit, "p50", "p95", "max", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, quantiles in lengths.items():
        table.add_row(name, *(f"{value:,}" for value in quantiles))
    return table


def _facts(inspection: Inspection, report: TokeniseReport) -> Table:
    table = Table.grid(padding=(0, 2))

    def fact(name: str, value: str, style: str = "") -> None:
        table.add_row(Text(name), Text(value, style))

    fact("model", str(inspection.model))
    fact("trees", f"{report.trees:,} from {report.rows - report.rows_dropped:,} rows")
    fact("trained", f"{report.trained:,} of {report.tokens:,} tokens "
         f"({report.supervised_share:.1%})", "" if report.trained else "red")  # fmt: skip
    if report.branches:
        stops = " ".join(inspection.stop_tokens) or "none"
        ended = f"{report.branches_stopped:,} of {report.branches:,} ({report.stop_share:.1%})"
        style = "" if report.branches_stopped else "red"
        fact("end in a stop token", f"{ended}; stop tokens: {stops}", style)
    fact("leading BOS", str(report.leading_bos), "" if report.leading_bos <= 1 else "red")
    if report.mask_sources:
        found = ", ".join(f"{name} {count:,}" for name, count in report.mask_sources.items())
        fact("masks found by", found)
    elif inspection.kind != "text" and inspection.tokenizer.chat_template:
        fact("chat template", "not used: the rows are plain text; a chat model is asked by "
             'messages, {"role": "user", "content": ...}', "yellow")  # fmt: skip
    if inspection.max_length is None:
        fact("truncated", "nothing (no --max-length)")
    else:
        fact("truncated", f"{_count(report.prompts_cut, 'prompt')}, "
             f"{_count(report.responses_cut, 'response')} at max_length {inspection.max_length:,}",
             "yellow" if report.prompts_cut + report.responses_cut else "")  # fmt: skip
    if report.unscored:
        fact("unscored", f"{_count(report.unscored, 'token')} with nothing before them")
    if report.boundary_splits:
        fact("cut in token space", _count(report.boundary_splits, "answer"))
    if report.control_rows:
        fact("control tokens in text", _count(report.control_rows, "row"), "yellow")
    fact("dropped", _count(report.rows_dropped, "row"), "yellow" if report.rows_dropped else "")
    for reason, dropped in sorted(report.dropped.items(), key=lambda item: -item[1].count):
        fact("", f"{dropped.count:,}  {reason}")
        for line in dropped.first:
            fact("", f"   {line}")
    return table


def _show_tree(tree: TokenTree, inspection: Inspection, out: Console) -> None:
    part = f", part {tree.origin.part}" if tree.origin.part else ""
    title = f"{tree.origin.source}:{tree.origin.row}{part}: {_count(tree.token_count, 'token')}, "
    title += f"{tree.trained_count:,} trained"
    if tree.weight != 1.0:
        title += f", weight {tree.weight:g}"
    out.print()
    out.print(Text(title, "bold"))
    names = segment_names(tree)
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, justify="right")
    for name, branch in zip(["prompt", *names], [tree.trunk, *tree.branches], strict=True):
        _add_segment(grid, name, branch, inspection)
    out.print(grid)
    if tree.comparisons:
        unique = len(set(names)) == len(names)
        called = names if unique else [f"branch {i + 1}" for i in range(len(names))]
        pairs = [
            f"{called[c.winner]} > {called[c.loser]}" + (f" by {c.margin:g}" if c.margin else "")
            for c in tree.comparisons
        ]
        out.print(Text("compared: " + ", ".join(pairs), "dim"))
    if tree.scores:
        out.print(Text("scores: " + ", ".join(f"{score:g}" for score in tree.scores), "dim"))


def _add_segment(grid: Table, name: str, branch: Branch, inspection: Inspection) -> None:
    texts = [_visible(text) for text in pieces(branch, inspection.tokenizer)]
    start = 0
    for trained, group in itertools.groupby(branch.trained):
        length = len(list(group))
        run = texts[start : start + length]
        start += length
        if length > _RUN:
            half = _RUN // 2
            run = [*run[:half], f"[... {length - _RUN} more ...]", *run[-half:]]
        styles = ("bold green", "green") if trained else ("dim", "")
        line = Text()
        for index, text in enumerate(run):
            if index:
                line.append("·", "dim")
            line.append(text, styles[index % 2])
        grid.add_row(Text(name), Text("+" if trained else "."), Text(str(length)), line)
        name = ""


def _show_row(example: Example, out: Console) -> None:
    out.print()
    out.print(Text(f"{example.origin.source}:{example.origin.row}", "bold"))
    for name, value in vars(example).items():
        if name in ("origin", "extras", "weight", "tools") or value is None:
            continue
        line = f"{name}: {json.dumps(value, ensure_ascii=False, default=str)}"
        out.print(Text(line[:_ROW] + ("..." if len(line) > _ROW else "")))


def _visible(text: str) -> str:
    """White space that a terminal would act on, spelt out."""
    shown = text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
