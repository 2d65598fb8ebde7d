"""The command line: verbs, exit codes, one line for what is wrong, nothing heavy imported."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from trimtab import __version__
from trimtab.cli import main
from trimtab.cli.texts import TRAINING
from trimtab.config import VERBS
from trimtab.config.on_policy_recipe import OnPolicyRecipe
from trimtab.errors import DataError, RunError

SOURCE = Path(__file__).resolve().parents[2] / "src"
BASE = ["--model", "m", "--dataset", "d"]


def module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """Stand in for a heavy module."""
    made = types.ModuleType(name)
    for key, value in content.items():
        setattr(made, key, value)
    monkeypatch.setitem(sys.modules, name, made)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of ``run_resolved``; each returns 0."""
    calls: list[Any] = []

    def run_resolved(resolved: Any, command: Any) -> int:
        calls.append((resolved, command))
        return 0

    module(monkeypatch, "trimtab.algorithms.run", run_resolved=run_resolved)
    return calls


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run_resolved(resolved: Any, command: Any) -> int:
        raise error

    module(monkeypatch, "trimtab.algorithms.run", run_resolved=run_resolved)


# ---------------------------------------------------------------------- verbs


def test_the_verbs_are_those_of_the_recipes() -> None:
    assert list(TRAINING) == list(VERBS)


@pytest.mark.parametrize("verb", list(VERBS))
def test_a_verb_runs_its_recipe(verb: str, runs: list[Any]) -> None:
    judged = ["--reward-funcs", "f"] if issubclass(VERBS[verb].recipe, OnPolicyRecipe) else []
    words = [verb, *BASE, *judged, "--seed", "3", "--output-dir", "o"]
    assert main(words) == 0
    ((resolved, command),) = runs
    assert (resolved.verb, resolved.recipe.seed, resolved.recipe.output_dir) == (verb, 3, "o")
    assert command == ["trimtab", *words]


def test_the_code_of_the_run_is_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, "trimtab.algorithms.run", run_resolved=lambda resolved, command: 130)
    assert main(["sft", *BASE]) == 130


def test_offline_is_set_before_the_run_is_imported(
    runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that monkeypatch takes it away again
    assert main(["sft", *BASE]) == 0 and os.environ["HF_HUB_OFFLINE"] == ""
    assert main(["sft", *BASE, "--offline"]) == 0
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"


def test_inspect(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def inspect_file(path: str, **keys: Any) -> int:
        seen.update(keys, path=path)
        return 0

    module(monkeypatch, "trimtab.data.inspect", inspect_file=inspect_file)
    tokens = ["x.jsonl", "--model", "m", "--columns", "prompt=q", "chosen=good", "--rows", "5"]
    assert main(["data", "inspect", *tokens, "--kind", "preference"]) == 0
    assert seen == {
        "path": "x.jsonl",
        "model": "m",
        "kind": "preference",
        "columns": {"prompt": "q", "chosen": "good"},
        "max_length": 1024,
        "rows": 5,
        "as_json": False,
    }
    assert main(["data", "inspect", "x.jsonl", "--columns", "prompt=q,chosen=good"]) == 0
    assert seen["columns"] == {"prompt": "q", "chosen": "good"}
    assert main(["data", "inspect", "x.jsonl", "--json", "--max-length", "5"]) == 0
    assert (seen["as_json"], seen["max_length"], seen["columns"]) == (True, 5, {})


def test_check(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def check_files(options: Any, **keys: Any) -> int:
        seen.update(vars(options), **keys)
        return 2

    module(
        monkeypatch,
        "trimtab.data.doctor.check",
        check_files=check_files,
        CheckOptions=types.SimpleNamespace,
    )
    tokens = ["a.jsonl", "b.jsonl", "--against", "c.jsonl", "d.jsonl", "--columns", "prompt=q"]
    assert main(["data", "check", *tokens, "--fail-on", "note", "--json"]) == 2
    assert (seen["files"], seen["against"]) == (("a.jsonl", "b.jsonl"), ("c.jsonl", "d.jsonl"))
    assert (seen["columns"], seen["fail_on"], seen["as_json"]) == ({"prompt": "q"}, "note", True)
    assert (seen["max_length"], seen["dataset_test_split"]) == (1024, "test")
    assert main(["data", "check", "a.jsonl", "--eval-dataset-name", "c", "--model", "m"]) == 2
    assert (seen["against"], seen["model"], seen["fail_on"]) == (("c",), "m", "error")


def test_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def run_demo(**keys: Any) -> int:
        seen.update(keys)
        return 0

    module(monkeypatch, "trimtab.world.demo", run_demo=run_demo)
    assert main(["demo"]) == 0
    assert seen == {"output_dir": "runs/demo", "seed": 0, "seeds": 1, "fast": False}
    assert main(["demo", "--fast", "--seed", "4", "--seeds", "2", "--output-dir", "o"]) == 0
    assert seen == {"output_dir": "o", "seed": 4, "seeds": 2, "fast": True}


# ---------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["dpoo"], "dpoo: unknown verb. Did you mean dpo?"),
        (["evalute", "m"], "evalute: unknown verb. Did you mean evaluate?"),
        (["xyz"], f"xyz: unknown verb; to train: {', '.join(TRAINING)}; trimtab --help lists"),
        (["train", "--stage", "dpo"], "train: unknown verb; use trimtab dpo"),
        (["train", "--stage=sft", "x"], "train: unknown verb; use trimtab sft"),
        (["train", "x.yaml"], "train: unknown verb; trimtab has a verb per stage: trimtab pretr"),
        (["preference"], "preference: unknown verb; use trimtab dpo --loss NAME"),
        (["x.yaml"], "x.yaml: a verb comes first, e.g. trimtab dpo x.yaml"),
        (["dpo", "--lerning-rate", "1"], "lerning_rate: unknown key (command line). Did you mean"),
        (["dpo", "nothing.yaml"], "nothing.yaml: no such recipe file"),
        (["dpo"], "dataset_name: missing; give --dataset-name FILE"),
        (["data", "inspect"], 'Command "data inspect" parameter FILE requires an argument.'),
        (["data", "inspect", "f", "--modl", "m"], "Unknown option: --modl. Did you mean --model?"),
        (["data", "inspect", "f", "--columns", "q"], "columns: 'q' is not of the form ours=theirs"),
        (["data", "check", "f", "--fail-on", "eror"], 'Invalid value "eror" for --fail-on.'),
        (["data", "inspct"], 'Unknown command "inspct". Did you mean "inspect"?'),
        (["demo", "--seed", "x"], "Invalid value for --seed"),
    ],
)  # fmt: skip
def test_one_line_and_code_2(
    tokens: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tokens) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"trimtab: {expected}")
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("error", "code"),
    [(DataError("x.jsonl:7: chosen: empty"), 2), (RunError("disk full"), 1)],
)
def test_errors_for_users_have_no_traceback(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    raising(monkeypatch, error)
    assert main(["sft", *BASE]) == code
    assert capsys.readouterr().err == f"trimtab: {error}\n"


def test_a_message_of_several_lines_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, RunError("one\n  two"))
    assert main(["sft", *BASE]) == 1
    assert capsys.readouterr().err == "trimtab: one two\n"


