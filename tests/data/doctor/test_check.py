"""The data doctor: clean rows have no finding; a planted fault is found where it is, alone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.data.doctor.checked import MODEL_FAULTS, check, lines, write
from tests.data.doctor.clean_rows import CLEAN, COUNT, PLANTS, Plant, Rows
from tests.data.mask_checks import assistant, user

from trimtab.cli import main
from trimtab.config.data_keys import DatasetSpec
from trimtab.data.doctor.check import CheckOptions, check_files, diagnose
from trimtab.data.doctor.faults import BY_NAME, FAULTS, SEVERITIES
from trimtab.data.sources import load_examples
from trimtab.errors import DataError, UsageError

ANSWERS = (("assistant", "Yes, let us go."), ("assistant", "No, not today."))


def named(plant: Plant) -> str:
    return f"{plant.fault}, {plant.kind}"


# ---------------------------------------------------------------------- without a model


@pytest.mark.parametrize("kind", CLEAN)
def test_clean_rows_have_no_finding(kind: str, tmp_path: Path) -> None:
    found = check(tmp_path, CLEAN[kind]())
    assert lines(found) == {} and len(found.rows) == COUNT and not found.failed


@pytest.mark.parametrize("plant", PLANTS, ids=named)
def test_a_planted_fault_is_found_and_nothing_else(plant: Plant, tmp_path: Path) -> None:
    rows = CLEAN[plant.kind]()
    plant.change(rows)
    assert lines(check(tmp_path, rows)) == {plant.fault: plant.lines}


def test_every_fault_is_planted() -> None:
    planted = {plant.fault for plant in PLANTS} | set(MODEL_FAULTS)
    assert planted | {"held-out-row", "held-out-prompt"} == set(BY_NAME)


def test_the_table_is_sound() -> None:
    assert len(BY_NAME) == len(FAULTS)
    for fault in FAULTS:
        assert fault.name == fault.name.lower() and " " not in fault.name
        assert fault.severity in SEVERITIES and set(fault.covers) <= set(BY_NAME)
        for sentence in (fault.meaning, fault.remedy):
            assert sentence and not sentence.endswith(".") and "\n" not in sentence


def test_the_table_is_in_the_docs() -> None:
    docs = Path(__file__).resolve().parents[3] / "docs" / "data.md"
    lines = docs.read_text(encoding="utf-8").replace("\\|", "|").splitlines()
    needs = {"rows": "", "held-out": "`--against`", "model": "`--model`"}
    table = [line for line in lines if line.startswith("| `") and line.count("|") >= 6]
    shown = [line for line in table if line.split("`")[1] in BY_NAME]
    assert shown == [
        f"| `{f.name}` | {f.severity} | {needs[f.needs]} | {f.meaning} | {f.remedy} |"
        for f in FAULTS
    ]


def test_held_out_rows_and_prompts(tmp_path: Path) -> None:
    """However they are written: the held-out row is in messages, in capitals."""
    rows = CLEAN["preference"]()
    held_out = CLEAN["messages"]()[:2]
    held_out[0] = json.loads(json.dumps(held_out[0]).replace(" kettle", "  KETTLE"))
    held_out[1]["chosen"] = [assistant("Another answer.")]
    other = write(tmp_path, held_out, "held_out.jsonl")
    found = check(tmp_path, rows, against=[other])
    assert lines(found) == {"held-out-row": [1], "held-out-prompt": [2]}
    assert found.findings[0].rows[0].note == f"as {other}:1"
    assert found.failed and not check(tmp_path, rows[2:], against=[other]).findings


def test_held_out_texts_and_chats(tmp_path: Path) -> None:
    for kind in ("text", "labelled", "chat", "completion"):
        rows = CLEAN[kind]()
        other = write(tmp_path, rows[5:6], "held_out.jsonl")
        assert lines(check(tmp_path, rows, against=[other])) == {"held-out-row": [6]}, kind


def test_rows_of_several_files_are_one_set(tmp_path: Path) -> None:
    rows = CLEAN["preference"]()
    files = [write(tmp_path, rows[:7], "a.jsonl"), write(tmp_path, rows[6:], "b.jsonl")]
    found = diagnose(CheckOptions(files=files))
    (finding,) = found.findings
    assert finding.fault.name == "duplicate-row" and finding.share == 1 / 13
    assert found.rows.place(finding.rows[0].row) == (files[1], 1)
    assert finding.rows[0].note == f"as {files[0]}:7"


def test_what_is_beside_the_text_tells_rows_apart(tmp_path: Path) -> None:
    """Tools change the prompt; scores are trained on; rewards read a prompt's other columns."""
    user, yes, no = ([{"role": r, "content": c}] for r, c in (("user", "Go?"), *ANSWERS))
    tools = [{"type": "function", "function": {"name": "go", "parameters": {}}}]
    pair: dict[str, Any] = {"prompt": user, "chosen": yes, "rejected": no}
    turned = {**pair, "chosen": no, "rejected": yes, "tools": tools}
    assert lines(check(tmp_path, [pair, turned])) == {}
    assert "contradictory-pair" in lines(check(tmp_path, [{**pair, "tools": tools}, turned]))
    prompts = [{"prompt": "2 + 2 =", "solution": one} for one in ("4", "four", "4")]
    assert lines(check(tmp_path, prompts)) == {"duplicate-row": [3]}
    ranking: dict[str, Any] = {"prompt": "Go?", "responses": ["Yes, let us go.", "No, not today."]}
    scored = [{**ranking, "scores": scores} for scores in ([0.9, 0.1], [0.5, 0.4], [0.9, 0.1])]
    assert lines(check(tmp_path, scored))["duplicate-row"] == [3]


