"""What a model is worth: its answers to held-out prompts, judged, and how far it went for them.

Of every answer: the judge's score (gold), the proxy's, its KL to the model at the start, its length
in tokens, whether it ended. Of the model: its loss on held-out text. KL is exact in the next token:
at every prefix of the model's own answer the sum over the vocabulary, added up over the answer,

    KL = sum_t KL(pi(.|x, y_<t) || pi_start(.|x, y_<t)),    y ~ pi,

whose mean over answers is the KL of whole answers, with less variance than log-ratios have (and
never below 0). All models draw with the same random numbers: those that agree give the same answer.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from trimtab.algorithms.judge import Asked, Judge, by_function, by_reward_model
from trimtab.algorithms.policy import Policy
from trimtab.config.compare_recipe import CompareRecipe, JudgeSpec
from trimtab.config.data_keys import DatasetSpec
from trimtab.data.batch import pack, split_by_tokens
from trimtab.data.rows import Text
from trimtab.data.sources import load_examples
from trimtab.data.trees import Branch, Origin, TokenTree
from trimtab.errors import RecipeError, RunError
from trimtab.evaluation.best_of_n import kl_bound
from trimtab.evaluation.rows_to_judge import Trees
from trimtab.evaluation.subjects import LanguageSubject, find
from trimtab.rewards.combine import told_apart
from trimtab.rewards.functions import check_columns, resolve
from trimtab.rewards.reward_model import RewardModel
from trimtab.rollout import Sampler, SamplingParams
from trimtab.rollout.params import Rollout
from trimtab.rollout.sample_prompts import Asked as AskedPrompt
from trimtab.rollout.sample_prompts import read_prompts
from trimtab.training.seeds import derive

BUDGET = 8192  # tokens of a forward pass
SHOWN = 8  # prompts of which the answers are kept as text
COLUMNS = ("gold", "proxy", "kl", "length", "ended")
_ANSWERED = frozenset({"prompt", "completion", "preference", "ranked", "unpaired", "chat"})

Found = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Answer:
    """A sampled answer: the prompt's row, its text and its tokens, the stop token included."""

    asked: AskedPrompt
    text: str
    ids: tuple[int, ...]
    ended: bool


def chosen_first(prompts: Sequence[str], share: float) -> list[bool]:
    """Which prompts settings are chosen on: ``share`` of them, by a hash of their text.

    At least one and not all; the same whatever the order of the file.
    """
    order = sorted(
        range(len(prompts)),
        key=lambda i: (hashlib.sha256(prompts[i].encode()).digest(), i),
    )
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    taken = set(order[:count])
    return [i in taken for i in range(len(prompts))]


