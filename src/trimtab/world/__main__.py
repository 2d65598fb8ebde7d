"""``python -m trimtab.world``: the figures and samples of docs/world.md, or the rows as files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import prod, sqrt
from statistics import mean, stdev

from trimtab.world.corpus import preference_rows, write_world
from trimtab.world.draws import Draw
from trimtab.world.gold import WEIGHTS, GoldScore, gold_reward
from trimtab.world.grammar import (
    CARELESS,
    IDEAL,
    ORDINARY,
    Quality,
    Request,
    Teller,
    draw_request,
    tell,
)
from trimtab.world.lexicon import COLOURS, MOODS, NAMES, OBJECTS, PLACES, SPECIES

Speaker = Callable[[Request, Draw], str]


def _fixed(quality: Quality) -> Speaker:
    return lambda request, draw: tell(request, quality, draw)


def _told_by(teller: Teller) -> Speaker:
    return lambda request, draw: tell(request, teller.draw_quality(request, draw), draw)


def _off_topic(request: Request, draw: Draw) -> str:
    return tell(draw_request(draw, held_out=True), IDEAL, draw)


def _shuffled_words(request: Request, draw: Draw) -> str:
    words = tell(request, IDEAL, draw).split()
    return " ".join(draw.pick(words) for _ in words)


def _letters(request: Request, draw: Draw) -> str:
    return "".join(draw.pick("abcdefghijklmnopqrstuvwxyz    .") for _ in range(300))


SPEAKERS: dict[str, Speaker] = {
    "no fault (ceiling)": _fixed(IDEAL),
    "plain in tone": _fixed(Quality(tones=("plain", "plain", "plain"))),
    "rude": _fixed(Quality(tones=("rude", "rude", "rude"))),
    "no fault, but on another request": _off_topic,
    "the ordinary teller (sft, preferences)": _told_by(ORDINARY),
    "the careless teller (pretraining)": _told_by(CARELESS),
    "every fault at once": _fixed(
        Quality(("hero", "goal", "place"), "help", ("rude", "rude", "rude"), False, 4)
    ),
    "words of a good story, shuffled": _shuffled_words,
    "random letters (floor)": _letters,
}


def gold_table(n: int) -> str:
    """Return a Markdown table: mean gold reward of each way to answer n held-out requests."""
    lines = [
        "| answers | gold reward | " + " | ".join(WEIGHTS) + " |",
        "|---|---|" + "---|" * len(WEIGHTS),
    ]
    for name, speaker in SPEAKERS.items():
        scores: list[GoldScore] = []
        for index in range(n):
            draw = Draw("figures", name, index)
            request = draw_request(draw, held_out=True)
            scores.append(gold_reward(request, speaker(request, draw)))
        totals = [score.total for score in scores]
        parts = " | ".join(f"{mean(score.parts[part] for score in scores):.2f}" for part in WEIGHTS)
        error = stdev(totals) / sqrt(n)
        lines.append(f"| {name} | {mean(totals):.3f} ± {1.96 * error:.3f} | {parts} |")
    return "\n".join(lines)


def agreement_table(n: int) -> str:
    """Return a Markdown table: how often annotators of each noise prefer the better story."""
    lines = ["| noise | better story preferred | ties in gold |", "|---|---|---|"]
    for noise in (0.0, 0.05, 0.1, 0.2, 0.4):
        gaps = [
            gold_reward(row["prompt"], row["chosen"]).total
            - gold_reward(row["prompt"], row["rejected"]).total
            for row in preference_rows(n, 0, noise)
        ]
        told_apart = [gap for gap in gaps if gap != 0]
        right = mean(float(gap > 0) for gap in told_apart)
        lines.append(f"| {noise} | {right:.3f} | {1 - len(told_apart) / n:.3f} |")
    return "\n".join(lines)


def samples() -> str:
    """Return one request with an ideal and an ordinary story, and the parts of their reward."""
    request = draw_request(Draw("sample", 4))
    lines = [f"> {request.text}"]
    for speaker in (_fixed(IDEAL), _told_by(ORDINARY)):
        story = speaker(request, Draw("sample story", 2))
        score = gold_reward(request, story)
        parts = ", ".join(f"{name} {value:.2f}" for name, value in score.parts.items())
        lines += ["", story, "", f"gold reward {score.total:.2f}: {parts}"]
    return "\n".join(lines)


def main() -> None:
    """Print the figures, or write the rows."""
    parser = argparse.ArgumentParser(prog="python -m trimtab.world", description=__doc__)
    parser.add_argument("--write", metavar="FOLDER", help="write the rows as JSONL files and stop")
    parser.add_argument("--rows", type=int, default=4000, help="training rows of each kind")
    parser.add_argument("--eval-rows", type=int, default=500, help="held-out rows of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the rows that are written")
    chosen = parser.parse_args()
    if chosen.write is not None:
        written = write_world(
            chosen.write, seed=chosen.seed, rows=chosen.rows, eval_rows=chosen.eval_rows
        )
        for name, count in written.items():
            print(f"{count:6} rows  {chosen.write}/{name}")
        return
    requests = prod(map(len, (NAMES, SPECIES, COLOURS, OBJECTS, PLACES)))
    print(f"{requests:,} requests, {requests * (1 + len(MOODS)):,} with a mood or without\n")
    print(gold_table(1000), agreement_table(4000), samples(), sep="\n\n")


if __name__ == "__main__":
    main()
