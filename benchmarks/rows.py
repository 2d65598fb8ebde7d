"""The pinned rows: line numbers of files, and a hash of what stood on those lines.

The texts themselves are not kept here: their licences do not all allow it. A data file that has
changed is refused, because its figures would not compare with earlier ones.

    python -m benchmarks.rows --data FOLDER     draw the rows anew and write inputs/rows.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

INPUTS = Path(__file__).parent / "inputs"
PINNED = INPUTS / "rows.json"
FIELDS = (
    "text",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "responses",
    "ranks",
    "messages",
)

# Longest text of a row, prompt and longer response together: no tokenizer here makes more than
# max_length tokens of it, so that neither side cuts anything.
LONGEST = 2400

# Characters of a prompt that is answered in the on-policy cases: some 90 tokens on average.
PROMPT = (150, 420)


HARMLESS = "hh_harmless_base"


class RowsChanged(Exception):
    """A data file is not the one that the rows were drawn from."""


def pinned() -> dict[str, Any]:
    """The pins by name: {"files": [{"file", "lines" | "first"}], "sha256", ...}."""
    return json.loads(PINNED.read_text())


def fields_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row is trained on; its source, its margin and so on are left out."""
    return {name: row[name] for name in FIELDS if name in row}


def digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of the rows in their order, independent of how the file spells its JSON."""
    found = hashlib.sha256()
    for row in rows:
        text = json.dumps(fields_of(row), sort_keys=True, ensure_ascii=True)
        found.update(text.encode() + b"\n")
    return found.hexdigest()


def read(name: str, pin: Mapping[str, Any], data: Path) -> list[dict[str, Any]]:
    """The rows of a pin, in its order; ``RowsChanged`` if they are not what was pinned."""
    rows: list[dict[str, Any]] = []
    for part in pin["files"]:
        lines = _lines(data / part["file"])
        wanted = part.get("lines") or range(1, part["first"] + 1)
        if max(wanted) > len(lines):
            raise RowsChanged(
                f"rows {name}: {data / part['file']} has {len(lines)} lines, and line "
                f"{max(wanted)} is pinned"
            )
        rows += [fields_of(json.loads(lines[number - 1])) for number in wanted]
    found = digest(rows)
    if found != pin["sha256"]:
        raise RowsChanged(
            f"rows {name}: SHA-256 {found[:16]}…, pinned is {pin['sha256'][:16]}…; the data in "
            f"{data} are not those that the rows were drawn from"
        )
    return rows


def _lines(path: Path) -> list[str]:
    # Not splitlines(), which also splits at what JSON strings may hold as it is (U+2028).
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")


def as_kind(rows: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Rows as a stage takes them.

    as_is       as they are
    completion  the chosen response of a pair
    prompts     the prompt alone
    plain       pairs or rankings of one answer each as plain text, see ``_dialogue``
    plain-4     the same, rankings cut to their first four responses
    """
    if kind == "as_is":
        return [dict(row) for row in rows]
    if kind == "completion":
        return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    if kind == "prompts":
        return [{"prompt": row["prompt"]} for row in rows]
    assert kind in ("plain", "plain-4"), kind
    return [_plain(first_four(row) if kind == "plain-4" else row) for row in rows]


def first_four(row: Mapping[str, Any]) -> dict[str, Any]:
    """A ranking of the first four responses of a row, with their ranks from 1 to 4."""
    ranks = row["ranks"][:4]
    assert len(set(ranks)) == 4, ranks
    order = sorted(ranks)
    ranked = [order.index(rank) + 1 for rank in ranks]
    return {"prompt": row["prompt"], "responses": row["responses"][:4], "ranks": ranked}


