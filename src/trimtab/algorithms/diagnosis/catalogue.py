"""What each diagnosis is told for, what it means and what to change.

For ``trimtab explain`` and docs/diagnoses.md; the numbers are the checks' own.
"""

from __future__ import annotations

from typing import NamedTuple

from trimtab.algorithms.diagnosis import limits
from trimtab.config.diagnoses import FAMILIES, SATURATING


class Described(NamedTuple):
    """``when``: the condition with its numbers; ``looks``: the metrics that it reads."""

    what: str
    when: str
    means: str
    change: str
    looks: str
    paper: str = ""


_RISEN = "the score has risen beyond noise, and "
_HELD = f"from {limits.EARLY:.0%} of the run on, held out (without held-out rows: training): "

CATALOGUE: dict[str, Described] = {
    # ------------------------------------------------------------------ reward hacking
    "watched": Described(
        "A watched reward falls while the one that is optimised rises.",
        f"{_RISEN}a watched reward is more than {limits.FALL} standard errors below its best "
        "window",
        "what is gained now are mistakes of the reward that is optimised",
        "keep the checkpoint near the peak (metric_for_best_model=watch/NAME/mean), raise kl_coef, "
        "train the reward model again on responses of this policy",
        "watch/NAME/mean, reward",
        "arXiv:2210.10760",
    ),
    "length": Described(
        "Responses run away in length.",
        f"{_RISEN}responses are {limits.LONGER} times as long as at the start (or "
        f"{limits.SHORTER}), and the score correlates with length that way by "
        f"{limits.CORRELATED} or more",
        "a longer (shorter) response scores better whatever it says",
        "a length reward (reward_funcs=length(target=...)), a reward model trained on pairs of "
        "equal length, a higher kl_coef",
        "completions/mean_length, rewards/length_correlation",
        "arXiv:2310.03716",
    ),
    "variety": Described(
        "Responses repeat themselves, or one another.",
        f"{_RISEN}distinct-2 is below {limits.LESS_VARIOUS} of the start, or repetition has "
        f"risen by {limits.REPEATED} and doubled",
        "all prompts get nearly the same response, and the reward does not mind",
        "read completions/, raise kl_coef, add a reward that minds (reward_funcs=repetition)",
        "completions/distinct_2, completions/repetition",
        "arXiv:1510.03055",
    ),
    "entropy": Described(
        "The policy has stopped choosing.",
        f"{_RISEN}the entropy of a token is below {limits.LESS_ENTROPY} of the start",
        "it has settled on one way to answer and explores no other",
        "raise kl_coef, lower learning_rate, train fewer passes over a rollout",
        "entropy, policy/entropy_avg",
        "arXiv:2505.22617",
    ),
    "disagreement": Described(
        "The members of a reward ensemble part.",
        f"{_RISEN}they are {limits.APART} times as far apart as at the start, beyond noise",
        "these responses are unlike those they were trained on, and their mean is a guess",
        "train them on responses of this policy, raise kl_coef, go on from an earlier checkpoint",
        "rewards/disagreement",
        "arXiv:2310.02743",
    ),
    "kl": Described(
        "The policy has gone much further than its gain asks for.",
        f"KL is above {limits.NATS:g} nats and {limits.FAR_FOR_GAIN:g} times g^2 / (2 s^2), g the "
        "gain of the score and s its spread at the start (Donsker and Varadhan)",
        "most of the way was for nothing that the reward sees",
        "raise kl_coef, lower learning_rate, train fewer passes over a rollout",
        "objective/kl, reward, reward_std",
        "arXiv:2210.10760",
    ),
    # ------------------------------------------------------------------ on-policy training
    "no_value": Described(
        "The value function explains nothing.",
        "from the eighth logged rollout on, explained variance is at most "
        f"{limits.NOTHING}, and does not rise (or half of the run is done)",
        "advantages are as noisy as without a value function; policy and value may not share a "
        "learning rate that suits both",
        "a higher rate for it (value_learning_rate, 3 to 10 times learning_rate), more "
        "num_ppo_epochs, cliprange_value=null where val/clipfrac_avg is high, an earlier run's "
        "values (value_model=RUN/value_model), or grpo or rloo",
        "val/explained_variance",
        "arXiv:1506.02438",
    ),
    "impossible_kl": Described(
        "A KL that no two policies can have, or that these two cannot have yet.",
        f"KL to the reference is below 0 by {limits.NEGATIVE} nats and {limits.RISE:g} standard "
        f"errors; or beyond {limits.AT_START} nats before anything was learned, where the policy "
        f"is its reference; or policy/approxkl_avg is above {limits.BEFORE_A_STEP} with one step "
        "a rollout",
        "the sampler, the trainer and the reference do not compute the same distribution "
        "(temperature, dropout, precision, another base below an adapter): ratios and penalties "
        "are wrong, and so is what is learned from them",
        "nothing in a recipe should bring this about: look at what was changed of the sampler, "
        "try old_logprobs=trainer and precision=fp32, and report it",
        "objective/kl, eval_kl, policy/approxkl_avg",
    ),
    # ------------------------------------------------------------------ preference training
    "displacement": Described(
        "log p(chosen) falls: the margin grows because both responses lose probability.",
        f"held-out log p(chosen) is {limits.PER_TOKEN} nats a token or more below the first "
        "evaluation (its perplexity 2 % up; with a reference, beyond the 95 % interval), "
        "and log p(rejected) has fallen, too. Without held-out rows: training rows say so, and "
        "both fall in half of the pairs. Told again at twice as much",
        "the loss knows the difference of two log-probs alone: pushing both down, the rejected one "
        "faster, is as good to it. What they lose goes to responses that are neither, which nobody "
        "judged. Where log p(chosen) of training rows has risen they are learned by heart. "
        "displacement/elsewhere says how much: "
        "displacement/chosen = log(s / s_ref) - elsewhere, s = p_w / (p_w + p_l). It is strongest "
        "where the two responses are much alike",
        "nll_weight=0.1 or more, a loss that holds the chosen response up (dpop, irpo, apo_zero, "
        "or orpo's likelihood), a higher beta, a lower learning_rate, an earlier checkpoint "
        "(metric_for_best_model=logps/chosen), pairs that differ more",
        "eval_logps/chosen, eval_logps/chosen_per_token, eval_logps/rejected, displacement/chosen, "
        "displacement/both_fell, displacement/elsewhere",
        "arXiv:2410.08847, arXiv:2402.13228",
    ),
    "stuck": Described(
        "The loss stays where it was at the start: ln 2 = 0.693 for DPO.",
        f"from {limits.EARLY:.0%} of the run on, mean log p(chosen) and log p(rejected) of the "
        f"last eighth are within {limits.STILL} nats a response of the reference's, which the "
        "policy was at the start",
        "the policy still is its reference: sigmoid(0) = 1/2, a coin",
        "raise learning_rate (LoRA wants ten times that of all weights), train more steps, look "
        "with trimtab data inspect whether chosen and rejected differ within max_length",
        "displacement/chosen, displacement/rejected, loss, grad_norm",
        "arXiv:2305.18290",
    ),
    "saturated": Described(
        "Margins so wide that hardly any gradient is left.",
        f"the mean margin of recent training pairs is {limits.WIDE:g} or more and "
        f"{limits.SURE:.0%} of them are right: the loss weighs such a pair by sigmoid(-5) = "
        "0.7 % (simpo: beyond gamma). Told of " + ", ".join(SATURATING),
        "these rows are learned, and with a difference of log-probs nothing says stop: what moves "
        "on is noise and displacement",
        "stop there, fewer epochs, a lower learning_rate, harder or more pairs, a loss with a "
        "margin to aim at (ipo, cdpo)",
        "rewards/chosen, rewards/rejected, rewards/accuracies",
        "arXiv:2310.12036",
    ),
    "small_beta": Described(
        "beta is too small: the policy goes far and the loss hardly counts it.",
        f"chosen and rejected have moved apart by {limits.FAR:g} nats a response and "
        f"{limits.FAR_PER_TOKEN} a token, and the margin, beta times that, is below "
        f"{limits.NARROW:g}: over half of the first gradient is left",
        "beta is what holds the policy near its reference; with so little the text gives way "
        "before the loss is content",
        "raise beta: at 2 / (gap in nats) the same distance is a margin of 2; or lower "
        "learning_rate",
        "displacement/chosen, displacement/rejected and the same per token, rewards/chosen, "
        "rewards/rejected",
        "arXiv:2305.18290",
    ),
    "below_chance": Described(
        "The rejected response is preferred.",
        f"{_HELD}accuracy is below 0.5 with its whole 95 % interval, and the mean margin is below "
        "0",
        "chosen and rejected are swapped somewhere, or held-out rows were judged otherwise",
        "look at columns, at ranks (1 is the best) and labels, and with trimtab data inspect at "
        "what the model sees; a reward model that is just untrained is at_chance",
        "rewards/accuracies and rewards/margins; accuracy and margin of a reward model",
    ),
    "by_length": Described(
        "Preference goes by length more than people's does.",
        f"{_HELD}the longer (shorter) response has the higher reward more often than it is the "
        f"chosen one, by {limits.BY_LENGTH} of the pairs and {limits.ERRORS:g} standard "
        "errors, and by 0.1 more often than not",
        "length was the easiest thing to learn: a policy trained on such a reward runs away in "
        "length",
        "balance the lengths of chosen and rejected responses; a loss that discounts length "
        "(r_dpo, ld_dpo, ln_dpo, simpo); with a reward model, reward_funcs=length beside it",
        "lengths/longer_rewarded, lengths/chosen_longer, lengths/compared",
        "arXiv:2403.19159",
    ),
    # ------------------------------------------------------------------ reward models
    "at_chance": Described(
        "A reward model that knows no more than a coin.",
        f"from {limits.HALF:.0%} of the run on, accuracy (held out; without held-out rows: "
        f"training) is at most {limits.COIN}, its 95 % interval holds 0.5 and ends below "
        f"{limits.NO_BETTER}",
        "a policy that is trained on it learns noise; with a high training accuracy the rows were "
        "learned by heart",
        "raise learning_rate, more rows or epochs, more of the model (backbone.share=1); by heart: "
        "fewer epochs, less of the model; look whether the judgments are clear",
        "accuracy",
        "arXiv:2203.02155",
    ),
    "too_good": Described(
        "A reward model that is right more often than people agree with each other.",
        f"the 95 % interval of accuracy (held out; without held-out rows: training, within the "
        f"first epoch) begins at {limits.TOO_GOOD} or above",
        "people agree in 63 to 77 % of comparisons: something else gives the chosen response "
        "away, and a policy will find it",
        "look for length, a format, an end or a name that only one side has, for two models that "
        "wrote the two sides, for rows in training and held-out files. Rows that a rule judged "
        "may well be this easy",
        "accuracy, lengths/longer_rewarded",
        "arXiv:2009.01325, arXiv:2203.02155",
    ),
}
assert set(CATALOGUE) == {name for names in FAMILIES.values() for name in names}
