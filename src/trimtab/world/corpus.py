"""Rows of every kind that a stage trains on, as pure functions of (seed, kind, index).

Row i is the same whatever number of rows is asked for, on every machine. A prompt is a request
and a line break; a completion is a story on one line, without a line break or a stop token.
Training rows never combine a hero with an object that is held out for it (splits.py); rows of the
split "held_out" are the same kinds of rows for held-out requests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from trimtab.world.annotators import NOISE, prefer, rank_stories
from trimtab.world.draws import Draw
from trimtab.world.grammar import (
    CARELESS,
    IDEAL,
    ORDINARY,
    Request,
    Teller,
    draw_request,
    tell,
)

Split = Literal["train", "held_out"]


# Share of the pre-training documents that begin with the request they answer.
ASKED = 0.85


class CompletionRow(TypedDict):
    """A row for sft."""

    prompt: str
    completion: str


class PreferenceRow(TypedDict):
    """A row for dpo and its family, and for pairwise reward models."""

    prompt: str
    chosen: str
    rejected: str


class RankedRow(TypedDict):
    """A row for K-wise reward models; ``ranks`` has 1 for the best and no ties."""

    prompt: str
    responses: list[str]
    ranks: list[int]


def pretrain_documents(n: int, seed: int = 0, *, teller: Teller = CARELESS) -> list[str]:
    """Return n documents: stories alone, and requests with the story that answers them."""
    documents: list[str] = []
    for index in range(n):
        draw = Draw("pretrain", seed, index)
        request = draw_request(draw)
        prompt = _prompt(request, draw) if draw.chance(ASKED) else ""
        documents.append(prompt + _story(request, teller, draw))
    return documents


def sft_rows(
    n: int, seed: int = 0, *, teller: Teller = ORDINARY, split: Split = "train"
) -> list[CompletionRow]:
    """Return n demonstrations by one teller."""
    rows: list[CompletionRow] = []
    for index in range(n):
        draw = Draw("sft", split, seed, index)
        request = draw_request(draw, held_out=split == "held_out")
        prompt = _prompt(request, draw)
        rows.append({"prompt": prompt, "completion": _story(request, teller, draw)})
    return rows


def preference_rows(
    n: int,
    seed: int = 0,
    noise: float = NOISE,
    *,
    teller: Teller = ORDINARY,
    split: Split = "train",
) -> list[PreferenceRow]:
    """Return n pairs of different stories by one teller, compared by a Bradley-Terry annotator."""
    rows: list[PreferenceRow] = []
    for index in range(n):
        draw = Draw("preference", split, seed, index)
        prompt, stories = _told(draw, 2, teller, split)
        chosen, rejected = prefer(prompt, stories[0], stories[1], draw, noise)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def kwise_rows(
    n: int,
    seed: int = 0,
    noise: float = NOISE,
    *,
    k: int = 4,
    teller: Teller = ORDINARY,
    split: Split = "train",
) -> list[RankedRow]:
    """Return n rows of k different stories by one teller, ranked by a Plackett-Luce annotator."""
    rows: list[RankedRow] = []
    for index in range(n):
        draw = Draw("kwise", split, seed, index)
        prompt, stories = _told(draw, k, teller, split)
        ranks = rank_stories(prompt, stories, draw, noise)
        rows.append({"prompt": prompt, "responses": stories, "ranks": ranks})
    return rows


def held_out_requests(n: int, seed: int = 0) -> list[str]:
    """Return n different prompts whose hero and object occur together in no training row."""
    return _requests(n, seed, held_out=True)


def train_requests(n: int, seed: int = 0) -> list[str]:
    """Return n different prompts to sample responses for: combinations that training may use."""
    return _requests(n, seed, held_out=False)


def ideal_story(request: Request, seed: int = 0) -> str:
    """Return a story with the full gold reward."""
    return tell(request, IDEAL, Draw("ideal", seed, request.text))


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as UTF-8 JSON, one a line, and return how many; missing folders are made.

    The bytes are the same on every platform (``\\n`` line ends, keys in the rows' own order). The
    file is there whole or not at all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    temporary.replace(path)
    return count


def write_world(
    folder: str | Path, *, seed: int = 0, rows: int = 4000, eval_rows: int = 500
) -> dict[str, int]:
    """Write the files that recipes train on and return the rows of each by its name.

    ``pretrain``, ``sft``, ``preference`` and ``kwise`` have ``rows`` rows of training combinations;
    the same names with ``_eval`` and ``prompts_eval`` have ``eval_rows`` rows of held-out ones.
    """
    held_out: Split = "held_out"
    held_out_sft = sft_rows(eval_rows, seed, split=held_out)
    files: dict[str, Sequence[Mapping[str, Any]]] = {
        "pretrain": [{"text": document} for document in pretrain_documents(rows, seed)],
        "pretrain_eval": [{"text": row["prompt"] + row["completion"]} for row in held_out_sft],
        "sft": sft_rows(rows, seed),
        "sft_eval": held_out_sft,
        "preference": preference_rows(rows, seed),
        "preference_eval": preference_rows(eval_rows, seed, split=held_out),
        "kwise": kwise_rows(rows, seed),
        "kwise_eval": kwise_rows(eval_rows, seed, split=held_out),
        "prompts_eval": [{"prompt": prompt} for prompt in held_out_requests(eval_rows, seed)],
    }
    return {
        f"{name}.jsonl": write_jsonl(Path(folder) / f"{name}.jsonl", content)
        for name, content in files.items()
    }


def _prompt(request: Request, draw: Draw) -> str:
    return request.phrase(draw) + "\n"


def _story(request: Request, teller: Teller, draw: Draw) -> str:
    return tell(request, teller.draw_quality(request, draw), draw)


def _told(draw: Draw, count: int, teller: Teller, split: Split) -> tuple[str, list[str]]:
    """Return a prompt and this many different stories for it."""
    request = draw_request(draw, held_out=split == "held_out")
    prompt = _prompt(request, draw)
    stories: list[str] = []
    while len(stories) < count:
        story = _story(request, teller, draw)
        if story not in stories:
            stories.append(story)
    return prompt, stories


def _requests(n: int, seed: int, *, held_out: bool) -> list[str]:
    seen: dict[str, None] = {}
    index = 0
    while len(seen) < n:
        draw = Draw("requests", int(held_out), seed, index)
        seen[_prompt(draw_request(draw, held_out=held_out), draw)] = None
        index += 1
    return list(seen)
