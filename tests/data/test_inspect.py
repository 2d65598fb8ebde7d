"""What ``trimtab data inspect`` says is what training would do."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.data.fixtures_tokenizers import make_tokenizer
from tests.data.mask_checks import assistant, user
from tests.data.test_chat import CHATML, CONTROL

from trimtab.data.inspect import Lengths, inspect_file
from trimtab.errors import DataError, UsageError

ROWS = [
    {"prompt": [user("Hi?")], "chosen": [assistant("yes")], "rejected": [assistant("no way")]},
    {"prompt": [user("And?")], "chosen": [assistant("a\nb")], "rejected": [assistant("c" * 40)]},
    {"prompt": [user("Same?")], "chosen": [assistant("s")], "rejected": [assistant("s")]},
]


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    make_tokenizer("bytes, no bos", CHATML, CONTROL).save_pretrained(folder)
    return str(folder)


def write(tmp_path: Path, rows: list[Any], name: str = "rows.jsonl") -> str:
    path = tmp_path / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def printed(path: str, **options: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=160, highlight=False, color_system=None)
    assert inspect_file(path, console=console, **options) == 0
    return out.getvalue()


def found(path: str, **options: Any) -> dict[str, Any]:
    return json.loads(printed(path, as_json=True, **options))


def test_a_preference_file(tmp_path: Path, model: str) -> None:
    text = printed(write(tmp_path, ROWS), model=model)
    assert "rows.jsonl: 3 preference rows" in text
    assert "end in a stop token  4 of 4 (100.0%); stop tokens: <|im_end|>" in text
    assert "masks found by       incremental" in text
    assert "bad rows: 1 of 3" in text and "rows.jsonl:3" in text
    lines = text.splitlines()
    prompt = next(line for line in lines if line.startswith("prompt   ."))
    assert "<|im_start|>·user·\\n·" in prompt.replace("u·s·e·r", "user")
    chosen = next(line for line in lines if line.startswith("chosen   +"))
    assert chosen.rstrip().endswith("<|im_end|>")
    assert "compared: chosen > rejected" in text


def test_plain_rows_for_a_chat_model_are_told(tmp_path: Path, model: str) -> None:
    """Trained as they stand, such rows never meet the template that the model is asked through."""
    plain = {"prompt": "Hi?", "chosen": "yes", "rejected": "no way"}
    assert "chat template        not used: the rows" in printed(
        write(tmp_path, [plain]), model=model
    )
    assert "not used" not in printed(write(tmp_path, ROWS), model=model)
    text = write(tmp_path, [{"text": "Once upon a time."}])
    assert "not used" not in printed(text, model=model)


def test_json_has_every_token_and_its_mask(tmp_path: Path, model: str) -> None:
    data = found(write(tmp_path, ROWS), model=model, rows=1)
    (tree,) = data["trees"]
    assert "".join(tree["prompt"]["tokens"]) == (
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not any(tree["prompt"]["trained"])
    assert ["".join(branch["tokens"]) for branch in tree["branches"]] == [
        "yes<|im_end|>",
        "no way<|im_end|>",
    ]
    assert all(all(branch["trained"]) for branch in tree["branches"])
    assert data["kind"] == "preference" and data["rows"] == 3
    assert data["used"] == 2 and sum(data["bad"].values()) == 1
    assert data["stop_share"] == 1.0 and data["stop_tokens"] == ["<|im_end|>"]
    assert set(data["lengths"]) == {"prompt", "response", "together"}


def test_truncation_is_counted(tmp_path: Path, model: str) -> None:
    path = write(tmp_path, ROWS[:2])
    whole = found(path, model=model)
    longest = whole["lengths"]["together"]["most"]
    cut = found(path, model=model, max_length=longest - 1)
    assert cut["tokenised"]["responses_cut"] == 1 and cut["lengths"]["together"]["most"] < longest
    assert "1 response at max_length" in printed(path, model=model, max_length=longest - 1)
    assert "no --max-length" in printed(path, model=model)


def test_a_prompt_too_long_for_everything_is_shown_and_not_refused(
    tmp_path: Path, model: str
) -> None:
    text = printed(write(tmp_path, ROWS), model=model, max_length=3)
    assert "the prompt leaves no room for a response" in text and "max_length 3" in text


def test_bad_rows_are_named(tmp_path: Path) -> None:
    text = printed(write(tmp_path, [ROWS[0], '{"prompt": ', ROWS[1]]))
    assert "bad rows: 1 of 3" in text and "rows.jsonl:2" in text


def test_without_a_model_nothing_is_tokenised(tmp_path: Path) -> None:
    text = printed(write(tmp_path, ROWS))
    assert "length in characters" in text and "give --model" in text
    assert "chosen: [" in text


def test_columns_and_kind_are_passed_on(tmp_path: Path, model: str) -> None:
    path = write(tmp_path, [{"question": "a ", "good": "b", "bad": "c"}] * 2)
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert found(path, model=model, columns=columns)["kind"] == "preference"
    with pytest.raises(DataError):
        inspect_file(path, kind="preference")


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([{"prompt": "p ", "responses": ["a", "b"], "ranks": [2, 1]}], ["rank 2", "rank 1"]),
        ([{"prompt": "p ", "completion": "a", "label": False}], ["unwanted"]),
        ([{"messages": [user("a"), assistant("b")]}], ["response"]),
        ([{"text": "some text"}], ["response"]),
    ],
)
def test_branches_have_names(tmp_path: Path, model: str, rows: list, names: list[str]) -> None:
    (tree,) = found(write(tmp_path, rows), model=model)["trees"]
    assert [branch["name"] for branch in tree["branches"]] == names


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path, model: str) -> None:
    text = printed(
        write(tmp_path, [{"prompt": "a ", "completion": "\x1b[31mred\x07"}]), model=model
    )
    assert "\x1b" not in text and "\x07" not in text and "\\x1b" in text


def test_a_model_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no tokenizer could be read") as error:
        inspect_file(write(tmp_path, ROWS), model=str(tmp_path / "empty"))
    assert "\n" not in str(error.value) and error.value.exit_code == 2


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        inspect_file(str(tmp_path / "nothing.jsonl"))
    assert "\n" not in str(error.value)


def test_quantiles() -> None:
    assert Lengths.of(range(1, 101)) == (51, 96, 100)
    assert Lengths.of([7]) == (7, 7, 7)
    assert Lengths.of([]) is None
