"""The study of the preference losses: its grid, its statistics, and the command in seconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from trimtab.config.resolve import recipe_from_kwargs
from trimtab.errors import RunError
from trimtab.losses import PREFERENCE_LOSSES
from trimtab.world import demo_stories, family
from trimtab.world.calibrate import train
from trimtab.world.corpus import kwise_rows, preference_rows, write_jsonl
from trimtab.world.examiner import Point
from trimtab.world.family import RATES, STRENGTHS, SUM, Settings, grid, main, recipe_keys
from trimtab.world.family_report import Found, differs, report


def test_every_loss_has_a_grid_of_recipes_that_differ_in_its_keys_alone(tmp_path: Path) -> None:
    assert set(STRENGTHS) == {*PREFERENCE_LOSSES, SUM}
    folder = tmp_path / "study" / "name" / "0"
    for name in STRENGTHS:
        cells = grid(name)
        assert [rate for rate, _ in cells] == [*RATES, *RATES]
        found: list[Any] = [
            recipe_from_kwargs(
                "dpo", **recipe_keys(name, rate, keys, tmp_path / "demo", folder, Settings(seed=3))
            ).recipe
            for rate, keys in cells
        ]
        settings = [(one.learning_rate, str(one.loss.parameters)) for one in found]
        assert len(set(settings)) == 4, name
        assert {(one.loss.name.replace("*", " "), one.max_steps, one.seed) for one in found} == {
            (name, 64, 3)
        }
        rows = {"ranking": "rankings.jsonl"}.get(found[0].loss.schema_.kind, "pairs.jsonl")
        if "scores" in found[0].loss.schema_.needs:
            rows = "rankings_scored.jsonl"
        assert Path(str(found[0].dataset_name)).name == rows


def found(name: str, gold: list[float]) -> Found:
    point = Point(64, 9.0, gold, gold, gold, [5.0] * len(gold), [(6.0, 3)])
    cell = {"rate": 1e-3, "keys": {"beta": 0.1}, "gold": gold, "cpu_seconds": 9.0, "failed": None}
    return Found(name, [{**cell, "gold": None}, cell], 1, point)


def test_many_comparisons_want_more_than_one_interval_apart() -> None:
    base = [0.5, 0.6, 0.7, 0.8] * 8
    ahead = [value + 0.02 * (number % 3) for number, value in enumerate(base)]
    assert differs(ahead, base, 40) and differs(base, ahead, 40)
    # Mean 0.01, standard error 0.005: clear of 0 alone, and not among forty.
    unsure = [value + (0.036 if number % 2 else -0.016) for number, value in enumerate(base)]
    assert differs(unsure, base, 1)
    assert not differs(unsure, base, 40)
    start = found("sft", [0.4] * 32).point
    assert start is not None
    failed = Found("hinge", [{"rate": 1.0, "keys": {}, "gold": None, "cpu_seconds": 1.0}], 0, None)
    text, record = report(start, [found("dpo", base), failed, found("ipo", ahead)])
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| sft", "| `ipo`", "| `dpo`", "| `hinge`"]
    assert "+0.019 [+0.014, +0.025] *" in rows[2] or "*" in rows[2]
    assert "*" not in rows[3] and "no setting trained to its end" in rows[4]
    assert record["losses"]["hinge"]["point"] is None
    assert record["losses"]["ipo"]["point"]["gold"]["mean"] == pytest.approx(0.669375)


@pytest.mark.slow
def test_the_command_leaves_a_table_and_does_nothing_twice(
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    demo, out = tmp_path / "demo", tmp_path / "out"
    demo.mkdir()
    (demo / "sft").symlink_to(small_model)
    few: dict[str, Any] = {"max_steps": 1, "save_steps": None, "self_check": False}
    train(small_model, preference_rows(8), tmp_path / "reward", **few)
    (demo / "reward").symlink_to(tmp_path / "reward" / "model")
    write_jsonl(demo / "data" / "pairs.jsonl", preference_rows(16))
    write_jsonl(demo / "data" / "rankings.jsonl", kwise_rows(16))
    monkeypatch.setattr(demo_stories, "LONGEST", 8)
    monkeypatch.setattr(family, "RATES", (1e-3,))
    real, calls = family.recipe_keys, []

    def keys(name: str, rate: float, own: Any, *rest: Any) -> dict[str, Any]:
        calls.append(name)
        if (name, own["beta"]) == ("dpo", 0.3):
            raise RunError("the loss ran away")
        return real(name, rate, own, *rest)

    monkeypatch.setattr(family, "recipe_keys", keys)
    monkeypatch.setitem(family.STRENGTHS, "infonca", ({"alpha": 1.0, "beta": 0.1},))
    command = f"family --demo {demo} --output-dir {out} --losses dpo infonca --steps 1"
    command += " --choosing 2 --requests 3 --tellings 1"
    monkeypatch.setattr(sys, "argv", command.split())
    assert main() == 0
    record = json.loads((out / "family.json").read_text())
    good, bad = record["losses"]["dpo"]["cells"]
    assert record["losses"]["dpo"]["best"] == 0 and good["gold"]["mean"] >= 0
    assert bad["gold"] is None and bad["failed"] == "the loss ran away"
    assert record["losses"]["dpo"]["point"]["kl"]["mean"] != 0
    said = capsys.readouterr().out
    assert calls == ["dpo", "dpo", "infonca"]
    assert main() == 0
    assert capsys.readouterr().out == said and calls == ["dpo", "dpo", "infonca"]
    for more, why in ((["--seed", "1"], "holds a study with"), (["--losses", "dop"], "no loss of")):
        monkeypatch.setattr(sys, "argv", [*command.split(), *more])
        assert main() == 2
        assert why in capsys.readouterr().err
