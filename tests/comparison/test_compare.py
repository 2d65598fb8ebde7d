"""``trimtab compare`` on a tiny model: what it writes, what it keeps, what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults.crash import needs_fork, quiet_fork

from trimtab.cli import main
from trimtab.comparison import work
from trimtab.comparison.plan import make_plan
from trimtab.comparison.recipe import read_recipe
from trimtab.config.compare_recipe import CompareRecipe
from trimtab.training.loop import Loop

CONTRACT = {
    *("kind", "version", "name", "command", "seconds", "environment", "recipe", "budget", "judge"),
    *("proxy", "seeds", "prompts", "base", "points", "frontier", "chosen", "pairs", "correction"),
    *("samples", "verdict", "kl_estimator"),
}
POINT = {
    *("method", "settings", "label", "seed", "step", "final", "run", "gold", "proxy", "kl"),
    *("length", "end_rate", "text_loss", "seconds", "tokens"),
}


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every examination, less the seconds that it took."""
    found: dict[str, str] = {}
    for path in sorted((folder / "examinations").iterdir()):
        record = json.loads(path.read_text())
        record.get("spent", {}).pop("seconds", None)
        found[path.name] = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    return found


def numbers(folder: Path) -> dict[str, Any]:
    """comparison.json without times, places and the machine."""
    whole = json.loads((folder / "comparison.json").read_text())
    for name in ("seconds", "command", "environment", "recipe"):
        del whole[name]
    for one in [*whole["points"], *whole["chosen"]]:
        del one["seconds"]
    return whole


def win_rates_are_those_of(pairs: list[dict[str, Any]], page: str) -> None:
    """Every rate of comparison.md with its interval, both ways round; bold where they differ."""
    plain, controlled = page.partition("## Win rates")[2].partition("Length-controlled")[::2]
    for text, name in ((plain, "win_rate"), (controlled.partition("## ")[0], "length_controlled")):
        head, _, *lines = [
            [cell.strip() for cell in line.split("|")[1:-1]]
            for line in text.splitlines()
            if line.startswith("|")
        ]
        table = {
            (one[0], other): cell for one in lines for other, cell in zip(head, one, strict=True)
        }
        assert len(head) == len(lines) + 1 == 5
        for pair in pairs:
            mean, low, high = (pair[name][part] for part in ("mean", "low", "high"))
            mark = "**" if name == "win_rate" and pair["differs"] else ""
            cell = table[pair["a"], pair["b"]]
            assert cell == f"{mark}{mean:.2f} [{low:.2f}, {high:.2f}]{mark}"
            turned = table[pair["b"], pair["a"]].strip("*")
            assert turned == f"{1 - mean:.2f} [{1 - high:.2f}, {1 - low:.2f}]"


