from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from trimtab.world import (
    gold_reward,
    held_out_requests,
    kwise_rows,
    parse_request,
    preference_probability,
    preference_rows,
    pretrain_documents,
    sft_rows,
    train_requests,
    write_jsonl,
    write_world,
)
from trimtab.world.patterns import read_sentence, split_sentences
from trimtab.world.splits import is_held_out

EVERYTHING: dict[str, Any] = {
    "pretrain": lambda: pretrain_documents(200, seed=3),
    "sft": lambda: sft_rows(200, seed=3),
    "sft_held_out": lambda: sft_rows(50, seed=3, split="held_out"),
    "preference": lambda: preference_rows(200, seed=3),
    "kwise": lambda: kwise_rows(100, seed=3),
    "held_out": lambda: held_out_requests(100, seed=3),
    "train": lambda: train_requests(100, seed=3),
}
# Python promises the sequence of random.random(); these pins promise the rest. A change of the
# language changes them all, and with them every number in docs/world.md.
PINNED = {
    "pretrain": "55fe8f2e425d01f2",
    "sft": "a6ba53c4610d0f37",
    "sft_held_out": "1a92d7d52c44af9b",
    "preference": "42b75ba0b47d9d41",
    "kwise": "b7ddb63fac90df72",
    "held_out": "b9afa2140f35e3e1",
    "train": "0bca197dfc581fdf",
}


def digest(rows: Any) -> str:
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()[:16]


def wanted_in(text: str) -> set[tuple[str, str]]:
    """Every pair of a hero and an object that a text combines, in requests and in stories."""
    pairs: set[tuple[str, str]] = set()
    first, _, rest = text.partition("\n")
    if rest:
        request = parse_request(first)
        pairs.add((request.hero, request.object))
    read = [read_sentence(sentence) for sentence in split_sentences(rest or first)]
    heroes = {sentence.slots["hero"] for sentence in read if "hero" in sentence.slots}
    things = {sentence.slots["object"] for sentence in read if "object" in sentence.slots}
    return pairs | {(hero, thing) for hero in heroes for thing in things}


def training_texts(n: int, seed: int) -> list[str]:
    texts = list(pretrain_documents(n, seed))
    texts += [row["prompt"] + row["completion"] for row in sft_rows(n, seed)]
    for row in preference_rows(n, seed):
        texts += [row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]]
    for ranked in kwise_rows(n // 4, seed):
        texts += [ranked["prompt"] + response for response in ranked["responses"]]
    return texts


@pytest.mark.parametrize("name", EVERYTHING)
def test_rows_are_pinned(name: str):
    assert digest(EVERYTHING[name]()) == PINNED[name]


def test_rows_are_the_same_in_another_process():
    code = (
        "import hashlib, json; from trimtab.world import sft_rows;"
        "print(hashlib.sha256(json.dumps(sft_rows(200, seed=3), ensure_ascii=False)"
        ".encode()).hexdigest()[:16])"
    )
    source = str(Path(__file__).parents[2] / "src")
    for hash_seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": source, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == PINNED["sft"]


def test_the_world_imports_the_standard_library_only():
    code = "import sys, trimtab.world; print('torch' in sys.modules, 'numpy' in sys.modules)"
    source = str(Path(__file__).parents[2] / "src")
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["False", "False"]


def test_a_row_does_not_depend_on_how_many_are_asked_for():
    assert sft_rows(20, 5) == sft_rows(50, 5)[:20]
    assert preference_rows(20, 5) == preference_rows(50, 5)[:20]
    assert kwise_rows(10, 5) == kwise_rows(20, 5)[:10]
    assert pretrain_documents(20, 5) == pretrain_documents(50, 5)[:20]
    assert held_out_requests(20, 5) == held_out_requests(50, 5)[:20]
    assert sft_rows(20, 5) != sft_rows(20, 6)


def test_no_held_out_pair_in_training():
    for seed in (0, 1):
        pairs = set[tuple[str, str]]().union(*map(wanted_in, training_texts(600, seed)))
        assert not {pair for pair in pairs if is_held_out(*pair)}
        assert len(pairs) == 16 * 14


def test_the_scan_rejects_held_out_rows():
    rows = sft_rows(50, 0, split="held_out")
    assert all(
        any(is_held_out(*pair) for pair in wanted_in(row["prompt"] + row["completion"]))
        for row in rows
    )


def test_held_out_requests_are_held_out_and_different():
    prompts = held_out_requests(1000)
    assert len(set(prompts)) == 1000
    assert all(prompt.endswith("\n") and parse_request(prompt).held_out for prompt in prompts)
    assert not any(parse_request(prompt).held_out for prompt in train_requests(1000))
    heroes = {parse_request(prompt).hero for prompt in prompts}
    assert len(heroes) == 16


def test_shapes_of_rows():
    row = sft_rows(1)[0]
    assert list(row) == ["prompt", "completion"]
    assert row["prompt"].count("\n") == 1
    assert "\n" not in row["completion"]
    assert list(preference_rows(1)[0]) == ["prompt", "chosen", "rejected"]
    ranked = kwise_rows(20, k=5)
    assert list(ranked[0]) == ["prompt", "responses", "ranks"]
    assert all(sorted(row["ranks"]) == [1, 2, 3, 4, 5] for row in ranked)
    assert all(len(set(row["responses"])) == 5 for row in ranked)


def test_pretraining_mixes_stories_with_and_without_their_request():
    documents = pretrain_documents(1000)
    asked = sum("\n" in document for document in documents) / 1000
    assert abs(asked - 0.85) < 4 * math.sqrt(0.85 * 0.15 / 1000)


def gold_pairs(noise: float, n: int = 1500) -> list[tuple[float, float]]:
    return [
        (
            gold_reward(row["prompt"], row["chosen"]).total,
            gold_reward(row["prompt"], row["rejected"]).total,
        )
        for row in preference_rows(n, 11, noise)
    ]


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.3])
def test_the_rate_of_wrong_preferences_is_the_annotators(noise: float):
    pairs = gold_pairs(noise)
    wrong = sum(chosen < rejected for chosen, rejected in pairs) / len(pairs)
    expected = mean(
        0.0 if a == b else preference_probability(min(a, b), max(a, b), noise) for a, b in pairs
    )
    error = math.sqrt(expected * (1 - expected) / len(pairs))
    assert abs(wrong - expected) < 4 * error
    twice = mean(
        0.0 if a == b else preference_probability(min(a, b), max(a, b), 2 * noise) for a, b in pairs
    )
    assert abs(wrong - twice) > 4 * error


def test_without_noise_no_preference_is_wrong():
    assert all(chosen >= rejected for chosen, rejected in gold_pairs(0, 300))


def test_write_jsonl(tmp_path: Path):
    rows = sft_rows(3)
    assert write_jsonl(tmp_path / "new" / "rows.jsonl", rows) == 3
    data = (tmp_path / "new" / "rows.jsonl").read_bytes()
    assert data.count(b"\n") == 3
    assert b"\r" not in data
    assert [json.loads(line) for line in data.splitlines()] == rows


def test_write_world(tmp_path: Path):
    written = write_world(tmp_path, seed=4, rows=12, eval_rows=5)
    assert written == {
        f"{name}{suffix}.jsonl": count
        for name in ("pretrain", "sft", "preference", "kwise")
        for suffix, count in (("", 12), ("_eval", 5))
    } | {"prompts_eval.jsonl": 5}
    for name in written:
        for line in (tmp_path / name).read_text(encoding="utf-8").splitlines():
            prompt = json.loads(line).get("prompt")
            assert prompt is None or parse_request(prompt).held_out == ("_eval" in name)