def test_json_of_what_no_terminal_can_print(tmp_path: Path, capsys: Any) -> None:
    role = {"role": "user", "content": "x", "\ud803": "\ud803"}
    rows = [{"messages": [role, {"role": "assistant", "content": "y"}]}]
    check_files(CheckOptions(files=[write(tmp_path, rows)], fail_on="never"), as_json=True)
    assert json.loads(capsys.readouterr().out)["rows"] >= 0


@pytest.mark.parametrize("options", [{"max_rows": 0}, {"max_rows": -1}, {"rows": -1}])
def test_counts_below_nothing_are_refused(options: dict[str, int], tmp_path: Path) -> None:
    files = [write(tmp_path, [{"text": "a"}])]
    with pytest.raises(UsageError, match=r"--(max-)?rows -?\d: must be \d or more"):
        diagnose(CheckOptions(files=files, **options))


def test_conflicting_completions_are_no_fault(tmp_path: Path) -> None:
    rows = CLEAN["completion"]()
    rows.append({"prompt": rows[0]["prompt"], "completion": "None at all."})
    assert lines(check(tmp_path, rows)) == {}


def test_html_is_no_template(tmp_path: Path) -> None:
    rows = CLEAN["completion"]()
    rows[3]["completion"] = "Use <b>bold</b>, <s>not this</s> and a[INSTALL]; ## Instruction: none"
    rows[4]["completion"] = "Q: why?\n\nA: because. Note: ask the user: yes"
    assert lines(check(tmp_path, rows)) == {}


def test_documents_may_have_words_that_look_like_tokens(tmp_path: Path) -> None:
    text = [{"text": f"The <unk> game {number} was won by <unk> . </s>"} for number in range(3)]
    assert lines(check(tmp_path, text)) == {}
    found = check(tmp_path, [*text, {"text": "The <unk> [INST] game"}])
    assert lines(found) == {"template-marker": [4]}
    assert "[INST] in the text" in str(found.to_json())


def test_label_noise_is_what_flips_would_break(tmp_path: Path) -> None:
    """One of four repeated comparisons disagrees: 2p(1-p) = 1/4, p = (1 - sqrt(1/2)) / 2."""
    rows: Rows = []
    for index in range(4):
        pair = {"prompt": f"Which one, {index}?", "chosen": "A red one.", "rejected": "A blue one."}
        rows += [pair, pair]
    rows[1] = {**rows[1], "chosen": rows[1]["rejected"], "rejected": rows[1]["chosen"]}
    found = check(tmp_path, rows)
    assert lines(found) == {"contradictory-pair": [1, 2], "duplicate-row": [4, 6, 8]}
    noise = found.label_noise
    assert (noise.twice, noise.disagreeing, noise.triangles) == (4, 1, 0)
    assert noise.estimate == pytest.approx((1 - 0.5**0.5) / 2)
    assert check(tmp_path, CLEAN["ranked"]()).label_noise.estimate is None


