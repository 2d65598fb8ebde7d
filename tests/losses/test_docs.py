"""docs/losses.md says what the code does: every loss, its defaults, its golden values."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from trimtab.losses import PREFERENCE_LOSSES, bind, describe

from .support import close, golden_case

DOCS = Path(__file__).parents[2] / "docs" / "losses.md"


def table(header: str) -> dict[str, list[str]]:
    """Rows of the table with this header, by the loss named in their first cell."""
    lines = DOCS.read_text("utf-8").splitlines()
    start = lines.index(header) + 2
    rows: dict[str, list[str]] = {}
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[cells[0].split("`")[1]] = cells[1:]
    return rows


def keys(cell: str) -> dict[str, Any]:
    """``beta=0.1, gamma=1.0`` as a dictionary."""
    return {k: ast.literal_eval(v) for k, v in (part.split("=") for part in cell.split(", "))}


def glance() -> dict[str, list[str]]:
    return table(
        "| Loss | Compares | Needs | Divisor | Hyper-parameters and defaults | At π = π₀ |"
    )


def test_every_loss_has_a_row_and_a_section() -> None:
    assert list(glance()) == list(PREFERENCE_LOSSES)
    text = DOCS.read_text("utf-8")
    assert all(f"\n## `{name}`\n" in text for name in PREFERENCE_LOSSES)


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_declarations(name: str) -> None:
    compares, needs, _, defaults, _ = glance()[name]
    spec = describe(name)
    assert compares == spec.kind
    assert set(filter(None, needs.split(", "))) == spec.needs - {"policy"}
    assert keys(defaults) == spec.hyperparameters


def test_golden_values() -> None:
    rows = table("| Loss | Setting | A | B | C |")
    assert len(rows) >= 4
    for name, (setting, *values) in rows.items():
        loss, needs = bind(name, keys(setting)), describe(name).needs
        for case, shown in zip("ABC", values, strict=True):
            policy, reference, _ = golden_case(case)
            inputs = {"policy": policy, "reference": reference}
            losses = loss(**{k: v for k, v in inputs.items() if k in needs}).losses.detach()
            assert close(losses, [float(shown)], 6e-9), (name, case)
            assert not close(losses, [float(shown) + 1e-6], 6e-9)
