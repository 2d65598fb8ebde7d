"""``python -m trimtab.world.calibrate``: how well a reward can be learned here, and be gamed.

A reward model (the demo's pretrained model, cut to half of its size, with one scalar on the last
token of a story) learns from pairs of the ordinary teller by ``trimtab reward``. Printed are its
accuracy on held-out pairs; the gold reward of the best of n stories of the sft model by its choice;
and what becomes of the gold reward when a search adds and drops sentences to raise the learned one.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import trimtab
from trimtab.data.rows import CompletionExample
from trimtab.data.tokenise import Drop
from trimtab.data.trees import Origin, TokenTree
from trimtab.evaluation.best_of_n import expected_best
from trimtab.evaluation.statistics import bootstrap_interval, clustered_share, paired_bootstrap
from trimtab.rewards.reward_model import RewardModel
from trimtab.world.annotators import rank_stories
from trimtab.world.command import exit_code
from trimtab.world.corpus import RankedRow, held_out_requests, preference_rows, write_jsonl
from trimtab.world.demo_stories import Storyteller
from trimtab.world.draws import Draw
from trimtab.world.gold import gold_reward
from trimtab.world.grammar import parse_request
from trimtab.world.lexicon import NAMES, REPLIES, THANKS
from trimtab.world.patterns import fill, split_sentences

BATCH = 16  # pairs a step
# The recipe's rate is for models of a hundred million weights; a quarter of a million need more.
TRAINING = {
    "learning_rate": 1e-3,
    "min_lr_ratio": 0.0,
    "warmup_steps": 0.05,
    "weight_decay": 0.01,
    "max_length": 256,  # no story is cut
    "precision": "fp32",
    "save_total_limit": 1,
}
TELLER_PAIRS = 1000  # held out
JUDGED = 32  # stories on each request that are compared two by two
EDITS = 6
EDITED = 24  # requests whose stories are edited: every edit of every sentence is tried


# ---------------------------------------------------------------------- the reward model


def train(
    base: Path, rows: Sequence[Mapping[str, Any]], folder: Path, **keys: Any
) -> dict[str, Any]:
    """Train a reward model in ``folder/model`` by ``trimtab reward``; returns its results.

    ``base`` is the model that it starts as, ``keys`` are the recipe's. The rows are written to
    ``folder/rows.jsonl``. Raises KeyboardInterrupt where Ctrl-C ended the run.
    """
    path = folder / "rows.jsonl"
    write_jsonl(path, rows)
    run = trimtab.reward(
        model_name_or_path=str(base),
        dataset_name=str(path),
        output_dir=str(folder / "model"),
        cache_dir=str(folder / "cache"),
        **{**TRAINING, **keys},
    )
    if run.interrupted:
        raise KeyboardInterrupt
    return run.results


def rewards(
    model: RewardModel, requests: Sequence[str], stories: Sequence[Sequence[str]]
) -> list[list[float]]:
    """Learned rewards of the stories on each request; none of them is blank."""
    trees = [_tree(model, *asked) for asked in zip(requests, stories, strict=True)]
    return model.score_trees(trees)


def _tree(model: RewardModel, request: str, stories: Sequence[str]) -> TokenTree:
    """A request, read once, and a branch for every story on it."""
    examples = [
        CompletionExample(origin=Origin("stories", number), prompt=request, completion=story)
        for number, story in enumerate(stories, 1)
    ]
    found: list[TokenTree] = []
    for trees in model.trees(examples):
        assert not isinstance(trees, Drop), trees
        found += trees
    return found[0]._replace(branches=tuple(tree.branches[0] for tree in found))


# ---------------------------------------------------------------------- accuracy


class Tally(NamedTuple):
    """Pairs by request: how many a score puts in the order of the ranks, and how many there are."""

    right: list[float]
    pairs: list[int]


def tally(rows: Sequence[RankedRow], scores: Sequence[Sequence[float]]) -> Tally:
    """Count the ordered pairs of each request; one whose scores are equal is half right."""
    right: dict[str, float] = {}
    pairs: dict[str, int] = {}
    for row, of_row in zip(rows, scores, strict=True):
        prompt = row["prompt"]
        for one, other in itertools.combinations(range(len(of_row)), 2):
            order = row["ranks"][other] - row["ranks"][one]
            if order == 0:
                continue
            gap = of_row[one] - of_row[other]
            right[prompt] = right.get(prompt, 0.0) + (0.5 if gap == 0 else float(gap * order > 0))
            pairs[prompt] = pairs.get(prompt, 0) + 1
    return Tally(list(right.values()), list(pairs.values()))


def gold_scores(rows: Sequence[RankedRow]) -> list[list[float]]:
    """The gold reward of every response."""
    return [[gold_reward(row["prompt"], story).total for story in row["responses"]] for row in rows]


def ranked_by_gold(rows: Sequence[RankedRow]) -> list[RankedRow]:
    """The same rows in the order of the gold reward, which never errs; ties stay ties."""
    return [
        {**row, "ranks": [1 + sum(other > gold for other in every) for gold in every]}
        for row, every in zip(rows, gold_scores(rows), strict=True)
    ]


def accuracy(model: RewardModel, name: str, rows: Sequence[RankedRow]) -> None:
    """Print how often the preferred story of a pair has the higher reward."""
    scores = rewards(model, [row["prompt"] for row in rows], [row["responses"] for row in rows])
    told = tally(rows, scores)
    cells = [
        # All of few pairs may be tied in gold, by a model that answers nothing.
        _cell(clustered_share(*one)) if one.pairs else "-"
        for one in (told, tally(ranked_by_gold(rows), scores))
    ]
    print(f"| {name} | {cells[0]} | {cells[1]} | {sum(told.pairs)} |", flush=True)


def _cell(found: Any) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def teller_pairs(count: int, seed: int) -> list[RankedRow]:
    """Held-out pairs of the ordinary teller, with the preferred story first."""
    return [
        {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]], "ranks": [1, 2]}
        for row in preference_rows(count, seed, split="held_out")
    ]


def own_stories(folder: Path, requests: Sequence[str], each: int, seed: int) -> list[list[str]]:
    """Stories of a model on each request, ``each`` of them but for blank ones."""
    told = [
        one.story.strip() for one in Storyteller(folder).tell(requests, each, seed, "calibrate")
    ]
    return [
        [story for story in told[first : first + each] if story]
        for first in range(0, len(told), each)
    ]


def own_pairs(requests: Sequence[str], samples: Sequence[Sequence[str]]) -> list[RankedRow]:
    """Neighbours among a model's stories on a request, compared by an annotator."""
    rows: list[RankedRow] = []
    for number, (request, stories) in enumerate(zip(requests, samples, strict=True)):
        couples = zip(stories[0:JUDGED:2], stories[1:JUDGED:2], strict=False)
        for place, couple in enumerate(couples):
            if couple[0] != couple[1]:
                ranks = rank_stories(request, couple, Draw("calibrate", number, place))
                rows.append({"prompt": request, "responses": list(couple), "ranks": ranks})
    return rows


