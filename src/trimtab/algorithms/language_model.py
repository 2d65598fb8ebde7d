"""pretrain and sft: L_GPT = Σ log P(x_i | x_<i) over the trained tokens, maximised.

In pretraining every token of a document is trained; in supervised fine-tuning those of the
response, given the prompt. The divisor is the number of trained tokens of the optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from trimtab.algorithms.policy import Policy, frozen
from trimtab.algorithms.stage import Mix, Stage, target_weights, token_count, token_nll
from trimtab.algorithms.stream import TreeStream, micro_batches
from trimtab.training.algorithm import Micro, Outcome
from trimtab.training.terms import Metric


class LanguageModelling(Stage):
    """Token-mean negative log-likelihood over the trained tokens of the step.

    ``held_out_bytes`` is the UTF-8 length of the held-out text that is scored: with it, bits per
    byte are reported, which compare across tokenizers.
    """

    def __init__(
        self,
        policy: Policy,
        stream: TreeStream,
        *,
        total_steps: int,
        mix: Mix | None = None,
        held_out: TreeStream | None = None,
        held_out_bytes: int | None = None,
    ) -> None:
        super().__init__(policy, stream, total_steps=total_steps, mix=mix, held_out=held_out)
        self.held_out_bytes = held_out_bytes

    def own_counts(self, micro: Micro) -> Mapping[str, float]:
        """Trained tokens."""
        return {"nll": token_count(micro.batch)}

    def own_terms(self, micro: Micro) -> Outcome:
        """The negative log-likelihood, with entropy and accuracy of the trained tokens."""
        batch = micro.batch
        stats = self.policy.token_stats(batch, entropy=True, correct=True)
        assert stats.entropy is not None and stats.correct is not None
        weights = target_weights(batch)
        count = token_count(batch)
        metrics = {
            "entropy": Metric((stats.entropy.detach() * weights).sum().item(), count),
            "mean_token_accuracy": Metric((stats.correct * weights).sum().item(), count),
        }
        return Outcome([token_nll(batch, stats.logp, "nll")], metrics)

    def evaluate(self, step: int) -> dict[str, float]:
        """Loss per token, perplexity, accuracy and, where bytes are known, bits per byte."""
        if self.held_out is None:
            return {}
        nll, tokens, right = 0.0, 0.0, 0.0
        rows = range(len(self.held_out))
        with frozen(self.model):
            for micro in micro_batches(self.held_out, rows, self.held_out.token_budget, "eval"):
                batch = micro.batch.to(self.policy.device)
                stats = self.policy.token_stats(batch, correct=True)
                assert stats.correct is not None
                weights = target_weights(batch).cpu().double()
                nll -= (stats.logp.cpu().double() * weights).sum().item()
                right += (stats.correct.cpu() * weights).sum().item()
                tokens += weights.sum().item()
        loss = nll / tokens
        found = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "mean_token_accuracy": right / tokens,
            "tokens": tokens,
        }
        if self.held_out_bytes:
            found["bpb"] = nll / math.log(2) / self.held_out_bytes
        return found
