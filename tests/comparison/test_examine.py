"""The KL of an examination, against hand computation on models whose next token is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import tiny_model
from tests.tiny_runs import make_tokenizer

from trimtab.comparison.examine import BUDGET, Answer, Examiner
from trimtab.comparison.recipe import read_recipe
from trimtab.config.compare_recipe import JudgeSpec
from trimtab.evaluation.subjects import LanguageSubject, find
from trimtab.models.save import save_model

WIDTH = 32
MARK, PLAIN, LIKED = 40, 41, 42  # tokens; what comes next depends on whether the last one is MARK
V = len(make_tokenizer())


def save_bigram(folder: Path, after_mark: dict[int, float], after_others: dict[int, float]) -> Path:
    """A Llama whose logits are those given (0 for the rest), by whether the last token is MARK.

    Its layers add nothing, so that the last hidden state is one of two axes.
    """
    tokenizer = make_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    model: Any = tiny_model(
        "llama", seed=0, vocab_size=V, hidden_size=WIDTH, num_hidden_layers=2, **ids
    )
    scale = math.sqrt(WIDTH)  # the norm of what RMSNorm leaves as it is
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)
        words, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        for weight in (words, head):
            weight.zero_()
        words[:, 1] = scale
        words[MARK] = 0
        words[MARK, 0] = scale
        for axis, logits in enumerate((after_mark, after_others)):
            for token, logit in logits.items():
                head[token, axis] = logit / scale
    save_model(model, tokenizer, folder)
    return folder


def examiner_of(recipe: Path, start: Path) -> Examiner:
    """Of the tests' recipe, from this model, with responses of up to 6 tokens."""
    return Examiner(read_recipe([str(recipe), "--model-name-or-path", str(start)]).recipe)


def test_the_kl_is_of_policy_to_start_and_summed_over_the_response(
    recipe: Path, tmp_path: Path
) -> None:
    # After MARK the policy has LIKED with one half, else with one quarter; the start is uniform.
    half, quarter = math.log(V - 1), math.log((V - 1) / 3)
    policy = save_bigram(tmp_path / "policy", {LIKED: half}, {LIKED: quarter})
    examiner = examiner_of(recipe, save_bigram(tmp_path / "start", {}, {}))
    subject = LanguageSubject(find(str(policy), "model_name_or_path"), BUDGET)
    asked = examiner.prompts[0]
    assert asked.ids[-1] != MARK
    texts = [(MARK, PLAIN, PLAIN, MARK), (PLAIN,)]
    found = examiner.divergences(subject, [Answer(asked, "", ids, ended=False) for ids in texts])

    def forward(p: float) -> float:  # KL(policy || start): sum of p log(p V)
        return p * math.log(p * V) + (1 - p) * math.log((1 - p) / (V - 1) * V)

    def backward(p: float) -> float:  # KL(start || policy)
        return math.log(1 / (p * V)) / V + (V - 1) / V * math.log((V - 1) / ((1 - p) * V))

    # The first answer's tokens are predicted after the prompt, MARK, PLAIN and PLAIN.
    right = 3 * forward(1 / 4) + forward(1 / 2)
    assert found == pytest.approx([right, forward(1 / 4)], rel=1e-4)
    wrong = {
        "KL(start || policy)": 3 * backward(1 / 4) + backward(1 / 2),
        "mean over the tokens": right / 4,
        "prefixes that hold the token itself": 2 * forward(1 / 4) + 2 * forward(1 / 2),
        "only the last token": forward(1 / 4),
        "log-ratio of the tokens that were drawn": 3 * math.log(3 / 4 / (V - 1) * V)
        + math.log(1 / 2 / (V - 1) * V),
    }
    assert all(value != pytest.approx(right, rel=0.1) for value in wrong.values()), wrong
    assert examiner.divergences(examiner.base, [Answer(asked, "", (MARK,), ended=False)]) == [0.0]


def test_the_kl_is_at_prefixes_of_the_policys_own_answers(recipe: Path, tmp_path: Path) -> None:
    stop = make_tokenizer().eos_token_id
    sure = save_bigram(tmp_path / "sure", {stop: 40.0}, {MARK: 40.0})
    examiner = examiner_of(recipe, save_bigram(tmp_path / "start", {}, {}))
    found = examiner.of_model(str(sure), 0, JudgeSpec())
    for part in ("choose", "examine"):
        flat = {
            name: [value for own in found[part][name] for value in own] for name in ("kl", "length")
        }
        # It says MARK and stops: two tokens of which it is certain, where the start has 1 / V. The
        # start's answers have 6 tokens; KL(start || policy) would be above 30 at each of them.
        assert set(flat["length"]) == {2.0}
        assert flat["kl"] == pytest.approx([2 * math.log(V)] * len(flat["kl"]), rel=1e-4)