# ---------------------------------------------------------------------- choice and search


def best_of_n(model: RewardModel, requests: Sequence[str], samples: Sequence[list[str]]) -> None:
    """Print the gold reward of the best of n by the learned reward, and by the gold one."""
    learned = rewards(model, requests, samples)
    gold = [
        [gold_reward(r, story).total for story in stories]
        for r, stories in zip(requests, samples, strict=True)
    ]
    print("\n| n | learned reward | gold reward | gold reward, chosen by gold |\n|---|---|---|---|")
    n = 1
    while n <= max(map(len, samples)):
        columns = ((learned, learned), (learned, gold), (gold, gold))
        # A request with fewer stories (blank ones are left out) has no best of so many.
        means = [
            bootstrap_interval(
                [expected_best(b, v, n) for b, v in zip(by, of, strict=True) if len(b) >= n]
            )
            for by, of in columns
        ]
        print(f"| {n} | {' | '.join(map(_cell, means))} |", flush=True)
        n *= 2


def edited(request: str, story: str, draw: Draw) -> list[str]:
    """Every story with one sentence dropped, said twice, or a kind one put in between."""
    sentences = split_sentences(story)
    hero = parse_request(request).hero
    cast = {"hero": hero, "helper": draw.pick_other(NAMES, hero)}
    kind = [fill(pattern, cast, draw) for pattern in (*REPLIES["kind"], *THANKS["kind"])]
    places = range(len(sentences))
    found = [sentences[:i] + sentences[i + 1 :] for i in places if len(sentences) > 1]
    found += [sentences[: i + 1] + sentences[i:] for i in places]
    found += [[*sentences[:i], new, *sentences[i:]] for i, new in itertools.product(places, kind)]
    return [" ".join(one) for one in found]