def test_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(monkeypatch, AssertionError("ours"))
    assert main(["sft", *BASE]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "AssertionError: ours" in err
    assert err.splitlines()[-1].startswith("trimtab: this is a bug of trimtab, please report it")


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert main(["sft", *BASE]) == 130
    assert capsys.readouterr().err == "trimtab: interrupted\n"


# ---------------------------------------------------------------------- as a process

WATCH = """
import sys
from trimtab.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "peft", "datasets", "numpy", "pyarrow"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


def process(*tokens: str, code: str = WATCH, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *tokens],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "100", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "tokens",
    [
        ("--help",),
        (),
        ("--version",),
        ("dpo", "--help"),
        ("data", "inspect", "--help"),
        ("data", "check", "--help"),
    ],
)
def test_help_imports_nothing_heavy(tokens: tuple[str, ...]) -> None:
    found = process(*tokens)
    assert (found.returncode, found.stderr) == (0, "")


def test_a_wrong_key_is_refused_before_anything_heavy() -> None:
    found = process("dpo", *BASE, "--bta", "1")
    assert found.returncode == 2
    assert found.stderr == "trimtab: bta: unknown key (command line). Did you mean --beta?\n"


@pytest.mark.parametrize(
    ("model", "rows", "told"),
    [
        ("./nowhere/m", "who/rows", "trimtab: model_name_or_path='./nowhere/m': no such folder"),
        ("who/model", "./nowhere/m.jsonl", "trimtab: ./nowhere/m.jsonl: no such file"),
    ],
)
def test_what_is_not_here_is_refused_before_anything_heavy(
    model: str, rows: str, told: str
) -> None:
    found = process("dpo", "--model", model, "--dataset", rows)
    assert found.returncode == 2
    assert found.stderr.startswith(told)


def test_the_watch_sees_torch() -> None:
    found = process("--help", code="import sys; sys.modules['torch'] = sys\n" + WATCH)
    assert found.returncode == 1 and "AssertionError: {'torch'}" in found.stderr


def test_version_and_module() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "trimtab", "--version"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert found.stdout == f"{__version__}\n"


def test_no_color() -> None:
    # rich itself reads FORCE_COLOR, as a terminal would be.
    colours = "\x1b[36m"
    assert colours in process("dpo", "--help", FORCE_COLOR="1", NO_COLOR="", TERM="xterm").stdout
    assert colours not in process("dpo", "--help", FORCE_COLOR="1", NO_COLOR="1").stdout