class Examiner:
    """Asks models the same prompts; the model at the start and the judges are loaded once."""

    def __init__(self, recipe: CompareRecipe) -> None:
        """Raises RecipeError and DataError for models, rewards and rows that cannot be used."""
        self.recipe = recipe
        self.base = LanguageSubject(find(recipe.model_name_or_path, "model_name_or_path"), BUDGET)
        self.tokenizer: Any = self.base.renderer.tokenizer
        self.device = next(self.base.model.parameters()).device
        self.prompts = self._prompts()
        self.choosing = chosen_first(
            [repr(one.prompt) for one in self.prompts], recipe.choose_share
        )
        self.texts = self._texts()
        self._judges: dict[str, Judge] = {}
        self.judge = self._judge_of(recipe.judge, "judge.")

    # ------------------------------------------------------------------ what is asked

    def _prompts(self) -> list[AskedPrompt]:
        r = self.recipe
        loaded = load_examples(
            [DatasetSpec(path=r.eval_prompts)], _ANSWERED, max_rows=r.max_eval_prompts
        )
        context = self.base.within(10**9)
        found = read_prompts(loaded.examples[0], self.base.renderer, context).asked
        if len(found) < 4:
            raise RecipeError(
                f"eval_prompts={r.eval_prompts!r}: {len(found)} prompts; at least 4 are needed, of "
                "which one part chooses settings and the other examines them"
            )
        return found

    def _texts(self) -> list[TokenTree]:
        r = self.recipe
        if r.eval_text is None:
            return []
        specs = [DatasetSpec(path=r.eval_text)]
        loaded = load_examples(specs, {"text"}, max_rows=r.max_eval_texts)
        return Trees(self.base, loaded.examples[0], 10**9).trees

    # ------------------------------------------------------------------ who judges

    def judge_named(self, spec: JudgeSpec) -> Judge | None:
        """The judge of a proxy; None where there is none."""
        return self._judge_of(spec, "") if spec.count else None

    def _judge_of(self, spec: JudgeSpec, prefix: str) -> Judge:
        known = spec.model_dump_json()
        if known not in self._judges:
            names: list[str] = []
            sources: list[Any] = []
            if spec.reward_model is not None:
                key = f"{prefix}reward_model"
                model = RewardModel.load(
                    spec.reward_model, device=self.device, token_budget=BUDGET, key=key
                )
                names.append("reward_model")
                sources.append(by_reward_model(model, self.tokenizer, on_bad="stop", key=key))
            columns = {name for one in self.prompts for name in one.example.extras}
            for text in spec.reward_funcs:
                function = resolve(text, key=f"{prefix}reward_funcs")
                check_columns(function, columns, ids=True)
                names.append(function.name)
                sources.append(by_function(function, time_limit=600.0, on_bad="stop"))
            pairs = zip(told_apart(names), sources, strict=True)
            self._judges[known] = Judge(dict(pairs), spec.reward_weights)
        return self._judges[known]

    def scores(self, judge: Judge, answers: Sequence[Answer], who: str) -> list[float]:
        """Scores of answers; RunError where the judge has nothing to say of one."""
        found, _ = judge.score([self._asked(one) for one in answers])
        for answer, value in zip(answers, found.tolist(), strict=True):
            if value != value:
                raise RunError(f"{answer.asked.where}: the {who} gave no score for an answer")
        return found.tolist()

    def _asked(self, answer: Answer) -> Asked:
        prompt = answer.asked.prompt
        chat = not isinstance(prompt, str)
        completion: Text = [{"role": "assistant", "content": answer.text}] if chat else answer.text
        return Asked(prompt, completion, answer.asked.example.extras, _tree(answer), answer.ended)

    # ------------------------------------------------------------------ answers

    def answers(
        self,
        subject: LanguageSubject,
        each: int,
        seed: int,
        purpose: str,
        done: Callable[[int], None] = lambda _: None,
    ) -> list[list[Answer]]:
        """``each`` answers to every prompt at temperature 1."""
        sampler = Sampler(subject.model, stop_ids=self.base.renderer.stop_ids)
        params = SamplingParams(max_new_tokens=self.recipe.max_completion_length)
        found = sampler.sample(
            [one.ids for one in self.prompts],
            each,
            params,
            seed=derive(seed, purpose),
            done=done,
        )
        return [
            [self._answer(asked, one) for one in own]
            for asked, own in zip(self.prompts, found, strict=True)
        ]

    def _answer(self, asked: AskedPrompt, rollout: Rollout) -> Answer:
        # Special tokens are left out of the text, the stop token among them.
        text = str(self.tokenizer.decode(list(rollout.ids), skip_special_tokens=True))
        return Answer(asked, text, rollout.ids, rollout.ended)

    @torch.no_grad()
    def divergences(self, subject: LanguageSubject, answers: Sequence[Answer]) -> list[float]:
        """KL to the model at the start of each answer, in nats."""
        if subject is self.base:
            return [0.0] * len(answers)
        policy, start = self._policy(subject), self._policy(self.base)
        found: list[float] = []
        for part in split_by_tokens([_tree(one) for one in answers], BUDGET):
            batch = pack(part).to(self.device)
            # token_stats has KL(reference || policy): the start plays the policy.
            stats = start.token_stats(batch, reference=(policy.hidden(batch), policy.head))
            assert stats.kl is not None
            found += batch.sequence_sums(stats.kl)[: batch.branch_count].tolist()
        return found

    def _policy(self, subject: LanguageSubject) -> Policy:
        return Policy(subject.model, subject.layout, self.device)

    # ------------------------------------------------------------------ examinations

    def of_model(self, folder: str | None, seed: int, proxy: JudgeSpec) -> Found:
        """What the model in a folder is worth (None: the model at the start)."""
        subject = self.base
        if folder is not None:
            subject = LanguageSubject(find(folder, "model_name_or_path"), BUDGET)
        every = self.answers(subject, self.recipe.samples, seed, "compare")
        flat = [one for own in every for one in own]
        columns = self._columns(flat, proxy, self.divergences(subject, flat))
        return {
            **self._record(columns, every, self.recipe.samples),
            "text": self._text_losses(subject),
        }

    def best_of(self, counts: Sequence[int], seed: int, proxy: JudgeSpec) -> dict[int, Found]:
        """The best of n answers of the model at the start by the proxy, for every n.

        A larger n chooses among the answers of a smaller one and more. ``kl`` is the bound
        log n - (n - 1) / n, and loss on text is the start's own.
        """
        most, samples = max(counts), self.recipe.samples
        every = self.answers(self.base, most * samples, seed, "compare best of n")
        judge = self.judge_named(proxy)
        assert judge is not None
        flat = [one for own in every for one in own]
        scores = self.scores(judge, flat, "proxy")
        text = self._text_losses(self.base)
        found: dict[int, Found] = {}
        for n in counts:
            picked: list[list[Answer]] = []
            for place, own in enumerate(every):
                mine = scores[place * len(own) : (place + 1) * len(own)]
                groups = [range(group * most, group * most + n) for group in range(samples)]
                picked.append([own[max(group, key=lambda i: mine[i])] for group in groups])
            kept = [one for own in picked for one in own]
            columns = self._columns(kept, proxy, [kl_bound(n)] * len(kept))
            found[n] = {**self._record(columns, picked, samples), "text": text}
        return found

    def _columns(
        self, answers: Sequence[Answer], proxy: JudgeSpec, kl: list[float]
    ) -> dict[str, list[float]]:
        judge = self.judge_named(proxy)
        return {
            "gold": self.scores(self.judge, answers, "judge"),
            "proxy": [] if judge is None else self.scores(judge, answers, "proxy"),
            "kl": kl,
            "length": [float(len(one.ids)) for one in answers],
            "ended": [float(one.ended) for one in answers],
        }

    def _record(
        self, columns: Mapping[str, list[float]], every: Sequence[Sequence[Answer]], samples: int
    ) -> Found:
        """Columns by part: ``choose`` and ``examine``, each [prompts][samples]; texts of a few."""
        found: Found = {}
        for part, wanted in (("choose", True), ("examine", False)):
            places = [i for i, chosen in enumerate(self.choosing) if chosen is wanted]
            found[part] = {
                name: [values[i * samples : (i + 1) * samples] for i in places] if values else None
                for name, values in columns.items()
            }
            if not wanted:
                found["texts"] = [
                    {"prompt": _shown(self.prompts[i].prompt), "answer": every[i][0].text}
                    for i in places[:SHOWN]
                ]
        return found

    def _text_losses(self, subject: LanguageSubject) -> list[list[float]] | None:
        """Nats and tokens of every row of held-out text."""
        if not self.texts:
            return None
        rows: dict[int, list[float]] = {}
        for part in split_by_tokens(self.texts, BUDGET):
            for tree, (nats, tokens, _) in zip(part, subject.predict(part), strict=True):
                row = rows.setdefault(tree.origin.row, [0.0, 0.0])
                row[0] += nats
                row[1] += tokens
        return list(rows.values())


def _tree(answer: Answer) -> TokenTree:
    prompt = tuple(answer.asked.ids)
    return TokenTree(
        Branch(prompt, (False,) * len(prompt)),
        (Branch(answer.ids, (True,) * len(answer.ids)),),
        (),
        Origin(answer.asked.example.origin.source, answer.asked.example.origin.row),
    )


def _shown(prompt: Text) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in prompt)
