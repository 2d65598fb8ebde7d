"""report.html: one file for a training run, a demo or a comparison, which needs no network.

The folder is recognised by its files; ``*_page.py`` turn it into a ``Page`` of plain text and
charts, and the templates beside this file turn that into HTML. There is no script in it, and its
content policy allows none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trimtab.errors import UsageError
from trimtab.report import svg
from trimtab.report.blocks import Block, Fold, Page, Prose
from trimtab.report.card_page import card_page, is_card
from trimtab.report.comparison_page import comparison_page, is_comparison
from trimtab.report.demo_page import demo_page, is_demo
from trimtab.report.run import is_run, load_run
from trimtab.report.run_page import run_page
from trimtab.training.files import write_atomic

NAME = "report.html"
MOST_BYTES = 500_000
_TEMPLATES = Path(__file__).parent / "templates"


def write_report(folder: Path | str, output: Path | str | None = None) -> Path:
    """Write the report of a run, demo or comparison; returns its path.

    Args:
        folder: A run's folder, a demo's, or one with a comparison.json.
        output: The file to write; None: ``folder/report.html``.

    Raises:
        UsageError: in one line, where the folder is none of these, or a file of it is broken.
    """
    folder = Path(folder)
    target = folder / NAME if output is None else Path(output)
    text = render(page_of(folder))
    try:
        write_atomic(target, text.encode())
    except OSError as error:
        raise UsageError(
            f"{target}: cannot be written ({error.strerror or error}); give another --output"
        ) from None
    return target


def report_line(folder: Path) -> str:
    """Write the report of what has just been finished; a line that says where it is.

    Or why there is none: what was finished is whole without it, and does not fail for it,
    whatever the reason.
    """
    try:
        return f"report: {write_report(folder)}"
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"{NAME} could not be written ({reason}); trimtab report {folder} tries again"


def page_of(folder: Path) -> Page:
    """The report of a folder, by what it holds."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: is no folder; give that of a run, a demo or a comparison")
    if is_comparison(folder):
        return comparison_page(folder)
    if is_demo(folder):
        return demo_page(folder)
    if is_run(folder):
        return run_page(load_run(folder))
    if is_card(folder):
        return card_page(folder)
    inside = next((path for path in sorted(folder.iterdir()) if is_run(path)), None)
    hint = "" if inside is None else f"; did you mean a run in it, {inside}?"
    raise UsageError(
        f"{folder}: holds no run, demo or comparison of trimtab's (run.json, summary.json, "
        f"comparison.json){hint}"
    )


def render(page: Page) -> str:
    """A page as HTML; without what is folded where it would be larger than MOST_BYTES."""
    text = _template()(page=page, chart_style=svg.STYLE)
    if len(text.encode()) > MOST_BYTES:
        sections = [section._replace(blocks=_unfolded(section.blocks)) for section in page.sections]
        text = _template()(page=page._replace(sections=sections), chart_style=svg.STYLE)
    return text


def _unfolded(blocks: Sequence[Block]) -> list[Block]:
    return [
        Prose(f"{one.summary}: left out, to keep this page small; the folder has it.")
        if isinstance(one, Fold) and not one.open
        else one
        for one in blocks
    ]


@functools.cache
def _template() -> Callable[..., str]:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment: Any = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        finalize=lambda value: svg.legal(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render
