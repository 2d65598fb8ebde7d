"""Every number that a run logs: what it is, its formula, its unit, what is healthy, whose it is.

Names are those of metrics.jsonl; held-out ones have ``eval_`` before them and, where it is known,
their 95 % interval beside them as ``_ci95``. ``<...>`` stands for any name without a slash. Tests
hold the table against what whole runs write, and against the source: no name is missing, none is
left over.
"""

from __future__ import annotations

from trimtab.catalogue.metric import Metric
from trimtab.catalogue.metrics_of_rollouts import OF_ROLLOUTS
from trimtab.catalogue.metrics_of_rows import OF_ROWS

METRICS: tuple[Metric, ...] = (*OF_ROWS, *OF_ROLLOUTS)


def metric_of(name: str) -> Metric | None:
    """The row of a logged name, held out or with its interval, too."""
    plain = name.removeprefix("eval_").removesuffix("_before").removesuffix("_ci95")
    exact = next((one for one in METRICS if one.name == plain), None)
    return exact or next((one for one in METRICS if one.matches(plain)), None)
