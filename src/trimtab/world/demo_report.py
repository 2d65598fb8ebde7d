"""The demo's result: gold reward, win rate, KL and length of every model, with intervals.

``measure`` turns the stories of one ladder into a number a request; ``summarise`` puts the ladders
of several seeds together; ``table`` and ``before_and_after`` are what a person reads.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.world.gold import CEILING, WEIGHTS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Cells = NDArray[np.float64]

Stories = Sequence[Mapping[str, Any]]  # lines of demo_stories.read_stories

REFERENCE = "sft"
COLUMNS = {  # measure -> heading, decimals
    "gold_reward": ("gold reward", 3),
    "win_rate": ("win rate against sft", 3),
    "kl": ("KL to sft, nats", 1),
    "length": ("length, tokens", 1),
}
KL_ESTIMATOR = (
    "k1: mean over the model's own stories of log pi(story|request) - log pi_sft(story|request), "
    "summed over tokens, in nats; an estimate near 0 may be negative"
)
_WIDTH = 96
_ENDS = ("mean", "low", "high")


def win_rate(mine: Cells, theirs: Cells) -> Cells:
    """[P] share of pairs of one of mine and one of theirs, both [P, S], that mine wins.

    Both answer the same request; a tie counts one half.
    """
    gap = mine[:, :, None] - theirs[:, None, :]
    return ((gap > 0) + 0.5 * (gap == 0)).mean(axis=(1, 2))


def measure(told: Mapping[str, Stories], tellings: int) -> dict[str, dict[str, Cells]]:
    """For every model, every measure and every part of the gold reward: one mean a request [P].

    ``told`` has the same requests in the same order for every model, ``tellings`` lines for each.
    """
    import numpy as np

    def column(stories: Stories, name: str) -> Cells:
        return np.array([line[name] for line in stories], dtype=np.float64).reshape(-1, tellings)

    theirs = column(told[REFERENCE], "gold")
    return {
        model: {
            "gold_reward": column(stories, "gold").mean(axis=1),
            "win_rate": win_rate(column(stories, "gold"), theirs),
            "kl": column(stories, "log_ratio").mean(axis=1),
            "length": column(stories, "tokens").mean(axis=1),
            "learned_reward": column(stories, "learned").mean(axis=1),
            **{part: column(stories, part).mean(axis=1) for part in WEIGHTS},
        }
        for model, stories in told.items()
    }


def summarise(ladders: Sequence[Mapping[str, Mapping[str, Cells]]]) -> dict[str, Any]:
    """Mean and 95 % interval of each measure of each model; one ladder a training seed."""
    import numpy as np

    from trimtab.evaluation.statistics import crossed_mean

    models: dict[str, Any] = {}
    for model, measures in ladders[0].items():
        models[model] = {}
        for name in measures:
            found = crossed_mean(np.stack([ladder[model][name] for ladder in ladders]))
            models[model][name] = {"mean": found.mean, "low": found.low, "high": found.high}
    return models


def table(models: Mapping[str, Any], demonstrations: float) -> list[str]:
    """The result, aligned; below it the ceiling, the demonstrations, and the learned reward."""
    cells = {
        model: [
            _cell(model, name, found[name], decimals) for name, (_, decimals) in COLUMNS.items()
        ]
        for model, found in models.items()
    }
    rows = [["", *(heading for heading, _ in COLUMNS.values())]]
    rows += [[model, *parts] for model, parts in cells.items()]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    lines.append(
        f"The best a story can score is {CEILING:.0f}; sft's demonstrations score "
        f"{demonstrations:.3f}."
    )
    learned = ", ".join(
        f"{model} {found['learned_reward']['mean']:.2f}" for model, found in models.items()
    )
    lines += textwrap.wrap(f"The reward model, which judged ppo, gives {learned}.", _WIDTH)
    return lines


def _cell(model: str, name: str, found: Mapping[str, float], decimals: int) -> str:
    if model == REFERENCE and name in ("win_rate", "kl"):
        return "-"
    # Rounded first, and 0 added: an estimate just below nothing is 0.0 and not -0.0.
    mean, low, high = (f"{round(found[k], decimals) + 0.0:.{decimals}f}" for k in _ENDS)
    return f"{mean} [{low}, {high}]"


def before_and_after(
    told: Mapping[str, Stories], models: Sequence[str], tellings: int, requests: int = 3
) -> list[str]:
    """The first requests, with the first story of each of the models."""
    lines: list[str] = []
    for place in range(0, requests * tellings, tellings):
        lines += ["", *_wrapped(told[models[0]][place]["request"].strip(), "> ")]
        for model in models:
            line = told[model][place]
            lines += _wrapped(f"{line['gold']:.2f}  {line['story'].strip()}", f"{model:<5} ")
    return lines


def _wrapped(text: str, label: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=label, subsequent_indent=" " * len(label))