def test_label_noise_of_triangles(tmp_path: Path) -> None:
    """One cycle and one order of three: p(1-p) = 1/2 is beyond any p, and is taken as one half."""
    rows: Rows = []
    for prompt, last in (("One?", ("c", "a")), ("Two?", ("a", "c"))):
        for chosen, rejected in (("a", "b"), ("b", "c"), last):
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    found = check(tmp_path, rows)
    assert (found.label_noise.triangles, found.label_noise.cyclic) == (2, 1)
    assert found.label_noise.estimate == 0.5
    assert lines(found) == {"preference-cycle": [1, 2, 3]}


def test_a_cycle_of_five_and_what_hangs_on_it(tmp_path: Path) -> None:
    """Pairs that lead into the cycle or out of it are in no cycle."""
    edges = ["ab", "bc", "cd", "de", "ea", "xa", "cy"]
    rows = [{"prompt": "Which?", "chosen": a * 3, "rejected": b * 3} for a, b in edges]
    assert lines(check(tmp_path, rows)) == {"preference-cycle": [1, 2, 3, 4, 5]}


def test_length_bias_needs_evidence(tmp_path: Path) -> None:
    """5 of 6 is 0.83, but its interval reaches down to 0.44: no warning."""
    rows = CLEAN["preference"]()[:6]
    for row in rows:
        both = sorted((row["chosen"], row["rejected"]), key=len, reverse=row is not rows[5])
        row["chosen"], row["rejected"] = both
    found = check(tmp_path, rows)
    assert lines(found) == {} and found.length_bias is not None
    assert found.length_bias.longer_preferred.mean == pytest.approx(5 / 6)
    assert found.length_bias.longer_preferred.low == pytest.approx(0.4365, abs=1e-4)


def test_rows_that_cannot_be_parsed(tmp_path: Path) -> None:
    rows: list[Any] = CLEAN["preference"]()
    rows[2] = '{"prompt": '
    found = check(tmp_path, rows)
    assert lines(found) == {"malformed-row": [3]} and len(found.rows) == COUNT
    assert found.findings[0].rows[0].note.startswith("not valid JSON: ")


def test_a_file_of_nothing_but_bad_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "a"}] * 3
    assert lines(check(tmp_path, rows)) == {"identical-pair": [1, 2, 3]}
    assert lines(check(tmp_path, ["{", "["])) == {"malformed-row": [1, 2]}


# ---------------------------------------------------------------------- the command


def planted(tmp_path: Path, *faults: str) -> str:
    rows = CLEAN["preference"]()
    for plant in PLANTS:
        if plant.fault in faults and plant.kind == "preference":
            plant.change(rows)
    return write(tmp_path, rows)


@pytest.mark.parametrize(
    ("fault", "level", "code"),
    [
        ("identical-pair", "error", 2),
        ("identical-pair", "never", 0),
        ("duplicate-row", "error", 0),
        ("duplicate-row", "warning", 2),
        ("near-duplicate-row", "warning", 0),
        ("near-duplicate-row", "note", 2),
        ("", "note", 0),
    ],
)
def test_the_exit_code(fault: str, level: str, code: int, tmp_path: Path, capsys: Any) -> None:
    path = planted(tmp_path, fault)
    assert main(["data", "check", path, "--fail-on", level]) == code
    assert main(["data", "check", path, "--fail-on", level, "--json"]) == code
    out = capsys.readouterr()
    assert out.err == ""
    assert json.loads(out.out.splitlines()[-1])["failed"] is (code == 2)


