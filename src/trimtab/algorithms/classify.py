"""classify: the fine-tune of GPT-1 (Radford et al. 2018, section 3.2).

    maximise  L_FT + alpha L_GPT,    L_FT = sum over texts of log softmax(h_m W_y)_y

h_m is the state at the end token that stands behind every text, W_y has no bias. h_m is read after
the final norm, where transformers' sequence-classification models read it, too (GPT-1 had no norm
there: each of its blocks ended in one). L_GPT is the language-model loss on the same text, its end
token included, from the same forward pass.

Sums are taken as means: L_FT over the texts of an optimizer step, L_GPT over their tokens (the
authors' code takes means over tokens text by text, and then over texts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from trimtab.algorithms.policy import Policy, frozen
from trimtab.algorithms.stage import Mix, Stage, target_weights, token_count, token_nll
from trimtab.algorithms.stream import TreeStream, micro_batches
from trimtab.data.batch import TreeBatch
from trimtab.evaluation.classification import class_report
from trimtab.losses.classification import classification_loss
from trimtab.training.algorithm import Micro, Outcome
from trimtab.training.terms import Metric, Term


class Classification(Stage):
    """Learns classes of texts; ``labels`` are their names, in the order of their numbers."""

    def __init__(
        self,
        policy: Policy,
        stream: TreeStream,
        *,
        labels: Sequence[str | int],
        total_steps: int,
        alpha: float = 0.5,
        mix: Mix | None = None,
        held_out: TreeStream | None = None,
    ) -> None:
        super().__init__(policy, stream, total_steps=total_steps, mix=mix, held_out=held_out)
        self.labels = [str(label) for label in labels]
        self.alpha = alpha

    def own_counts(self, micro: Micro) -> Mapping[str, float]:
        """Texts by weight and, where the language-model loss has one, their tokens."""
        counts = {"classification": float(weights(micro.batch).cpu().double().sum())}
        return {**counts, "nll": token_count(micro.batch)} if self.alpha else counts

    def own_terms(self, micro: Micro) -> Outcome:
        """The loss of the classes, and the language model's on the same text."""
        batch, counts = micro.batch, self.own_counts(micro)
        logp: Tensor | None = None
        if self.alpha:
            logits, stats = self.policy.scores_and_stats(batch)
            logp = stats.logp
        else:
            logits = self.policy.scores(batch)
        losses = classification_loss(logits, classes(batch))
        total = (losses * weights(batch)).sum()
        terms = [Term("classification", total, counts["classification"], "sequence")]
        right = (logits.argmax(-1) == batch.classes).sum().item()
        metrics = {"accuracy": Metric(right, float(batch.branch_count))}
        if logp is not None:
            terms.append(token_nll(batch, logp, "nll", self.alpha))
            metrics["nll"] = Metric(terms[1].sum.item(), counts["nll"])
        return Outcome(terms, metrics)

    def evaluate(self, step: int) -> dict[str, Any]:
        """Metrics of the held-out rows: ``class_report``'s, and two losses.

        loss     of the classes, a text (alpha is not in it: runs with another one compare)
        lm_loss  of the language model, a token
        """
        if self.held_out is None:
            return {}
        truth: list[int] = []
        predicted: list[int] = []
        loss, weight, nll, tokens = 0.0, 0.0, 0.0, 0.0
        rows = range(len(self.held_out))
        with frozen(self.model):
            for micro in micro_batches(self.held_out, rows, self.held_out.token_budget, "eval"):
                batch = micro.batch.to(self.policy.device)
                logits, stats = self.policy.scores_and_stats(batch)
                losses = classification_loss(logits, classes(batch)) * weights(batch)
                loss += losses.cpu().double().sum().item()
                weight += weights(batch).cpu().double().sum().item()
                nll -= (stats.logp * target_weights(batch)).cpu().double().sum().item()
                tokens += token_count(batch)
                truth += classes(batch).tolist()
                predicted += logits.argmax(-1).tolist()
        report = class_report(truth, predicted, self.labels)
        return {"loss": loss / weight, **report, "lm_loss": nll / tokens, "rows": len(truth)}


def classes(batch: TreeBatch) -> Tensor:
    """[N] the class numbers of a batch's texts."""
    assert batch.classes is not None, "labelled rows have a class each"
    return batch.classes


def weights(batch: TreeBatch) -> Tensor:
    """[N] the weight of each text's row."""
    return batch.tree_weight[batch.tree_of_branch]
