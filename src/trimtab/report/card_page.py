"""Report cards of ``trimtab evaluate``: a page of their own, or a section of a run's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.errors import UsageError
from trimtab.report import read
from trimtab.report.blocks import Block, Commands, Facts, Figure, Figures, Page, Prose, Section
from trimtab.report.card_charts import accuracy_chart, best_chart, reliability_chart
from trimtab.report.svg import bare
from trimtab.report.words import interval

NAME = "report_card.json"


def is_card(folder: Path) -> bool:
    """Whether a folder holds a report card."""
    return (folder / NAME).is_file()


def cards_in(folder: Path) -> list[Path]:
    """Folders of the report cards in a run's folder: itself, and those directly in it."""
    return [one for one in (folder, *sorted(folder.iterdir())) if one.is_dir() and is_card(one)]


def card_page(folder: Path) -> Page:
    """The page of a report card."""
    path = folder / NAME
    card = read.json_object(path)
    sentences = _sentences(card, path)
    sections = [
        Section("charts", "In pictures", _drawn(card, path)),
        Section("facts", "What was read", [_facts(card)]),
        Section("files", "All numbers", [Commands(_FILES)]),
    ]
    return Page(
        title=f"Report card: {_of(card, 'model', 'name')}",
        subject=f"trimtab evaluate on {card.get('dataset', 'held-out rows')}",
        verdict=sentences[0],
        more=sentences[1:],
        sections=[section for section in sections if section.blocks],
    )


def card_blocks(folder: Path) -> list[Block]:
    """What the report of a run says of the cards in its folder."""
    blocks: list[Block] = []
    for place in cards_in(folder):
        card = read.json_object(place / NAME)
        on = card.get("dataset", "held-out rows")
        blocks.append(Prose(f"On {on}: {' '.join(_sentences(card, place / NAME))}"))
        blocks += _drawn(card, place / NAME)
    return blocks


_FILES = [("report_card.md, report_card.json, scores.jsonl", "in the same folder")]


def _sentences(card: Mapping[str, Any], path: Path) -> list[str]:
    found = card.get("verdict")
    if not isinstance(found, list) or not found:
        raise UsageError(f"{path}: has no verdict: it is no report card of trimtab evaluate's")
    return [str(one) for one in found]


def _of(card: Mapping[str, Any], *keys: str) -> str:
    found: Any = card
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return "not known" if found is None else str(found)


def _drawn(card: Mapping[str, Any], path: Path) -> list[Block]:
    figures: list[Figure] = []
    try:
        for name, scoring in (card.get("scorings") or {}).items():
            figures.append(Figure(bare(accuracy_chart(name, scoring)), _ACCURACY))
            if name == "reward":  # log-probabilities claim no such thing
                calibration = scoring["calibration"]
                slope = calibration["slope"]
                said = "" if slope is None else _SLOPE.format(
                    interval(slope["value"], slope["low"], slope["high"], 2)
                )  # fmt: skip
                chart = reliability_chart(name, calibration)
                figures.append(Figure(bare(chart), f"{_RELIABILITY}{said}"))
            best = scoring.get("best_of_n")
            if best is not None and len(best["curve"]) > 1:
                figures.append(Figure(bare(best_chart(name, best, card)), _BEST))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise UsageError(
            f"{path}: is not a report card of this version ({type(error).__name__}: {error}); "
            "trimtab evaluate writes it again"
        ) from None
    return [Figures(figures)] if figures else []


_ACCURACY = (
    "A group is better than chance where its whole interval lies right of the line. A model that "
    "merely likes length is right where the longer answer was preferred, and wrong elsewhere."
)
_RELIABILITY = "Points on the line: what it calls 70 % likely is so in 70 % of comparisons."
_SLOPE = " The best factor of its scores is {}; below 1 it is too sure."
_BEST = "Falling again with more answers to choose from is over-optimisation."


def _facts(card: Mapping[str, Any]) -> Block:
    keys = [
        ("model", ("model", "name")),
        ("its parameters", ("model", "parameters")),
        ("rows", ("counts", "rows")),
        ("comparisons", ("counts", "comparisons")),
        ("prompts", ("counts", "prompts")),
        ("seed of the intervals", ("seed",)),
        ("trimtab", ("trimtab",)),
    ]
    found = [(title, _of(card, *path)) for title, path in keys]
    return Facts([(title, value) for title, value in found if value != "not known"])
