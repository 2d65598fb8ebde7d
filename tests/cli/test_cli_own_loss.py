"""A user's own loss on the command line: what is wrong with it in one line, and the bench."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.test_user_errors import PAIRS, inputs, refuse  # noqa: F401 - a fixture

from trimtab.cli import main

MINE = '''
import torch
from trimtab.losses import Pair, PreferenceTerms, dpo_loss

def mine(policy: Pair, reference: Pair, *, tau: float = 0.1) -> PreferenceTerms:
    """Mine."""
    if tau <= 0:
        raise ValueError(f"tau={tau}: must be a positive number")
    return dpo_loss(policy, reference, beta=tau)

def reduced(policy: Pair, reference: Pair) -> PreferenceTerms:
    terms = dpo_loss(policy, reference)
    return terms._replace(losses=terms.losses.mean())

def unknown(policy: Pair, attention: torch.Tensor) -> PreferenceTerms:
    return dpo_loss(policy, attention)

def failing(policy: Pair, reference: Pair) -> PreferenceTerms:
    return policy.chosen.summ

def flipped(policy: Pair, reference: Pair, *, beta: float = 0.1) -> PreferenceTerms:
    return dpo_loss(Pair(policy.rejected, policy.chosen),
                    Pair(reference.rejected, reference.chosen), beta=beta)

def bare(policy, reference: Pair): ...

def unread(reference: Pair): ...
'''


@pytest.fixture(autouse=True)
def mine(here: Path) -> Path:
    (here / "mine.py").write_text(MINE)
    (here / "broken.py").write_text("def mine(:\n")
    (here / "importing.py").write_text("import nothing_here\ndef mine(policy: Pair): ...\n")
    return here


WRONG = [
    ("nowhere.py:mine", r"loss\.file: nowhere\.py: no such file \(command line\)"),
    ("mine.py:mien", r"loss\.file: mine\.py: no function or class 'mien' .* Did you mean mine\?"),
    ("broken.py:mine", r"loss\.file: broken\.py:1: not valid Python: invalid syntax"),
    ("importing.py:mine", r"loss\.file: importing\.py:1: ModuleNotFoundError: No module named"),
    ("mine.py:bare", r"loss\.file: mine\.py:25: bare: annotate its parameter policy with one of"),
    ("mine.py:unread", r"loss\.file: mine\.py:27: unread: needs a parameter policy, annotated"),
    ("mine.py:unknown", r"loss\.file: mine\.py: unknown: nobody computes attention; a loss of"),
    ("mine.py:reduced", r"loss\.file: mine\.py: reduced: gave losses of shape \(\) for 2 pairs"),
    ("mine.py:failing", r"loss\.file: mine\.py:19: AttributeError: 'SequenceLogprobs' object has"),
]


@pytest.mark.parametrize(("file", "expected"), WRONG)
def test_what_is_no_loss_is_refused_before_a_model_is_loaded(
    file: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse([*PAIRS, "--loss.file", file], expected, capsys)
    refuse(["verify-loss", file], expected, capsys)


def test_its_hyper_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    own = [*PAIRS, "--loss.file", "mine.py:mine"]
    impossible = r"loss\.tau=-1\.0: must be a positive number \(mine\.py:mine\)"
    refuse([*own, "--loss.tau", "-1"], impossible, capsys)
    refuse(["verify-loss", "mine.py:mine", "--tau", "-1"], impossible, capsys)
    refuse([*own, "--loss.tua", "1"], r"loss\.tua: mine takes tau\. Did you mean tau\?", capsys)
    refuse(["verify-loss", "mine.py:mine", "--tua", "1"], r"loss\.tua: mine takes tau\.", capsys)
    assert main([*own, "--loss.tau", "0.2"]) == 0


# ---------------------------------------------------------------------- verify-loss


def test_the_bench_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-loss", "mine.py:mine", "--tau", "0.25"]) == 0
    printed = capsys.readouterr().out
    text = " ".join(printed.split())
    assert "mine: a loss of kind pair; hyper-parameters: tau=0.25; asks for: reference" in text
    assert "gradient = finite differences passed worst relative error" in text
    assert "0.693147181 (ln 2)" in text and "all checks passed" in text
    assert "beta 0.25: pi*, the optimum of KL-regularised reward maximisation" in text
    (row,) = [line.split() for line in printed.splitlines() if line.startswith("ab ")]
    assert row == ["ab", "1", "0.1558", "0.8143", row[4], "0.8143"]
    assert max(map(len, printed.splitlines())) <= 80


def test_the_bench_as_json_and_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-loss", "mine.py:flipped", "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert record["passed"] is False and record["loss"] == "flipped"
    failed = [check["name"] for check in record["checks"] if check["status"] == "failed"]
    assert failed == ["raises what is wanted"]
    assert sum(record["optimum"]["best"]) == pytest.approx(1.0)
    assert main(["verify-loss", "mine.py:flipped"]) == 1
    assert "FAILED: raises what is wanted" in capsys.readouterr().out
    assert main(["verify-loss", "--json", "simpo", "--loss.gamma=0"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["parameters"] == {"beta": 2.0, "gamma": 0.0} and record["kind"] == "pair"


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], r"verify-loss: which one\? Give FILE\.py:FUNCTION, or the name of a loss"),
        (["dppo"], r"loss: 'dppo' is no loss here; .* Did you mean dpo\?"),
        (["dpo", "simpo"], r"simpo: one loss at a time, and dpo is given already"),
        (["dpo", "--beta"], r"--beta: a value is missing"),
        (["dpo", "--beta", "x"], r"loss\.beta: 'x' is not a number \(command line\)"),
        (["dpo", "--beta", "1", "--beta", "2"], r"--beta: given twice"),
        (["dpo", "--gamma", "1"], r"loss\.gamma: dpo takes beta; gamma belongs to simpo"),
        (["mine.py"], r"loss\.file: 'mine\.py' is not of the form FILE\.py:FUNCTION; mine\.py def"),
    ],
)
def test_usage(tokens: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    refuse(["verify-loss", *tokens], expected, capsys)


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-loss", "--help"]) == 0
    assert capsys.readouterr().out.startswith("Usage: trimtab verify-loss FILE.py:FUNCTION | NAME")
    assert main(["dpo", "--help"]) == 0
    assert "--loss.file" in capsys.readouterr().out