def test_the_whole(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All files, the contract, and one method added at the cost of that method alone."""
    assert main(["compare", str(recipe)]) == 0
    out = tmp_path / "out"
    whole = json.loads((out / "comparison.json").read_text())
    assert whole.keys() >= CONTRACT
    assert all(point.keys() >= POINT for point in whole["points"])
    page = (out / "comparison.md").read_text()
    assert page.startswith("# small\n")
    win_rates_are_those_of(whole["pairs"], page)
    for chart in ("frontier.svg", "gold-against-proxy.svg"):
        assert (out / chart).read_text().startswith("<svg")
    assert "dpo" in (out / "report.html").read_text()
    # dpo: two settings, grpo: one, after 1 and 2 steps; two n.
    assert len(whole["points"]) == 2 * 2 + 2 + 2
    assert {point["step"] for point in whole["points"] if point["method"] == "dpo"} == {1, 2}
    assert [one["method"] for one in whole["chosen"]] == ["dpo", "grpo", "best of n"]
    assert whole["recipe_from"] == read_recipe([str(recipe)]).origins()
    assert len(whole["pairs"]) == 6, "every two of three methods and the start"
    assert whole["prompts"] == 6 and whole["choosing_prompts"] == 2
    assert whole["base"]["gold"]["n"] == 6
    n1, n2 = (p for p in whole["points"] if p["method"] == "best of n")
    assert n1["kl"]["mean"] == 0 and n2["kl"]["mean"] == pytest.approx(0.1931, abs=1e-4)
    assert n2["proxy"]["mean"] >= n1["proxy"]["mean"], "it chooses by the proxy"
    dpo = next(p for p in whole["points"] if p["method"] == "dpo" and p["final"])
    assert dpo["kl"]["mean"] > 0 and dpo["tokens"] > 0
    assert not list((out / "runs").glob("*/checkpoint-*")), "examined and removed"
    assert "highest reward" in capsys.readouterr().out

    before = {path: path.stat().st_mtime_ns for path in (out / "examinations").iterdir()}
    runs = set((out / "runs").iterdir())
    recipe.write_text(recipe.read_text().replace("output_dir", "  kto: {verb: kto}\noutput_dir"))
    assert main(["compare", str(recipe)]) == 0
    assert "done before" in capsys.readouterr().err
    after = {path: path.stat().st_mtime_ns for path in (out / "examinations").iterdir()}
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 2
    assert len(set((out / "runs").iterdir()) - runs) == 1


@needs_fork
@quiet_fork
def test_killed_and_started_again_it_ends_with_the_same_numbers(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with a run half trained and another half examined; in one process or in two."""
    calm, hit = tmp_path / "calm", tmp_path / "hit"
    assert main(["compare", str(recipe), "--output-dir", str(calm), "--quiet"]) == 0
    plan = make_plan(read_recipe([str(recipe), "--output-dir", str(hit)]))
    folders = {plan.run_folder(cell) for cell in plan.cells if cell.resolved is not None}

    def dies(count: Callable[[], int], most: int) -> None:
        """Run it in a child that is killed once ``count`` is ``most``."""
        child = os.fork()
        if child == 0:
            keep, after_step = work._keep, Loop._after_step

            def check(*_: Any) -> None:
                if count() >= most:
                    os.kill(os.getpid(), signal.SIGKILL)

            def kept(*arguments: Any) -> None:
                keep(*arguments)
                check()

            def stepped(self: Any) -> None:
                check()
                after_step(self)

            monkeypatch.setattr(work, "_keep", kept)
            monkeypatch.setattr(Loop, "_after_step", stepped)
            os._exit(main(["compare", str(recipe), "--output-dir", str(hit), "--quiet"]))
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)

    dies(lambda: len(list(hit.glob("runs/*/checkpoint-1"))), 1)
    assert any(path.is_dir() for path in folders), "a run was begun"
    assert not list(hit.glob("comparison.json"))
    dies(lambda: len(list(hit.glob("examinations/*.json"))), 2)
    assert main(["compare", str(recipe), "--output-dir", str(hit), "--quiet"]) == 0
    assert contents(hit) == contents(calm)
    assert numbers(hit) == numbers(calm)


