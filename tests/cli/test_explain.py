"""``trimtab explain``: every name has an entry, and what it says is so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from tests.docs.scripts_of import ROOT, page, script

from trimtab.catalogue.metrics import METRICS, metric_of
from trimtab.cli import main
from trimtab.cli.explain.command import FIRST
from trimtab.cli.explain.sources import SOURCES, explain
from trimtab.cli.tools import TOOLS
from trimtab.config import VERBS
from trimtab.config.loss_schema import loss_schemas
from trimtab.config.loss_words import PARAMETERS
from trimtab.config.schema import recipe_keys
from trimtab.errors import UsageError


def facts(name: str, kind: str) -> dict[str, str]:
    return dict(next(one for one in explain(name) if one.kind == kind).facts)


def test_all_names_are_there_and_explain_themselves() -> None:
    assert set(SOURCES["verb"]()) == set(VERBS)
    assert set(loss_schemas()) <= set(SOURCES["loss"]())
    assert {k for v in VERBS.values() for k in recipe_keys(v.recipe)} == set(SOURCES["key"]())
    for kind, source in SOURCES.items():
        for name, one in source().items():
            assert one.what and one in explain(name), (kind, name)


def test_tools_and_their_options_are_those_of_the_table() -> None:
    names = {
        f"{name} {verb}".strip()
        for name, tool in TOOLS.items()
        for verb in ("", *(tool if isinstance(tool, dict) else ()))
    }
    assert set(SOURCES["tool"]()) == names
    assert [one.kind for one in explain("data-check")] == ["tool"] == [explain("sample")[0].kind]
    assert facts("data check", "tool")["arguments"] == "FILES"
    assert "--against, --model, --kind" in facts("data check", "tool")["options"]
    assert explain("verify_loss")[0].what.startswith("Put a preference loss on the bench")
    said = facts("fail_on", "option")
    assert (said["default"], said["of"]) == ("error", "trimtab data check")
    assert [one.kind for one in explain("temperature")] == ["key", "option"]
    assert facts("dataset_split", "option")["default"] == "test (evaluate); train (sample, score)"


def test_a_diagnosis_says_what_to_change() -> None:
    for name, one in SOURCES["diagnosis"]().items():
        assert {"told when", "means", "change", "reads"} <= dict(one.facts).keys(), name


def test_findings_of_the_data_doctor_are_explained_with_their_remedy() -> None:
    (one,) = explain("held-out-prompt")
    assert explain("held_out_prompt") == [one]
    assert (one.kind, dict(one.facts)["needs"]) == ("finding", "--against HELD_OUT")
    assert dict(one.facts)["change"] == "split by prompt rather than by row"


def test_metrics_read_by_diagnoses_exist() -> None:
    for name, one in SOURCES["diagnosis"]().items():
        for word in re.findall(r"[a-z_]+/\w+(?:/\w+)?", dict(one.facts)["reads"]):
            assert metric_of(word), (name, word)


def test_every_metric_is_one_that_the_source_writes() -> None:
    ours = ("catalogue", "explain", "report")  # which tell of metrics, and write none
    every = [path for path in (ROOT / "src").rglob("*.py") if path.parent.name not in ours]
    source = "".join(path.read_text(encoding="utf-8") for path in every)
    for one in METRICS:
        if "<" in one.name:
            continue
        last = one.name.rpartition("/")[2]
        written = (f'"{one.name}"', f"{{name}}_{last}", f"{{name}}/{last}", f'"{last}"')
        stem = last.removesuffix("_per_token")
        assert any(w in source for w in (*written, f'"{stem}"')), one.name


def test_a_dpo_is_a_loss_and_a_verb() -> None:
    assert [one.kind for one in explain("dpo")] == ["loss", "verb"]
    loss = facts("dpo", "loss")
    assert loss["formula"] == "-log sigmoid(beta (a_w - a_l)), from sums"
    assert loss["hyper parameters"] == "beta=0.1"
    assert loss["paper"] == "https://arxiv.org/abs/2305.18290"
    assert facts("orpo", "loss")["comes with"].startswith("learning_rate=5e-06")
    assert facts("clipped_value_loss", "loss")["paper"] == "https://arxiv.org/abs/1909.08593"


def test_a_name_of_several_keys_is_all_of_them() -> None:
    assert [one.name for one in explain("gamma")] == ["gamma", "loss.gamma"]
    assert [one.name for one in explain("epsilon") if one.kind == "key"][-1] == "loss.epsilon"


def test_keys_by_every_spelling() -> None:
    assert [one.name for one in explain("--beta")] == ["loss.beta"]
    assert explain("lr")[-1].what.startswith("lr of other tools is learning_rate here. Highest")
    assert "No key here" in explain("fp16")[0].what
    assert explain("max-steps") == explain("max_steps") == explain("--max-steps=3")
    rates = facts("learning_rate", "key")["default"]
    assert "1e-06 (grpo, rloo, dpo, simpo, kto, ipo, cpo)" in rates
    stops = explain("stop_when")[0].what
    assert "reward: Diagnoses that end the run: at_chance" in stops
    assert "dpo, simpo, orpo, kto, ipo, cpo, bco: Diagnoses that end the run: displac" in stops
    assert "5e-06 (ppo, orpo)" in rates, "a loss has defaults of its own"


def test_metrics_by_pattern_held_out_and_their_intervals() -> None:
    for name, row in (
        ("watch/gold/mean", "watch/<name>/mean"),
        ("loss/nll", "loss/<term>"),
        ("loss/policy_avg", "loss/policy_avg"),
        ("eval_rewards/vowels_2/mean_ci95", "rewards/<name>/mean"),
    ):
        found = metric_of(name)
        assert found is not None and found.name == row
    assert explain("eval_logps/chosen_ci95")[0].what.startswith("Held out. 95 % interval")
    assert metric_of("rewards/choosen") is None and metric_of("watch/a/b/mean") is None


def test_every_hyper_parameter_of_a_loss_says_what_it_does() -> None:
    assert set(PARAMETERS) == {name for s in loss_schemas().values() for name in s.parameters}


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match=r"Did you mean rewards/margins\?"):
        explain("rewrds/margns")
    with pytest.raises(UsageError, match="trimtab explain lists every name"):
        explain("qqqqqq")


def test_as_a_user_types_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "displacement"]) == 0
    assert "displacement  (diagnosis)" in capsys.readouterr().out
    assert main(["explain", "displacment"]) == 2
    assert "Did you mean displacement?" in capsys.readouterr().err
    assert main(["explain"]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith("trimtab explain NAME says what a name in a log")
    assert len(FIRST) == 5 and all(explain(name) and name in listed[:300] for name in FIRST)
    assert main(["explain", "beta"]) == 0
    assert "beta  (key)\n  Strength of the KL pull to the reference" in capsys.readouterr().out
    assert all(word in listed for word in ("Diagnoses", "rewards/margins", "simpo", "loss.beta"))
    assert main(["explain", "data", "check"]) == 0
    assert capsys.readouterr().out.startswith("data check  (tool)")
    assert main(["explain", "stuck", "saturated"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("stuck  (diagnosis)") and "\nsaturated  (diagnosis)" in said
    assert main(["explain", "val/explained_variance", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert one["formula"] == "1 - Var(G - V) / Var(G)" and one["kind"] == "metric"


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        (["kl"], ["torch", "transformers", "numpy", "pyarrow"]),
        (["rewards/margins"], ["torch", "numpy", "pydantic", "trimtab.config"]),
        ([], ["torch", "numpy"]),
    ],
)
def test_what_it_does_not_import(words: list[str], idle: list[str]) -> None:
    """Whoever asks for one name waits for nothing that computes."""
    code = (
        "import sys\nfrom trimtab.cli import main\ncode = main(['explain', *sys.argv[1:]])\n"
        f"print(sorted(set({idle}) & set(sys.modules)), code, file=sys.stderr)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.stderr == "[] 0\n"
    if words == ["kl"]:
        assert "kl  (diagnosis)" in found.stdout and "kl  (metric)" in found.stdout


def test_the_page_of_diagnoses_is_up_to_date() -> None:
    assert script("diagnoses_page").page() == page("diagnoses.md")


def test_what_a_tool_is_said_to_do_is_whole() -> None:
    """It is the tool's line in ``trimtab --help``: the first paragraph of its docstring."""
    for name, told in SOURCES["tool"]().items():
        assert told.what.endswith((".", "!")), name
