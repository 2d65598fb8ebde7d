"""The report of one training run."""

from __future__ import annotations

from trimtab.report import parts
from trimtab.report.blocks import Block, Figures, Fold, Page, Prose, Section
from trimtab.report.card_page import card_blocks
from trimtab.report.curves import curves_of, second_curves
from trimtab.report.run import Run, chain
from trimtab.report.samples import before_and_after, rollouts
from trimtab.report.verdict import more, verdict
from trimtab.training.model_card import METHODS


def run_page(run: Run) -> Page:
    """Everything that the folder can tell of a run."""
    method = METHODS[run.verb].title if run.verb in METHODS else run.verb
    sections = [
        parts.ladder(chain(run)),
        curves(run),
        Section("samples", "Before and after", before_and_after(run)),
        Section("rollouts", "Rollouts: reward, length, watched rewards", rollouts(run)),
        Section("calibration", "Calibration of the reward model", calibration(run)),
        Section("card", "Report card", card_blocks(run.path)),
        Section("tokens", "A training row as the model saw it", parts.tokenised(run)),
        parts.warnings([run]),
        Section("recipe", "Recipe", parts.recipe(run.recipe)),
        Section("machine", "Versions, seed, hardware, time", [parts.machine(run)]),
        Section("commands", "Run it again", [parts.commands(run)]),
    ]
    return Page(
        title=run.name if run.name == run.verb else f"{run.name}: {run.verb}",
        subject=f"A run of trimtab {run.verb}: {method}",
        verdict=verdict(run),
        more=more(run),
        sections=[section for section in sections if section.blocks],
    )


def curves(run: Run) -> Section:
    """The first charts open, the others and all numbers folded."""
    found, second = curves_of(run), second_curves(run)
    blocks: list[Block] = [Figures(found)] if found else [Prose(_TOO_FEW)]
    if second:
        blocks.append(Fold("Gradient and learning rate", [Figures(second)]))
    if (table := parts.numbers(run)) is not None:
        blocks.append(Fold("Every number of the log", [table]))
    return Section("curves", "Curves", blocks)


_TOO_FEW = "The log has too few points to draw a curve (logging_steps, eval_steps)."


def calibration(run: Run) -> list[Block]:
    """How sure a reward model is, and how often right."""
    drawn = parts.calibration(run)
    return [] if drawn is None else [Figures([drawn])]
