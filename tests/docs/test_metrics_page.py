"""docs/metrics.md is made of the entries of ``trimtab explain``."""

from __future__ import annotations

from tests.docs.scripts_of import page, script

from trimtab.catalogue.metrics import METRICS


def test_the_page_of_metrics_is_up_to_date() -> None:
    made = script("metrics_page").page()
    assert made == page("metrics.md")
    for one in METRICS:
        assert made.count(f"\n| `{one.name}` |") == 1, one.name