def test_json_names_everything(tmp_path: Path, capsys: Any) -> None:
    path = planted(tmp_path, "identical-pair", "duplicate-row")
    assert main(["data", "check", path, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [f["name"] for f in found["findings"]] == ["identical-pair", "duplicate-row"]
    worst = found["findings"][0]
    assert worst["severity"] == "error" and worst["count"] == 1 and worst["share"] == 1 / 13
    assert worst["rows"] == [{"file": path, "line": 8, "note": "chosen equals rejected"}]
    assert worst["meaning"] == BY_NAME["identical-pair"].meaning and worst["remedy"]
    assert found["files"][0]["rows"] == 13 and found["files"][0]["used"] == 12
    assert set(found["not_checked"]) == {f.name for f in FAULTS if f.needs != "rows"}
    assert found["length_bias"]["pairs"] == 12 and found["label_noise"]["estimate"] == 0.0


def test_what_people_read(tmp_path: Path) -> None:
    path = planted(tmp_path, "identical-pair", "speaker-label")
    out = io.StringIO()
    console = Console(file=out, width=200, highlight=False, color_system=None)
    assert check_files(CheckOptions(files=[path]), console=console) == 2
    text = out.getvalue()
    assert "12 preference rows, 11 usable (chosen equals rejected 1)" in text
    assert "error   identical-pair  1 row (8.33%)" in text
    assert f"{path}:8  chosen equals rejected" in text and "remedy: remove the row" in text
    assert f"{path}:2  Human: in a turn of the assistant" in text
    assert "not looked for without --model MODEL: control-token, " in text
    assert text.rstrip().endswith("1 error, 1 warning (exit code 2: --fail-on error)")


def test_only_the_first_rows_are_printed(tmp_path: Path) -> None:
    rows = CLEAN["preference"]() + CLEAN["preference"]()
    out = io.StringIO()
    console = Console(file=out, width=200, highlight=False, color_system=None)
    options = CheckOptions(files=[write(tmp_path, rows)], rows=2)
    assert check_files(options, console=console) == 0
    text = out.getvalue()
    assert "rows.jsonl:14 " in text and "rows.jsonl:15 " not in text and "and 10 more" in text


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    rows = CLEAN["labelled"]()
    rows.append({"text": rows[0]["text"], "label": "\x1b[31mred"})
    out = io.StringIO()
    check_files(CheckOptions(files=[write(tmp_path, rows)]), console=Console(file=out, width=200))
    assert "\x1b[31m" not in out.getvalue() and "\\x1b[31mred" in out.getvalue()


def test_usage_errors(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(UsageError, match="no file"):
        diagnose(CheckOptions(files=[]))
    assert main(["data", "check"]) == 2
    assert main(["data", "check", str(tmp_path / "nothing.jsonl")]) == 2
    assert main(["data", "check", write(tmp_path, [user("x")])]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.startswith("trimtab: ") for line in errors)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys; from trimtab.cli import main; main(sys.argv[1:]); "
    code += "print({'torch', 'transformers'} & set(sys.modules))"
    path = planted(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code, "data", "check", path],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.rstrip().endswith("set()"), done.stderr


# ---------------------------------------------------------------------- the doctor and training


@pytest.mark.parametrize(("opposed", "refused"), [(1, False), (6, False), (7, True)])
def test_ranks_against_scores_are_judged_as_in_training(
    opposed: int, refused: bool, tmp_path: Path
) -> None:
    """A row that disagrees is a warning and is trained on; more than half of them are neither."""
    rows = CLEAN["ranked"]()
    for row in rows[:opposed]:
        row["scores"] = [0.5, 0.9, 0.1]  # of the ranks 2, 3, 1
    path = write(tmp_path, rows)
    name = "ranks-turned-round" if refused else "order-against-scores"
    found = diagnose(CheckOptions(files=[path]))
    assert lines(found) == {name: list(range(1, opposed + 1))}
    assert found.failed is refused
    spec = DatasetSpec(path=path)
    if refused:
        detail = f"in {3 * opposed} of the 36 pairs of this source that have both"
        assert found.findings[0].detail == f"{path}: {detail}"
        with pytest.raises(DataError, match=detail):
            load_examples([spec], accept={"ranked"})
    else:
        assert load_examples([spec], accept={"ranked"}).report.sources[0].used == COUNT