def pairs_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pairs that a trainer without rankings needs for a row: all that its ranks order."""
    if "responses" not in row:
        return [dict(row)]
    ranks = row["ranks"]
    order = sorted(range(len(ranks)), key=lambda i: ranks[i])
    return [
        {
            "prompt": row["prompt"],
            "chosen": row["responses"][winner],
            "rejected": row["responses"][loser],
        }
        for place, winner in enumerate(order)
        for loser in order[place + 1 :]
        if ranks[winner] < ranks[loser]
    ]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"prompt": _dialogue(row["prompt"])}
    for name in ("chosen", "rejected"):
        if name in row:
            found[name] = _answer(row[name])
    if "responses" in row:
        found |= {"responses": [_answer(one) for one in row["responses"]], "ranks": row["ranks"]}
    return found


def _dialogue(prompt: Any) -> str:
    """A conversation as text up to ``assistant:``, at which no byte-level tokenizer joins it.

    The answer begins with a space. The splits before BPE end a word at a colon with a space after
    it, so that prompt and answer have the same ids together and apart.
    """
    turns = [("user", prompt)] if isinstance(prompt, str) else _turns(prompt)
    return "\n\n".join([*(f"{role}: {text}" for role, text in turns), "assistant:"])


def _answer(response: Any) -> str:
    if not isinstance(response, str):
        ((_, response),) = _turns(response)
    return " " + response


def _turns(messages: Iterable[Mapping[str, str]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


# ---------------------------------------------------------------------- drawing


def _length(row: Mapping[str, Any]) -> int:
    def size(value: Any) -> int:
        if isinstance(value, str):
            return len(value)
        # 20 for what a chat template puts around a message.
        return sum(len(message["content"]) + 20 for message in value)

    responses = [size(row[name]) for name in ("chosen", "rejected") if name in row]
    responses += [size(response) for response in row.get("responses", ())]
    return sum(size(row[n]) for n in ("text", "prompt") if n in row) + max(responses, default=0)


def draw(
    data: Path, file: str, count: int, seed: int, keep: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Pin ``count`` rows of a file, drawn without replacement."""
    rows = [json.loads(line) for line in _lines(data / file)]
    fitting = [n for n, row in enumerate(rows, 1) if keep(row) and _length(row) <= LONGEST]
    chosen = random.Random(seed).sample(fitting, count)
    return {
        "files": [{"file": file, "lines": chosen}],
        "sha256": digest(rows[number - 1] for number in chosen),
    }


def first(data: Path, parts: Mapping[str, int]) -> dict[str, Any]:
    """Pin the first rows of files, whatever their length."""
    pin: dict[str, Any] = {"files": [{"file": f, "first": n} for f, n in parts.items()]}
    rows: list[dict[str, Any]] = []
    for file, count in parts.items():
        rows += [json.loads(line) for line in _lines(data / file)[:count]]
    return pin | {"sha256": digest(rows)}


def _short_dialogue(row: Mapping[str, Any]) -> bool:
    """A prompt of Anthropic's harmless-base set with as many characters as ``PROMPT`` says."""
    if row["source"] != HARMLESS:
        return False
    return PROMPT[0] <= sum(len(text) for _, text in _turns(row["prompt"])) <= PROMPT[1]


def _four_in_ascii(row: Mapping[str, Any]) -> bool:
    """At least four responses, in ASCII: of other scripts no tokenizer here knows the words.

    They would take up to a token a byte, and ``LONGEST`` would bound nothing.
    """
    texts = [row["prompt"], *row["responses"]]
    return len(texts) > 4 and all(text.isascii() for text in texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    pins = {
        "hh": draw(data, "preference.jsonl", 256, 1, lambda row: row["source"] == HARMLESS),
        "mix": draw(data, "preference.jsonl", 256, 2, lambda row: True),
        "prompts": draw(data, "preference.jsonl", 128, 5, _short_dialogue),
        "documents": draw(data, "pretrain.jsonl", 256, 3, lambda row: True),
        "kwise": draw(data, "kwise.jsonl", 128, 4, _four_in_ascii),
        "pairs-5000": first(data, {"preference.jsonl": 4920, "preference_eval.jsonl": 80}),
        "chats-5000": first(data, {"sft.jsonl": 5000}),
    }
    PINNED.write_text(json.dumps(pins, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
