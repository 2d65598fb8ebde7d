"""Pinned rows: what has changed is refused, what is only spelt differently is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rows
from trimtab.config.data_keys import DatasetSpec
from trimtab.data.chat import ChatRenderer
from trimtab.data.sources import load_examples
from trimtab.data.tokenise import TokeniseOptions, tokenise
from trimtab.models.tokenizers import train_byte_level_bpe


def pair(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"p{number}", "chosen": "a\u2028b", "rejected": "c", **more}


def ranking(*ranks: int) -> dict[str, Any]:
    return {
        "prompt": "in a room",
        "responses": [f"{letter} is one of them" for letter in "abcdefghi"[: len(ranks)]],
        "ranks": list(ranks),
    }


def chat(question: str, *answers: str) -> dict[str, Any]:
    said = [[{"role": "assistant", "content": answer}] for answer in answers]
    prompt = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "well"},
        {"role": "user", "content": question},
    ]
    return {"prompt": prompt, "chosen": said[0], "rejected": said[1]}


def write(folder: Path, found: list[dict[str, Any]], **options: Any) -> None:
    text = "".join(json.dumps(row, **options) + "\n" for row in found)
    (folder / "pairs.jsonl").write_text(text, encoding="utf-8")


def draw(folder: Path) -> dict[str, Any]:
    return rows.draw(folder, "pairs.jsonl", 3, 7, lambda row: row["prompt"] != "p2")


def test_rows_come_back_in_the_pinned_order(tmp_path: Path) -> None:
    write(tmp_path, [pair(n, source="s") for n in range(8)])
    pin = draw(tmp_path)
    assert pin == draw(tmp_path)
    lines = pin["files"][0]["lines"]
    assert len(set(lines)) == 3 and 3 not in lines
    assert rows.read("x", pin, tmp_path) == [pair(line - 1) for line in lines]


def test_spelling_and_other_columns_do_not_matter(tmp_path: Path) -> None:
    write(tmp_path, [pair(n, source="s") for n in range(8)])
    pin = draw(tmp_path)
    write(tmp_path, [{"margin": 1, **pair(n)} for n in range(8)], ensure_ascii=False)
    assert len(rows.read("x", pin, tmp_path)) == 3


def test_a_changed_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [pair(n) for n in range(8)])
    pin = draw(tmp_path)
    changed = [pair(n) for n in range(8)]
    changed[pin["files"][0]["lines"][1] - 1]["rejected"] = "d"
    write(tmp_path, changed)
    with pytest.raises(rows.RowsChanged, match="rows x: SHA-256"):
        rows.read("x", pin, tmp_path)


def test_a_shorter_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [pair(n) for n in range(8)])
    pin = rows.first(tmp_path, {"pairs.jsonl": 6})
    assert [row["prompt"] for row in rows.read("x", pin, tmp_path)] == [f"p{n}" for n in range(6)]
    write(tmp_path, [pair(n) for n in range(5)])
    with pytest.raises(rows.RowsChanged, match="has 5 lines, and line 6 is pinned"):
        rows.read("x", pin, tmp_path)


def test_long_rows_are_not_drawn(tmp_path: Path) -> None:
    found = [pair(n) for n in range(8)]
    for number in range(0, 8, 2):
        found[number]["chosen"] = "x" * rows.LONGEST
    write(tmp_path, found)
    assert all(line % 2 == 0 for line in draw(tmp_path)["files"][0]["lines"])


def test_the_longest_response_of_a_ranking_counts(tmp_path: Path) -> None:
    found = [ranking(1, 2, 3, 4) for _ in range(4)]
    found[2]["responses"][3] = "x" * rows.LONGEST
    write(tmp_path, found)
    pin = rows.draw(tmp_path, "pairs.jsonl", 3, 7, lambda row: len(row["responses"]) >= 4)
    assert sorted(pin["files"][0]["lines"]) == [1, 2, 4]
    # Neither which response is best nor what it says may change.
    for name, value in (("ranks", [2, 1, 3, 4]), ("responses", ["x"] * 4)):
        write(tmp_path, [{**row, name: value} for row in found])
        with pytest.raises(rows.RowsChanged, match="SHA-256"):
            rows.read("x", pin, tmp_path)


def test_the_checked_in_pins_are_whole() -> None:
    for name, pin in rows.pinned().items():
        assert len(pin["sha256"]) == 64, name
        for part in pin["files"]:
            lines = part.get("lines")
            assert part["first"] >= 1 if lines is None else len(set(lines)) == len(lines), name


def test_completions_are_the_chosen_responses() -> None:
    assert rows.as_kind([pair(0)], "completion") == [{"prompt": "p0", "completion": "a\u2028b"}]


def test_prompts_alone_without_their_answers() -> None:
    assert rows.as_kind([pair(0)], "prompts") == [{"prompt": "p0"}]


def test_prompts_of_some_ninety_tokens_are_drawn() -> None:
    def row(characters: int, source: str = rows.HARMLESS) -> dict[str, Any]:
        said = [{"role": "user", "content": "x" * (characters - 5)}]
        said += [{"role": "assistant", "content": "12345"}]
        return {"prompt": said, "source": source}

    low, high = rows.PROMPT
    found = [rows._short_dialogue(row(n)) for n in (low - 1, low, high, high + 1)]
    assert found == [False, True, True, False]
    assert not rows._short_dialogue(row(low, source="other"))


def test_rankings_are_cut_to_their_first_four() -> None:
    assert rows.first_four(ranking(5, 1, 4, 2, 3))["ranks"] == [4, 1, 3, 2]
    assert rows.first_four(ranking(5, 1, 4, 2, 3))["responses"] == ranking(1, 2, 3, 4)["responses"]
    assert rows.first_four(ranking(2, 1, 4, 3)) == ranking(2, 1, 4, 3)


def test_a_ranking_is_six_pairs_the_better_response_first() -> None:
    found = rows.pairs_of(ranking(3, 1, 4, 2))
    assert {row["prompt"] for row in found} == {"in a room"}
    letters = [row["chosen"][0] + row["rejected"][0] for row in found]
    # Best to worst: b, d, a, c. Wrong variants: worse first, or the order of the file.
    assert letters == ["bd", "ba", "bc", "da", "dc", "ac"]
    assert len(rows.pairs_of(ranking(1, 1, 2))) == 2  # a tie is no pair
    assert rows.pairs_of(pair(0)) == [pair(0)]


def test_plain_rows_are_text_that_ends_before_the_answer() -> None:
    (found,) = rows.as_kind([chat("so?", "yes", "no")], "plain")
    assert found == {
        "prompt": "user: first\n\nassistant: well\n\nuser: so?\n\nassistant:",
        "chosen": " yes",
        "rejected": " no",
    }
    (found,) = rows.as_kind([ranking(2, 1, 5, 4, 3)], "plain-4")
    assert found["prompt"] == "user: in a room\n\nassistant:"
    assert found["responses"][1] == " b is one of them" and found["ranks"] == [2, 1, 4, 3]


NASTY = ("yes", "In part", "\n\nyes", "  two", "'s", "7", ":", "é", "\u2028x", "\tx", "- a\n- b ")


def test_plain_rows_have_the_same_ids_together_and_apart(tmp_path: Path) -> None:
    """trimtab encodes prompt and response apart, a trainer of pairs their sum; both add EOS."""
    texts = [f"in a room{text}" for text in NASTY] * 3
    tokenizer: Any = train_byte_level_bpe(texts, 320, chat_template=None)
    given = [chat("in a room", text, "no") for text in NASTY]
    plain = rows.as_kind(given, "plain")
    named = rows.write(tmp_path / "rows.jsonl", plain)
    loaded = load_examples([DatasetSpec(path=str(named))])
    # Not taken for a foreign form and turned into messages.
    assert [example.prompt for example in loaded.examples[0]] == [row["prompt"] for row in plain]  # type: ignore[union-attr]
    renderer = ChatRenderer(tokenizer)
    apart_differs = 0
    for example, row, text in zip(loaded.examples[0], plain, NASTY, strict=True):
        found = tokenise(example, renderer, TokeniseOptions(scored=True))
        assert isinstance(found, list)
        tree = found[0]
        together = tokenizer(row["prompt"] + row["chosen"] + tokenizer.eos_token).input_ids
        assert [*tree.trunk.ids, *tree.branches[0].ids] == together, text
        assert together[-1] == tokenizer.eos_token_id != tokenizer.pad_token_id
        joined = tokenizer("in a room" + text).input_ids
        apart_differs += joined != tokenizer("in a room").input_ids + tokenizer(text).input_ids
    assert apart_differs  # as the rows are written in the file, some would not