def gamed(model: RewardModel, requests: Sequence[str], stories: Sequence[str]) -> None:
    """Print both rewards while each step takes the edit with the highest learned reward."""
    print(
        "\n| edits | learned reward | gold reward | change of the gold reward |\n|---|---|---|---|"
    )
    now, first = list(stories), list[float]()
    for step in range(EDITS + 1):
        learned = [one for (one,) in rewards(model, requests, [[story] for story in now])]
        gold = [gold_reward(r, s).total for r, s in zip(requests, now, strict=True)]
        first = gold if step == 0 else first
        found = (
            bootstrap_interval(learned),
            bootstrap_interval(gold),
            paired_bootstrap(first, gold),
        )
        print(f"| {step} | {' | '.join(map(_cell, found))} |", flush=True)
        if step == EDITS:
            break
        choices = [
            [story, *edited(request, story, Draw("edit", index, step))]
            for index, (request, story) in enumerate(zip(requests, now, strict=True))
        ]
        scores = rewards(model, requests, choices)
        now = [c[s.index(max(s))] for c, s in zip(choices, scores, strict=True)]
    print(f"\n> {requests[0].strip()}\n\nbefore: {stories[0].strip()}\n\nafter: {now[0]}")


# ---------------------------------------------------------------------- the command


def calibrate(chosen: argparse.Namespace) -> None:
    """Train the reward model, then measure and game it."""
    keys: dict[str, Any] = {} if chosen.share is None else {"backbone": {"share": chosen.share}}
    train(
        chosen.demo / "pretrain",
        preference_rows(chosen.pairs, chosen.seed),
        chosen.output_dir,
        seed=chosen.seed,
        num_train_epochs=chosen.epochs,
        per_device_train_batch_size=BATCH,
        **keys,
    )
    model = RewardModel.load(chosen.output_dir / "model")
    requests = held_out_requests(chosen.requests, chosen.seed + 2)
    samples = own_stories(chosen.demo / "sft", requests, chosen.samples, chosen.seed)
    print(f"\na reward model of {model.parameters:,} weights\n")
    print("| held-out pairs of | annotator's choice | higher gold reward | pairs |")
    print("|---|---|---|---|")
    accuracy(model, "the teller", teller_pairs(TELLER_PAIRS, chosen.seed))
    accuracy(model, "the sft model", own_pairs(requests, samples))
    best_of_n(model, requests, samples)
    told = [(r, stories[0]) for r, stories in zip(requests, samples, strict=True) if stories]
    gamed(model, *zip(*told[:EDITED], strict=True))


def main() -> int:
    """Returns the exit code: 2 for what was asked wrongly, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m trimtab.world.calibrate", description=__doc__)
    parser.add_argument("--demo", default="runs/demo", type=Path, help="folder of a finished demo")
    parser.add_argument("--output-dir", default="runs/calibrate", type=Path, help="the new model's")
    parser.add_argument("--share", type=float, help="of the policy's weights; default as reward's")
    parser.add_argument("--pairs", type=int, default=3000, help="training pairs")
    parser.add_argument("--epochs", type=int, default=2, help="passes over them")
    parser.add_argument("--requests", type=int, default=48, help="held-out requests for best of n")
    parser.add_argument("--samples", type=int, default=64, help="stories on each, a power of 2")
    parser.add_argument("--seed", type=int, default=0, help="of pairs, order and samples")
    chosen = parser.parse_args()
    return exit_code(lambda: calibrate(chosen))


if __name__ == "__main__":
    sys.exit(main())
