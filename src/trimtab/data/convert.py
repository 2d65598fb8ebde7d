"""Foreign formats: recognised by their columns and values, rewritten into our columns.

A format says whether a sample of rows looks like it, and rewrites one row; a row that lacks what
the format has is left for the checks of ``formats`` to name. Formats are tried in the order of
``FOREIGN``, each on what the one before made of the sample, because they combine: ShareGPT turns
in ``chosen``, say, beside a prompt that is repeated in front of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

from trimtab.data import fields
from trimtab.data.quarantine import BadRow

Row = dict[str, Any]


@dataclass(frozen=True)
class Foreign:
    """A format of others: its name for the notice, how it is recognised, how a row is rewritten.

    With ``skipped_for_kind`` it is left alone where the user named the kind of the rows: then its
    text is taken as it stands.
    """

    name: str
    matches: Callable[[list[Row]], bool]
    convert: Callable[[Row], Row]
    skipped_for_kind: bool = False


def _mostly(rows: Iterable[bool]) -> bool:
    answers = list(rows)
    return sum(answers) * 2 > len(answers)


# ---- ShareGPT: {"conversations": [{"from": "human", "value": "..."}, ...]} --------------------

_TURN_LISTS = ("conversations", "conversation")
_TURNS = (*_TURN_LISTS, "messages", "prompt", "completion", "chosen", "rejected")
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


def _is_sharegpt(rows: list[Row]) -> bool:
    def shaped(row: Row) -> bool:
        return any(_has_turns(row.get(name)) for name in _TURNS) or any(
            isinstance(row.get(name), list) for name in _TURN_LISTS if "messages" not in row
        )

    return _mostly(shaped(row) for row in rows)


def _has_turns(value: Any) -> bool:
    turns = cast("list[Any]", value) if isinstance(value, list) else [value]
    return bool(turns) and all(isinstance(turn, dict) and "from" in turn for turn in turns)


def _from_sharegpt(row: Row) -> Row:
    new = {name: _turns(value, name) if name in _TURNS else value for name, value in row.items()}
    for name in _TURN_LISTS:
        if name in new:
            # Preference data in this format has the dialogue so far beside the two answers.
            ours = "prompt" if "chosen" in new and "rejected" in new else "messages"
            new[ours] = _with_system(new.pop(name), new)
    return new


def _turns(value: Any, name: str) -> Any:
    """Turns as messages; what is no list of turns is left as it is."""
    if not _has_turns(value):
        return value
    turns = cast("list[Row]", value if isinstance(value, list) else [value])
    return [_turn(turn, f"{name}[{index}]") for index, turn in enumerate(turns)]


def _turn(turn: Row, name: str) -> Row:
    speaker, value = turn["from"], turn.get("value")
    if speaker == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(value, name)}
    role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise BadRow(f"{name}.from", "unknown role", f"{str(speaker)[:30]!r}")
    return {"role": role, "content": value}


def _calls(value: Any, name: str) -> list[Row]:
    try:
        call: Any = json.loads(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRow(f"{name}.value", "not a JSON function call") from error
    calls = cast("list[Any]", call) if isinstance(call, list) else [call]
    return [{"type": "function", "function": one} for one in calls]


def _with_system(messages: Any, row: Row) -> Any:
    """The messages with the row's ``system`` text, where it has one, in front."""
    system = row.pop("system", None)
    if not isinstance(system, str | None):
        raise BadRow("system", "not text", f"found {fields.found(system)}")
    if not system or not isinstance(messages, list):
        return messages
    return [{"role": "system", "content": system}, *cast("list[Row]", messages)]


# ---- Alpaca: {"instruction": ..., "input": ..., "output": ..., "system", "history"} -----------

_ALPACA = ("instruction", "input", "system", "history")


def _is_alpaca(rows: list[Row]) -> bool:
    def shaped(row: Row) -> bool:
        answered = row.get("output") is not None or {"chosen", "rejected"} <= row.keys()
        return row.get("instruction") is not None and answered and row.get("prompt") is None

    return _mostly(shaped(row) for row in rows)


def _from_alpaca(row: Row) -> Row:
    """LLaMA-Factory's reading: the input follows the instruction after a line break."""
    new = {name: value for name, value in row.items() if name not in _ALPACA}
    instruction = fields.plain(fields.required(row, "instruction"), "instruction")
    extra = row.get("input")
    if not isinstance(extra, str | None):
        raise BadRow("input", "not text", f"found {fields.found(extra)}")
    query = f"{instruction}\n{extra}" if extra and not extra.isspace() else instruction
    past = _history(row.get("history"))
    dialogue = [*past, {"role": "user", "content": query}]
    new["prompt"] = _with_system(dialogue, dict(row))
    if not {"chosen", "rejected"} <= row.keys():
        new["completion"] = _said(fields.plain(fields.required(row, "output"), "output"))
        del new["output"]
    for name in ("chosen", "rejected"):
        if name in new:
            new[name] = _said(new[name])
    if isinstance(row.get("kto_tag"), bool):
        new["label"] = new.pop("kto_tag")
    return new


def _history(value: Any) -> list[Row]:
    if not isinstance(value, list | None):
        raise BadRow("history", "not a list", f"found {fields.found(value)}")
    turns: list[Row] = []
    for index, pair in enumerate(cast("list[Any]", value or [])):
        if not isinstance(pair, list) or len(cast("list[Any]", pair)) != 2:
            raise BadRow(f"history[{index}]", "not a pair", "wanted [instruction, answer]")
        said, answered = cast("list[Any]", pair)
        turns += [{"role": "user", "content": said}, {"role": "assistant", "content": answered}]
    return turns


