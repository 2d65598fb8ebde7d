"""The demo's frontier: what every aligned model had gained, and how far it had gone, on its way.

Aligned stages keep ``POINTS`` checkpoints. Each tells stories on the first of the held-out requests
of the result, whose whole set the model at the end is asked; gold reward over KL to sft is drawn as
``frontier.svg`` and in the report (``report/demo_charts.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.world.demo_report import Stories

POINTS = 3  # of a run, its end included
_STEP = "-step-"
SHARE = 3  # requests of the result, by this many, that a checkpoint on the way is asked
_COLUMNS = {"gold": "gold", "kl": "log_ratio", "learned": "learned"}


def interval_of(steps: int) -> int:
    """Steps between the checkpoints of a run."""
    return max(1, -(-steps // POINTS))


def on_the_way(folder: Path, name: str) -> dict[int, Path]:
    """The checkpoints of an aligned run before its end, by their steps."""
    found = {
        int(path.name.rpartition("-")[2]): path for path in (folder / name).glob("checkpoint-*")
    }
    return {step: found[step] for step in sorted(found)[:-1]}


def waypoint(name: str, step: int) -> str:
    """What the stories of a checkpoint go by."""
    return f"{name}{_STEP}{step}"


def place_of(name: str) -> tuple[str, int] | None:
    """Method and step of what ``waypoint`` named; None for a model at its end."""
    method, found, step = name.rpartition(_STEP)
    return (method, int(step)) if found else None


def frontier(ladders: Sequence[Mapping[str, Stories]], tellings: int) -> list[dict[str, Any]]:
    """For every method its points on the way and at its end, over requests and ladders."""
    steps: dict[str, list[int]] = {}
    for name in ladders[0]:
        if (place := place_of(name)) is not None:
            steps.setdefault(place[0], []).append(place[1])
    return [
        {
            "method": method,
            "points": [
                {
                    "step": step,  # None at its end
                    **{
                        column: _interval(
                            [
                                told[method if step is None else waypoint(method, step)]
                                for told in ladders
                            ],
                            field,
                            tellings,
                        )
                        for column, field in _COLUMNS.items()
                    },
                }
                for step in (*sorted(own), None)
            ],
        }
        for method, own in steps.items()
    ]


def _interval(told: Sequence[Stories], field: str, tellings: int) -> dict[str, float]:
    import numpy as np

    from trimtab.evaluation.statistics import crossed_mean

    cells = np.array([[line[field] for line in one] for one in told], dtype=np.float64)
    found = crossed_mean(cells.reshape(len(told), -1, tellings).mean(axis=2))
    return {"mean": found.mean, "low": found.low, "high": found.high}
