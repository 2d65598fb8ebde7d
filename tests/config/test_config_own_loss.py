"""A user's own loss in a recipe: read from its file without running it, with keys of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trimtab.config import PreferenceRecipe, Resolved, load_text, resolve, to_yaml
from trimtab.config.loss_file import LossFileError, read_loss_file
from trimtab.errors import RecipeError

MINE = '''
"""Mine."""
raise RuntimeError("a recipe is read without running the file")

def mine(policy: "losses.Pair", reference: Pair, margins: Tensor, *, tau: float = 0.3,
         on: bool = False, cap: "float | None" = None, mode: Literal["a", "b"] = "a"):
    """Mine: a loss."""

class State:
    """With state."""
    def __init__(self, *, beta: float = 1.5): ...
    def __call__(self, policy: SequenceLogprobs, labels: Tensor): ...
    def prepare(self, policy: SequenceLogprobs, mismatched_reference: SequenceLogprobs): ...

def _hidden(policy: Pair): ...
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def run(*tokens: str, verb: str = "dpo", env: Any = None) -> Resolved:
    return resolve(verb, ["--model", "m", "--dataset", "d", *tokens], env=env or {})


def loss_of(found: Resolved) -> tuple[str, str | None, dict[str, Any]]:
    assert isinstance(found.recipe, PreferenceRecipe)
    loss = found.recipe.loss
    return loss.name, loss.file, loss.parameters


def refused(*tokens: str, verb: str = "dpo") -> str:
    with pytest.raises(RecipeError) as error:
        run(*tokens, verb=verb)
    assert "\n" not in str(error.value)
    return str(error.value)


DEFAULTS = {"tau": 0.3, "on": False, "cap": None, "mode": "a"}
FILE = ("--loss.file", "mine.py:mine")


# ---------------------------------------------------------------------- reading


def test_the_declaration_is_read_from_the_text(here: Path) -> None:
    mine, state = read_loss_file("mine.py:mine"), read_loss_file(f"{here}/mine.py:State")
    assert (mine.name, mine.kind, mine.summary) == ("mine", "pair", "Mine: a loss.")
    assert mine.needs == {"policy", "reference", "margins"} and mine.needs_reference
    assert {name: p.default for name, p in mine.parameters.items()} == DEFAULTS
    assert state.kind == "unpaired" and list(state.parameters) == ["beta"]
    assert state.needs == {"policy", "labels", "mismatched_reference"} and state.needs_reference


def test_torch_is_not_imported_for_it(here: Path) -> None:
    code = (
        "import sys; from trimtab.config.resolve import resolve; "
        "resolve('dpo', ['--model', 'm', '--dataset', 'd', '--loss.file', 'mine.py:mine']); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (None, "mine", r"own.py: no such file"),
        ("def mine(:\n", "mine", r"own.py:1: not valid Python: invalid syntax"),
        ("x = 1\n\n  y = 2\n", "mine", r"own.py:3: not valid Python: unexpected indent"),
        ("x = 1\0", "mine", r"own.py(:1)?: not valid Python: source code string cannot"),
        ("def mien(policy: Pair): ...\n", "mine",
         r"own.py: no function or class 'mine' at its top level; it defines mien. Did you mean mi"),
        ("mine = 3\n", "mine", r"own.py: no function or class 'mine' .*; it defines none"),
        ("\ndef mine(reference: Pair): ...\n", "mine",
         r"own.py:2: mine: needs a parameter policy, annotated with one of Pair, SequenceLogprobs"),
        ("class mine:\n    pass\n", "mine", r"own.py:1: mine: needs its own __call__ with a param"),
        ("def mine(policy): ...\n", "mine",
         r"own.py:1: mine: annotate its parameter policy with one of Pair, SequenceLogprobs, Rank"),
        ("def mine(policy: Tensor): ...\n", "mine", r"own.py:1: mine: annotate .*, not Tensor$"),
        ("def mine(policy: Pair, *,\n    beta: float = BETA): ...\n", "mine",
         r"own.py:2: beta: its default BETA has to be a plain number, text, true, false or None"),
        ("def mine(policy: Pair, *, f: Callable = None): ...\n", "mine",
         r"own.py:1: f: a hyper-parameter of type Callable cannot stand in a recipe; use float, "),
        ("def mine(policy: Pair, *, name: str = 'a'): ...\n", "mine",
         r"own.py:1: name: no hyper-parameter can have this name"),
        ("def dpo(policy: Pair): ...\n", "dpo", r"own.py:1: dpo is taken .*; give it another name"),
        ("def nll(policy: Pair): ...\n", "nll", r"own.py:1: nll is taken"),
    ],
)  # fmt: skip
def test_what_is_no_loss(here: Path, text: str | None, name: str, expected: str) -> None:
    if text is not None:
        (here / "own.py").write_text(text)
    with pytest.raises(LossFileError, match=rf"^{expected}"):
        read_loss_file(f"own.py:{name}")
    line = refused("--loss.file", f"own.py:{name}")
    assert line.startswith("loss.file: own.py") and line.endswith("(command line)")


@pytest.mark.parametrize("value", ["mine.py", "mine.py:", ":mine", "mine", "mine.py:a b"])
def test_the_form(here: Path, value: str) -> None:
    line = refused("--loss.file", value)
    assert line.startswith(f"loss.file: {value!r} is not of the form FILE.py:FUNCTION")
    assert ("; mine.py defines mine, State (" in line) == (value == "mine.py")


def test_other_files(here: Path) -> None:
    (here / "folder").mkdir()
    assert "folder: is a folder; name the file" in refused("--loss.file", "folder:mine")
    (here / "latin.py").write_bytes(b"x = '\xe9'\n")
    assert "latin.py:1: not valid Python" in refused("--loss.file", "latin.py:mine")


# ---------------------------------------------------------------------- in a recipe


def test_its_parameters_are_keys(here: Path) -> None:
    assert loss_of(run(*FILE)) == ("mine", "mine.py:mine", DEFAULTS)
    given = ["--loss.tau", "2e-1", "--loss.on", "true", "--loss.cap=7", "--loss.mode", "b"]
    found = run(*FILE, *given)
    assert loss_of(found)[2] == {"tau": 0.2, "on": True, "cap": 7.0, "mode": "b"}
    assert found.provenance["loss.tau"] == "command line"
    assert found.provenance["loss.file"] == "command line" and "loss.name" not in found.provenance
    assert run(*FILE).provenance["loss.tau"] == "default"
    assert loss_of(run(*FILE, "--loss.cap", "null"))[2]["cap"] is None
    assert loss_of(run("--loss.file", "mine.py:State", "--beta", "3"))[2] == {"beta": 3.0}
    assert found.recipe.output_dir == "runs/dpo-mine-m-d"
    environment = {"TRIMTAB_LOSS__FILE": "mine.py:mine"}
    assert loss_of(run(env=environment))[0] == "mine"


def test_in_yaml(here: Path) -> None:
    for text in ("loss: {file: mine.py:mine, tau: 0.7}\n", "loss.file: mine.py:mine\nloss.tau: .7"):
        (here / "x.yaml").write_text(text)
        found = run("x.yaml")
        assert loss_of(found) == ("mine", "mine.py:mine", {**DEFAULTS, "tau": 0.7})
    assert loss_of(run("x.yaml", "--loss.tau", "1"))[2]["tau"] == 1.0


def test_the_resolved_recipe_is_a_recipe(here: Path) -> None:
    found = run(*FILE, "--loss.tau", "0.2")
    text = to_yaml(found)
    assert 'file: "mine.py:mine"  # command line' in text and "tau: 0.2  # command line" in text
    assert load_text(text).recipe == found.recipe
    (here / "again.yaml").write_text(text)
    assert resolve("dpo", ["again.yaml"], env={}).recipe == found.recipe


def test_the_last_source_decides(here: Path) -> None:
    (here / "named.yaml").write_text("loss: simpo\n")
    (here / "own.yaml").write_text("loss: {file: mine.py:mine, tau: 1}\n")
    assert loss_of(run("named.yaml", *FILE))[0] == "mine"
    assert refused("own.yaml", "--loss", "simpo") == (
        "loss.tau: 1 was meant for mine.py:mine (own.yaml:1), and the loss is simpo (command "
        "line); give --loss.tau for simpo, or take it out"
    )
    (here / "own.yaml").write_text("loss: {file: mine.py:mine}\n")
    assert loss_of(run("own.yaml", "--loss", "simpo"))[0] == "simpo"
    assert loss_of(run("own.yaml", "--loss.file", "null"))[0] == "dpo"


def test_defaults_of_a_named_loss_stay_with_it(here: Path) -> None:
    (here / "mine.py").write_text("def orpo_mine(policy: Pair, *, beta: float = 0.1): ...\n")
    found = run("--loss.file", "mine.py:orpo_mine").recipe
    assert found.nll_weight == 0.0 and found.learning_rate == 1e-6  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("verb", "tokens", "expected"),
    [
        ("dpo", ["--loss.file", "mine.py:mine", "--loss.ta", "1"],
         "loss.ta: mine takes tau, on, cap, mode. Did you mean tau? (command line)"),
        ("dpo", ["--loss.file", "mine.py:mine", "--beta", "1"],
         "loss.beta: mine takes tau, on, cap, mode; beta belongs to dpo, "),
        ("dpo", ["--loss.file", "mine.py:mine", "--loss.tau", "x"],
         "loss.tau: 'x' is not a number (command line)"),
        ("dpo", ["--loss.file", "mine.py:mine", "--loss.mode", "c"],
         "loss.mode: 'c' is not one of a, b (command line)"),
        ("dpo", ["--loss", "simpo", "--loss.file", "mine.py:mine"],
         "loss.file: 'mine.py:mine' (command line) and loss 'simpo' (command line): give one of"),
        ("dpo", ["--loss", "mine.py:mine"],
         "loss: 'mine.py:mine' is no loss here; losses are "),
        ("simpo", ["--loss.file", "mine.py:mine"],
         "loss: trimtab simpo trains simpo, not 'mine.py:mine' (command line); use trimtab dpo "
         "--loss.file mine.py:mine"),
        ("dpo", ["--loss.file", "mine.py:mine", "--reference-free", "1"],
         "reference_free: unknown key"),
    ],
)  # fmt: skip
def test_refusals(here: Path, verb: str, tokens: list[str], expected: str) -> None:
    assert refused(*tokens, verb=verb).startswith(expected)
    if tokens[:2] == ["--loss", "mine.py:mine"]:
        assert "for a loss of your own use loss.file (mine.py:mine)" in refused(*tokens, verb=verb)