def _said(value: Any) -> Any:
    return [{"role": "assistant", "content": value}] if isinstance(value, str) else value


# ---- Anthropic HH: "\n\nHuman: ...\n\nAssistant: ..." in chosen and rejected ------------------

_HH_START = re.compile(r"\s*Human:")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def _is_hh(rows: list[Row]) -> bool:
    def shaped(row: Row) -> bool:
        prompt = row.get("prompt")
        texts = [prompt] if isinstance(prompt, str) else [row.get("chosen"), row.get("rejected")]
        answers = isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str)
        return answers and all(
            isinstance(text, str) and _HH_START.match(text) and "\n\nAssistant:" in text
            for text in texts
        )

    return _mostly(shaped(row) for row in rows)


def _from_hh(row: Row) -> Row:
    """Turns as messages; a prompt that ends in "Assistant:" is put in front of both answers."""
    new = dict(row)
    prompt = new.pop("prompt", None) or ""
    for name in ("chosen", "rejected"):
        answer = fields.plain(fields.required(row, name), name)
        if isinstance(prompt, str):
            new[name] = _dialogue(prompt + answer, name)
    return new


def _dialogue(text: str, name: str) -> list[Row]:
    parts = _HH_TURN.split("\n\n" + text.lstrip())
    if len(parts) < 3 or parts[0].strip():
        raise BadRow(name, "not of the form Human: ... Assistant: ...")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": roles[speaker], "content": said.strip()} for speaker, said in pairs]


# ---- UltraFeedback-binarised: a prompt beside two whole conversations that begin with it ------

_WHOLE = ("system", "developer", "user")


def _is_repeated(rows: list[Row]) -> bool:
    return _mostly(_repeats(row) for row in rows)


def _repeats(row: Row) -> bool:
    if row.get("prompt") is None:
        return False
    return all(_role_of_first(row.get(name)) in _WHOLE for name in ("chosen", "rejected"))


def _role_of_first(value: Any) -> Any:
    """The role of the first message; None where the value is no list of objects."""
    turns = cast("list[Any]", value) if isinstance(value, list) else []
    if not turns or not all(isinstance(turn, dict) for turn in turns):
        return None
    return turns[0].get("role")


def _from_repeated(row: Row) -> Row:
    """The prompt is taken from the conversations, after a check that it is the one in them."""
    if not _repeats(row):
        return row
    chosen, prompt = cast("list[Row]", row["chosen"]), row["prompt"]
    if isinstance(prompt, str):
        said = [turn.get("content") for turn in chosen if turn.get("role") == "user"]
        same = prompt.strip() in [text.strip() for text in said if isinstance(text, str)]
    else:
        same = isinstance(prompt, list) and prompt == chosen[: len(cast("list[Row]", prompt))]
    if not same:
        raise BadRow("prompt", "not the start of chosen", "though chosen is a whole conversation")
    return {name: value for name, value in row.items() if name != "prompt"}


# ---- RewardBench: a request as text, beside answers of models that its columns name -----------

_BENCH_COLUMNS = {"subset", "id", "chosen_model", "rejected_model"}


def _is_reward_bench(rows: list[Row]) -> bool:
    def shaped(row: Row) -> bool:
        texts = [row.get(name) for name in ("prompt", "chosen", "rejected")]
        return row.keys() >= _BENCH_COLUMNS and all(isinstance(text, str) for text in texts)

    return _mostly(shaped(row) for row in rows)


def _from_reward_bench(row: Row) -> Row:
    """As the benchmark reads it: the request is what a user said, the answers an assistant."""
    new = dict(row) | {"prompt": _asked(row)}
    for name in ("chosen", "rejected"):
        new[name] = _said(fields.plain(fields.required(row, name), name))
    return new


def _asked(row: Row) -> Any:
    prompt = fields.required(row, "prompt")
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


# ---- RewardBench 2: lists of right and wrong answers to one request ---------------------------


def _is_lists(rows: list[Row]) -> bool:
    return _mostly(
        all(_are_texts(row.get(name)) for name in ("chosen", "rejected")) for row in rows
    )


def _are_texts(value: Any) -> bool:
    texts = cast("list[Any]", value) if isinstance(value, list) else []
    return bool(texts) and all(isinstance(text, str) for text in texts)


def _from_lists(row: Row) -> Row:
    """A ranking: all right answers first, all wrong ones second."""
    new = {name: value for name, value in row.items() if name not in ("chosen", "rejected")}
    responses: list[Any] = []
    ranks: list[int] = []
    for rank, name in enumerate(("chosen", "rejected"), start=1):
        texts = fields.required(row, name)
        if not isinstance(texts, list):
            raise BadRow(name, "not a list", f"found {fields.found(texts)}")
        answers = cast("list[Any]", texts)
        responses += [_said(fields.plain(one, f"{name}[{i}]")) for i, one in enumerate(answers)]
        ranks += [rank] * len(answers)
    return new | {"prompt": _asked(row), "responses": responses, "ranks": ranks}


FOREIGN: tuple[Foreign, ...] = (
    Foreign("ShareGPT (conversations, from, value)", _is_sharegpt, _from_sharegpt),
    Foreign("Alpaca (instruction, input, output)", _is_alpaca, _from_alpaca),
    Foreign(
        "Anthropic HH text (Human: ... Assistant: ...)", _is_hh, _from_hh, skipped_for_kind=True
    ),
    Foreign(
        "UltraFeedback-binarised (prompt repeated in chosen and rejected)",
        _is_repeated,
        _from_repeated,
    ),
    Foreign("RewardBench", _is_reward_bench, _from_reward_bench, skipped_for_kind=True),
    Foreign("RewardBench 2 (lists in chosen and rejected)", _is_lists, _from_lists),
)