def test_a_failed_cell_is_told_and_the_others_go_on(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "  broken: {verb: dpo, learning_rate: 1e30, max_grad_norm: 0}\noutput_dir"
    recipe.write_text(recipe.read_text().replace("output_dir", bad))
    assert main(["compare", str(recipe), "--methods.grpo", "{best_of_n: {n: [1]}}"]) == 1
    whole = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [one["cell"] for one in whole["failed"]] == ["broken seed 0"]
    assert whole["left_out"] == ["broken"]
    assert {one["method"] for one in whole["chosen"]} == {"dpo", "grpo", "best of n"}
    assert "FAILED" in capsys.readouterr().err


WRONG = {
    "budjet: {unit: prompts, amount: 1}": "budjet: unknown key (small.yaml:9). Did you mean",
    "budget: {unit: hours, amount: 1}": "budget.unit: 'hours' is not one of prompts,",
    "budget: {unit: preferences, amount: 1}": "budget: 1 preferences are not enough for one step",
    "common: {learning_rat: 1e-2}": "learning_rat: unknown key (small.yaml:13). Did you mean",
    "common: {max_steps: 3}": "common.max_steps: the budget says how long a run is; remove it",
    "seeds: [0, 0]": "seeds: ['0', '0'] holds 0 twice (small.yaml:10)",
    "eval_prompts: nowhere.jsonl": "nowhere.jsonl",
    "model_name_or_path: nowhere": "model_name_or_path='nowhere'",
    "judge: {reward_funcs: nobody}": "reward_funcs='nobody'",
    "judge: {}": "judge: judges nothing",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_is_found_before_anything_is_trained(
    line: str,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = {"budjet": "budget"}.get(line.partition(":")[0], line.partition(":")[0])
    lines = recipe.read_text().splitlines()
    lines = [line if old.startswith(f"{key}:") else old for old in lines]
    recipe.write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", recipe.name]) == 2
    said = capsys.readouterr().err
    assert WRONG[line] in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


METHODS = {
    "{verb: dpoo}": "methods.dpo.verb: 'dpoo' is not one of",
    "{verb: sft}": "methods.dpo.verb: 'sft' is not one of",
    "{beta: 1}": "methods.dpo: verb is missing",
    "{verb: dpo, grid: {beta: []}}": "methods.dpo.grid.beta: [] is not a list of values",
    "{verb: dpo, grid: {beta: [1, 1]}}": "methods.dpo.grid: has beta 1 twice",
    "{verb: dpo, grid: {betta: [1]}}": "betta: unknown key (command line)",
    "{verb: dpo, beta: x}": "loss.beta: 'x' is not a number",
    "{verb: dpo, seed: 1}": "methods.dpo.seed: the comparison has seeds",
    "{best_of_n: {n: [0]}}": "methods.dpo.best_of_n.n: is not a list of counts",
    "{best_of_n: {n: [2]}, beta: 1}": "methods.dpo.beta: best_of_n takes n",
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_are_none_are_refused(method: str, recipe: Path) -> None:
    with pytest.raises(ValueError, match=r"\(command line\)") as error:
        make_plan(read_recipe([str(recipe), "--methods.dpo", method]))
    assert METHODS[method] in str(error.value)


def test_keys_know_what_results_depend_on(recipe: Path, inputs: Path, tmp_path: Path) -> None:
    """Moved data and another output folder are the same work; another byte of it is other work."""

    def keys(*more: str) -> set[str]:
        plan = make_plan(read_recipe([str(recipe), *more]))
        return {key for cell in plan.cells for key in cell.examined.values()}

    own = keys()
    assert keys("--output-dir", str(tmp_path / "elsewhere"), "--name", "other") == own
    copied = tmp_path / "copied.jsonl"
    copied.write_bytes((inputs / "pairs.jsonl").read_bytes())
    assert keys("--preferences", str(copied)) == own
    copied.write_bytes(copied.read_bytes() + (inputs / "pairs.jsonl").read_bytes()[:0] + b"\n")
    changed = keys("--preferences", str(copied))
    assert len(changed & own) == 1 + 2 + 2, "the start, grpo and the best of n stay"
    assert keys("--seeds", "0,1") > own
    assert not keys("--samples", "3") & own
    assert keys("--kl-levels", "1,2", "--keep-checkpoints", "true") == own


def test_values_know_where_they_were_given(recipe: Path) -> None:
    budget = "{unit: prompts, amount: 4}"
    given = read_recipe([str(recipe), "--samples", "3", "--budget", budget]).origins()
    lines = recipe.read_text().splitlines()
    assert given["methods.dpo.grid.beta"] == f"{recipe}:{lines.index('    verb: dpo') + 2}"
    assert given["judge.reward_funcs"] == f"{recipe}:5"
    assert {given[key] for key in ("samples", "budget.unit", "budget.amount")} == {"command line"}
    assert not {"choose_share", "judge.reward_weights", "budget", "name"} & given.keys()


def test_recipes_of_other_verbs_are_refused(recipe: Path) -> None:
    recipe.write_text("verb: dpo\n" + recipe.read_text())
    with pytest.raises(ValueError, match=r"this recipe is for trimtab dpo \(.*small.yaml:1\)"):
        read_recipe([str(recipe)])
    recipe.write_text(recipe.read_text().replace("verb: dpo", "verb: compare", 1))
    assert read_recipe([str(recipe)]).recipe.title == "small"


@pytest.mark.slow
def test_a_budget_of_tokens_is_measured_first(recipe: Path, tmp_path: Path) -> None:
    """Steps of each method as their first steps take tokens; a second start measures nothing."""
    more = ["--budget.unit", "tokens", "--budget.amount", "1000", "--methods.grpo", "{verb: dpo}"]
    assert main(["compare", str(recipe), *more, "--quiet", "--checkpoints", "1"]) == 0
    whole = json.loads((tmp_path / "out" / "comparison.json").read_text())
    spent = [point["tokens"] for point in whole["points"] if point["method"] == "dpo"]
    assert all(700 <= tokens <= 1200 for tokens in spent), spent
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 2, "pilots leave none"


def test_every_key_has_a_meaning_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    said = capsys.readouterr().out
    for name, field in CompareRecipe.model_fields.items():
        assert f"--{name.replace('_', '-')}" in said
        assert field.description
