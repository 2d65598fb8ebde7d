"""The exact expected loss of a policy over a problem, for any loss of the contract; its minimum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trimtab.losses.contract import LossSpec
from trimtab.losses.types import (
    Pair,
    PairTokens,
    PairValues,
    Ranking,
    SequenceLogprobs,
    TokenLogprobs,
)
from trimtab.proof.closed_forms import win_rate
from trimtab.proof.preferences import Pairs, all_pairs, all_rankings
from trimtab.proof.problem import Problem
from trimtab.proof.tabular import TokenTable

RANKED = 3  # responses of a ranking


@dataclasses.dataclass(frozen=True)
class Expectation:
    """What a loss of one kind is called with, and the probability of each of its units.

    pair       all ordered pairs, with Bradley-Terry probabilities
    unpaired   every response as desirable, with the probability that it beats a drawn one, and as
               undesirable with the rest
    ranking    all rankings of three responses, with Plackett-Luce probabilities

    ``index`` holds the units' responses as numbers in the flattened [X, Y]: [P, 2] (winner and
    loser), [N] or [R, K] (best first). ``weight`` sums to 1, or to a little less.
    """

    spec: LossSpec
    problem: Problem
    index: Tensor
    weight: Tensor
    labels: Tensor | None = None

    @staticmethod
    def of(spec: LossSpec, problem: Problem) -> Expectation:
        """The expectation for a loss's kind."""
        prompts, responses = problem.shape
        if spec.kind == "pair":
            return Expectation.of_pairs(spec, problem, all_pairs(problem))
        if spec.kind == "ranking":
            ranked = all_rankings(problem, RANKED)
            index = ranked.prompt[:, None] * responses + ranked.order
            return Expectation(spec, problem, index, ranked.weight)
        drawn, wins = (problem.sampling / prompts).flatten(), win_rate(problem).flatten()
        every = torch.arange(prompts * responses)
        labels = torch.arange(2 * len(every)) < len(every)
        weight = torch.cat([drawn * wins, drawn * (1 - wins)])
        return Expectation(spec, problem, every.repeat(2), weight, labels)

    @staticmethod
    def of_pairs(spec: LossSpec, problem: Problem, pairs: Pairs) -> Expectation:
        """The expectation of a loss of pairs over a table of them."""
        first = pairs.prompt * problem.shape[1]
        index = torch.stack([first + pairs.winner, first + pairs.loser], 1)
        return Expectation(spec, problem, index, pairs.weight)

    @staticmethod
    def of_whole_rankings(spec: LossSpec, problem: Problem) -> Expectation:
        """One ranking a prompt, of all its responses by their rewards, for losses of scores."""
        prompts, responses = problem.shape
        order = problem.rewards.argsort(-1, descending=True)
        index = torch.arange(prompts)[:, None] * responses + order
        weight = torch.full((prompts,), 1 / prompts, dtype=torch.float64)
        return Expectation(spec, problem, index, weight)

    def inputs(
        self, log_policy: Tensor, more: Mapping[str, Tensor] | None = None
    ) -> dict[str, Any]:
        """All that the loss's call can name, for log-probs [X, Y].

        ``more``: what only a policy of tokens has, by the input's name (``per_token``).
        """
        found: dict[str, Any] = {
            "policy": self._compared(log_policy),
            "reference": self._compared(self.problem.reference),
            "labels": self.labels,
        }
        if self.spec.kind == "pair":
            # As for rows without a margin column.
            found["margins"] = torch.zeros_like(self.weight)
        if self.spec.kind == "ranking":
            found["scores"] = self.problem.rewards.flatten()[self.index]
        for name, values in (more or {}).items():
            sides = [values.flatten(0, 1)[side] for side in self.index.unbind(1)]
            if name in ("sequence_kl", "log_square"):
                found[name] = PairValues(*sides)
            else:
                found[name] = PairTokens(*map(self._tokens, sides, self.index.unbind(1)))
        return {name: found[name] for name in self.spec.needs}

    def _tokens(self, logp: Tensor, index: Tensor) -> TokenLogprobs:
        lengths = self.problem.lengths.repeat(self.problem.shape[0])[index]
        return TokenLogprobs(logp, torch.arange(logp.shape[-1]) < lengths[:, None])

    def _compared(self, log_probs: Tensor) -> Pair | SequenceLogprobs | Ranking:
        sums = log_probs.flatten()
        lengths = self.problem.lengths.repeat(self.problem.shape[0])

        def of(index: Tensor) -> SequenceLogprobs:
            return SequenceLogprobs(sums[index], lengths[index])

        if self.spec.kind == "pair":
            return Pair(of(self.index[:, 0]), of(self.index[:, 1]))
        if self.spec.kind == "ranking":
            return Ranking(*of(self.index), torch.ones_like(self.index, dtype=torch.bool))
        return of(self.index)

    def value(
        self,
        loss: Callable[..., Any],
        log_policy: Tensor,
        more: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The expected loss, a scalar with gradient."""
        return (self.weight * loss(**self.inputs(log_policy, more)).losses).sum()


def per_token(needs: frozenset[str], policy: TokenTable, start: TokenTable) -> dict[str, Tensor]:
    """Those inputs of ``needs`` that only a policy of tokens has, for ``start`` as its reference.

    [X, Y], and [X, Y, T] for the log-probs of tokens.
    """
    made: dict[str, Callable[[], Tensor]] = {
        "sequence_kl": lambda: policy.sequence_kl(start),
        "log_square": policy.log_square,
        "policy_tokens": policy.token_logprobs,
        "reference_tokens": lambda: start.token_logprobs().detach(),
    }
    return {name: make() for name, make in made.items() if name in needs}


class Minimum(NamedTuple):
    """Where a minimisation ended: the value, and the largest entry of the gradient there."""

    value: float
    gradient: float


def minimise(
    module: nn.Module,
    objective: Callable[[], Tensor],
    *,
    rounds: int = 20,
    tolerance: float = 1e-12,
) -> Minimum:
    """Minimise ``objective()`` over the module's parameters with L-BFGS, all terms at once.

    A round is 25 iterations; a new one forgets the curvature, which helps where the last one got
    stuck. It ends early when no entry of the gradient exceeds ``tolerance``, when a round improved
    nothing, or when nothing is finite.
    """
    parameters = list(module.parameters())
    found = Minimum(float("nan"), float("nan"))
    for _ in range(rounds):
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=25,
            tolerance_grad=tolerance,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def closure(optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = objective()
            value.backward()
            return value

        optimizer.step(closure)  # type: ignore[arg-type]
        value = closure()
        largest = max(float(p.grad.abs().max()) for p in parameters if p.grad is not None)
        before, found = found, Minimum(value.item(), largest)
        no_better = found.value >= before.value and found.gradient > before.gradient / 2
        if not largest > tolerance or no_better:
            break
    return found
