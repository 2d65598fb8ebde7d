"""The reward stage: its objective, its trees, whole runs, and what they leave."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny_runs
from tests.algorithms.stage_world import World
from tests.algorithms.support import gradients, policy, ranked_trees, reward, stream
from torch.nn.functional import softplus
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trimtab.algorithms.reward import RewardModelling, best_responses
from trimtab.data.batch import pack, unshare
from trimtab.data.tokenise_trees import for_scores, group_by_prompt
from trimtab.data.trees import Branch, Comparison, Origin, TokenTree
from trimtab.errors import DataError, RecipeError, TrimtabError, UsageError
from trimtab.models.score_head import ScoreHead, attach_head, without_output_head
from trimtab.rewards.reward_model import RewardModel


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    top = sum(float((a[k] - b[k]).square().sum()) for k in a)
    return (top / sum(float(b[k].square().sum()) for k in b)) ** 0.5


def stage(trees: list[TokenTree], **more: Any) -> RewardModelling:
    model = policy()
    attach_head(model.model, ScoreHead("reward"), std=0.3, seed=4)
    without_output_head(model.model)
    return RewardModelling(model, stream(trees, len(trees)), total_steps=1, **more)


# ---------------------------------------------------------------------- the objective


def test_loss_is_the_papers() -> None:
    """-1/C(K,2) sum over pairs, mean over rows, each response read alone: nothing of ours."""
    trees = [for_scores(tree, "column", 1.0) for tree in ranked_trees(5)]
    found = stage(trees)
    expected = []
    for tree in trees:
        batch = pack(unshare(tree))
        scores = found.policy.scores(batch).flatten()
        pairs = [softplus(scores[c.loser] - scores[c.winner]) for c in tree.comparisons]
        size = len(tree.branches)
        assert len(pairs) == size * (size - 1) // 2
        expected.append(sum(pairs) / len(pairs))
    (micro,) = found.micros(0)
    (term,) = found.own_terms(micro).terms
    value = (term.sum / term.count).item()
    assert value == pytest.approx(
        (sum(expected) / len(expected)).item(), rel=1e-7
    )  # weights of pairs are fp32
    assert term.count == pytest.approx(5)
    # The wrong variant: every pair counts the same, so that long rankings outweigh short ones.
    flat = sum(e * len(t.comparisons) for e, t in zip(expected, trees, strict=True))
    assert abs(flat.item() / sum(len(t.comparisons) for t in trees) - value) > 1e-3


def test_one_tree_is_its_pairs_with_the_prompt_again() -> None:
    """Shared trunk or C(K, 2) pair rows of one weight: the same gradient, to 1e-12."""
    rankings = ranked_trees(4)
    apart = []
    for tree in rankings:
        shared = for_scores(tree, "column", 1.0)
        for c in shared.comparisons:
            pair = (tree.branches[c.winner], tree.branches[c.loser])
            compared = (Comparison(0, 1, c.weight),)
            apart.append(TokenTree(tree.trunk, pair, compared, tree.origin))
    together = gradients(stage([for_scores(tree, "column", 1.0) for tree in rankings]))
    assert distance(gradients(stage(apart)), together) < 1e-12


def test_ties_leave_the_divisor() -> None:
    tree = next(tree for tree in ranked_trees(9) if len(tree.branches) == 4)
    size = len(tree.branches)
    ranks = tuple(1.0 if i < 2 else 2.0 for i in range(size))
    tied = tuple(Comparison(a, b) for a in range(size) for b in range(size) if ranks[a] < ranks[b])
    shared = for_scores(tree._replace(ranks=ranks, comparisons=tied), "column", 1.0)
    assert [c.weight for c in shared.comparisons] == [1 / len(tied)] * len(tied)
    assert sum(c.weight for c in shared.comparisons) == pytest.approx(1.0)


def test_joining_rows_by_prompt_changes_nothing() -> None:
    """Rows with the same prompt, in one tree or in several: one objective, one gradient."""
    rng = random.Random(4)
    rows = []
    for tree in ranked_trees(3):
        for first, second in itertools.combinations(range(len(tree.branches)), 2):
            winner, loser = rng.sample((first, second), 2)
            pair = (tree.branches[winner], tree.branches[loser])
            row = TokenTree(tree.trunk, pair, (Comparison(0, 1),), tree.origin)
            rows.append(for_scores(row, "column", 1.0))
    joined = group_by_prompt(rows)
    assert len(joined) == 3 < len(rows)
    apart, together = stage(rows), stage(joined)
    assert sum(apart.own_counts(m)["ranking"] for m in apart.micros(0)) == pytest.approx(len(rows))
    assert distance(gradients(together), gradients(apart)) < 1e-12
    assert sum(t.token_count for t in joined) < sum(t.token_count for t in rows)


def test_margins_and_centring() -> None:
    tree = ranked_trees(1, seed=3)[0]
    scores = tuple(float(2 * i) for i in range(len(tree.branches)))
    scored = tree._replace(scores=scores)
    for margins, scale, expected in (
        ("none", 1.0, [0.0] * len(tree.comparisons)),
        ("column", 3.0, [3.0 * c.margin for c in tree.comparisons]),
        ("scores", 0.5, [0.5 * (scores[c.winner] - scores[c.loser]) for c in tree.comparisons]),
    ):
        made = for_scores(scored, margins, scale)  # type: ignore[arg-type]
        assert [c.margin for c in made.comparisons] == expected
    trees = [for_scores(scored, "scores", 1.0)]
    plain, centred = stage(trees), stage(trees, centring=0.5)
    (micro,) = plain.micros(0)
    r = plain.policy.scores(micro.batch).flatten()
    pairs = [(r[c.winner], r[c.loser], c.margin) for c in trees[0].comparisons]
    (term,) = plain.own_terms(micro).terms
    by_hand = sum(softplus(lo - hi + m) for hi, lo, m in pairs) / len(pairs)
    assert term.sum.item() == pytest.approx(by_hand.item(), rel=1e-6)
    _, extra = centred.own_terms(micro).terms
    by_hand = sum((hi + lo) ** 2 for hi, lo, _ in pairs) / len(pairs)
    assert extra.sum.item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert extra.weight == 0.5


def test_a_sibling_is_not_seen() -> None:
    """Scores of K responses in one tree are those of each alone."""
    found = reward("reward", 4, 10_000)
    (micro,) = found.micros(0)
    scores = found.policy.scores(micro.batch)
    alone = torch.cat([found.policy.scores(pack(unshare(t))) for t in micro.batch.trees])
    assert torch.allclose(scores, alone, atol=1e-12)
    # The wrong variant: one causal row without branches, in which later siblings see earlier ones.
    tree = next(t for t in micro.batch.trees if len(t.branches) > 2)
    row = tree.trunk.ids + tuple(i for b in tree.branches for i in b.ids)
    chain = TokenTree(tree.trunk, (Branch(row, (False,) * len(row)),), (), Origin("x", 1))
    last = found.policy.scores(pack([chain]))[0]
    assert (last - found.policy.scores(pack([tree]))[-1]).abs().item() > 1e-3


def test_best_responses_lose_to_none() -> None:
    trees = [for_scores(tree, "column", 1.0) for tree in ranked_trees(4)]
    best = best_responses(stream(trees, 4), 3)
    assert len(best) == 3
    for tree, kept in zip(trees, best, strict=False):
        assert kept.branches == (tree.branches[tree.ranks.index(1.0)],)


# ---------------------------------------------------------------------- whole runs


def reward_run(world: World, data: str = "rankings", **keys: Any) -> Path:
    return world.run("reward", data, **{"sample_prompts": ..., **keys}).folder


def rendered(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    end = AutoTokenizer.from_pretrained(folder).eos_token
    return [row["prompt"] + text + end for row in rows for text in (row["chosen"], row["rejected"])]


def test_folder_gives_transformers_the_same_rewards(world: World) -> None:
    """Batched and padded by transformers, alone by trimtab; best responses average 0."""
    folder = reward_run(world, "pairs", self_check=True)
    rows = [json.loads(line) for line in (world.root / "pairs.jsonl").read_text().splitlines()]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(rendered(folder, rows), return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(**inputs).logits.flatten() - model.config.reward_offset
    ours = RewardModel.load(folder)
    from trimtab.config.data_keys import DatasetSpec
    from trimtab.data.sources import load_examples

    spec = DatasetSpec(path=str(world.root / "pairs.jsonl"))
    (examples,) = load_examples([spec], {"preference"}).examples
    trees = [tree for found in ours.trees(examples) for tree in found]
    scores = torch.tensor(ours.score_trees(trees))
    assert torch.allclose(scores.flatten(), theirs, atol=1e-5)
    assert scores[:, 0].mean().item() == pytest.approx(0.0, abs=1e-5)
    budgeted = RewardModel(ours.name, ours.members, ours.renderer, token_budget=10)
    assert torch.allclose(torch.tensor(budgeted.score_trees(trees)), scores, atol=1e-5)


def test_half_of_the_weights_by_default(world: World) -> None:
    def weights(folder: Path) -> int:
        return AutoModelForSequenceClassification.from_pretrained(folder).num_parameters()

    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(world.root / "model").num_parameters()
    kept = weights(reward_run(world))
    assert 0.3 * whole < kept <= 0.5 * whole + 32
    full = weights(reward_run(world, backbone={"share": 1.0}))
    assert full == whole - 32 * 290 + 32  # without its output head
    named = reward_run(world, backbone={"num_hidden_layers": 1, "intermediate_size": 32})
    config = json.loads((named / "config.json").read_text())
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (1, 32)


def test_training_learns_an_order(world: World, tmp_path: Path) -> None:
    """Responses that name a cat are better: after 60 steps held-out pairs are told apart."""
    rng = random.Random(0)

    def row(_: int) -> dict[str, Any]:
        words = [tiny_runs.sentence(rng, 4).replace("cat", "dog") for _ in range(3)]
        texts = [words[0], words[1].replace(".", " cat."), words[2].replace(".", " cat cat.")]
        order = rng.sample(range(3), 3)
        return {
            "prompt": tiny_runs.sentence(rng, 3) + "\n",
            "responses": [texts[i] for i in order],
            "ranks": [3 - i for i in order],
        }

    tiny_runs.write_rows(tmp_path / "train.jsonl", [row(i) for i in range(60)])
    tiny_runs.write_rows(tmp_path / "held.jsonl", [row(i) for i in range(20)])
    run = world.run(
        "reward",
        "rankings",
        sample_prompts=...,
        dataset_name=str(tmp_path / "train.jsonl"),
        eval_dataset_name=str(tmp_path / "held.jsonl"),
        max_steps=60,
        learning_rate=3e-3,
        logging_steps=20,
        backbone={"share": 1.0},
    )
    first, last = run.evaluated[0], run.evaluated[-1]
    assert first["eval_accuracy"] < 0.75 and last["eval_accuracy"] > 0.9
    assert last["eval_accuracy_ci95"][0] > 0.8 and last["eval_margin"] > 1.0
    assert last["eval_pairs"] == 60
    bins = last["eval_confidence"]
    assert len(bins) == 3 and sum(one["n"] for one in bins) == 60
    right = sum(one["n"] * one["value"] for one in bins) / 60
    assert right == pytest.approx(last["eval_accuracy"])
    assert {"accuracy", "margin", "mean_reward", "loss"} <= run.trained[-1].keys()


def test_ensemble_is_a_folder_a_member(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    keys = world.keys("pairs", sample_prompts=..., ensemble=2)
    import trimtab

    result = trimtab.reward(**{**keys, "quiet": False})
    said = capsys.readouterr().err.replace("\n", " ")
    assert said.endswith("is an ensemble of 2, and is taken wherever a reward model is ")
    manifest = json.loads((result.output_dir / "ensemble.json").read_text())
    assert manifest["members"] == ["member-1", "member-2"]
    model = RewardModel.load(result.output_dir)
    rows = [
        TokenTree(Branch((3, 4), (False,) * 2), (Branch((5, 1), (False,) * 2),), (), Origin("x", 1))
    ]
    (one,), (two,) = model.member_scores(rows)
    assert one != two
    assert model.score_trees(rows) == [[(one[0] + two[0]) / 2]]
    with pytest.raises(UsageError, match="holds a finished ensemble"):
        trimtab.reward(**keys)
    (result.output_dir / "ensemble.json").unlink()
    before = (result.output_dir / "member-1" / "model.safetensors").stat().st_mtime_ns
    trimtab.reward(**keys)  # a run that was killed before its manifest: members are left alone
    after = (result.output_dir / "member-1" / "model.safetensors").stat().st_mtime_ns
    assert before == after
    (result.output_dir / "ensemble.json").unlink()
    with pytest.raises(RecipeError, match="this member is finished and was trained by another"):
        trimtab.reward(**{**keys, "learning_rate": 5e-3})


def test_going_on_with_a_reward_model_and_an_adapter(world: World) -> None:
    first = reward_run(world, "pairs")
    again = world.run("reward", "pairs", sample_prompts=..., model_name_or_path=str(first))
    assert (again.folder / "config.json").read_text().count("num_hidden_layers")
    head = AutoModelForSequenceClassification.from_pretrained(first)
    more = AutoModelForSequenceClassification.from_pretrained(again.folder)
    assert head.num_parameters() == more.num_parameters()  # a reward model is not cut again
    refused(world, "use_peft: .* has scores", model_name_or_path=str(first), use_peft=True)
    adapter = reward_run(world, "pairs", use_peft=True, lora_r=2, self_check=True)
    assert (adapter / "score_head.json").is_file()
    assert RewardModel.load(adapter).offset != 0.0


def test_reference_rows_set_the_zero(world: World) -> None:
    folder = reward_run(
        world, "pairs", reference_dataset_name=str(world.root / "answers.jsonl"), reference_rows=5
    )
    from trimtab.config.data_keys import DatasetSpec
    from trimtab.data.sources import load_examples

    spec = DatasetSpec(path=str(world.root / "answers.jsonl"))
    (examples,) = load_examples([spec], {"completion"}, max_rows=5).examples
    model = RewardModel.load(folder)
    trees = [tree for found in model.trees(examples) for tree in found]
    values = [value for (value,) in model.score_trees(trees)]
    assert len(values) == 5 and sum(values) / 5 == pytest.approx(0.0, abs=1e-5)


# ---------------------------------------------------------------------- refusals

BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"responses": ["a", "b"], "ranks": [1, 1]}, "all are tied"),
    ({"responses": ["a"], "ranks": [1]}, "fewer than two"),
    ({"responses": ["a", ""], "ranks": [1, 2]}, "empty"),
    ({"responses": ["a", "b"], "scores": [1.0, float("nan")]}, "not a finite number"),
    ({"responses": ["a", "b"], "ranks": [1]}, "wrong length"),
    ({"responses": ["a", "a"], "ranks": [1, 2]}, "all are the same"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_bad_rankings_are_named(
    world: World, tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    rows = [*tiny_runs.rankings(3), {"prompt": "x", **row}]
    tiny_runs.write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=rf"rows\.jsonl:4.*{reason}"):
        reward_run(world, dataset_name=str(tmp_path / "rows.jsonl"))


def refused(world: World, pattern: str, data: str = "rankings", **keys: Any) -> None:
    with pytest.raises(TrimtabError, match=pattern) as caught:
        reward_run(world, data, **keys)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_refusals(world: World, tmp_path: Path) -> None:
    refused(world, r"sample_prompts.*writes no text", sample_prompts=3)
    refused(
        world, r"backbone.*adapter needs the whole model", use_peft=True, backbone={"share": 0.5}
    )
    refused(world, r"backbone\.share.*not both", backbone={"share": 0.5, "hidden_size": 8})
    refused(world, r"backbone\.num_hidden_layers=9", backbone={"num_hidden_layers": 9})
    refused(
        world,
        r"group_by_prompt.*no common order",
        ranking_loss="plackett_luce",
        group_by_prompt=True,
    )
    refused(world, r"answers\.jsonl.*completion", "answers")
    rows = tiny_runs.rankings(3)
    rows[1]["ranks"] = [1, 2, 2]
    tiny_runs.write_rows(tmp_path / "tied.jsonl", rows)
    tied = str(tmp_path / "tied.jsonl")
    refused(world, r"tied\.jsonl:2.*holds a tie", ranking_loss="plackett_luce", dataset_name=tied)
    reward_run(world, dataset_name=tied)  # pairs of a partial order are fine


def test_reward_models_that_are_none(world: World) -> None:
    for path, pattern in (
        (world.root / "model", "a language model, not one with scores"),
        (world.root / "nowhere", "no such folder"),
    ):
        with pytest.raises(RecipeError, match=pattern):
            RewardModel.load(path)
    (world.root / "empty").mkdir(exist_ok=True)
    (world.root / "empty" / "ensemble.json").write_text('{"kind": "other"}')
    with pytest.raises(RecipeError, match="no manifest of reward models"):
        RewardModel.load(world.root / "empty")
