"""Every number that a run logs: what it is, its formula, its unit, what is healthy, whose it is.

Names are those of metrics.jsonl; held-out ones have ``eval_`` before them and, where it is known,
their 95 % interval beside them as ``_ci95``. ``<...>`` stands for any name without a slash. Tests
hold the table against what whole runs write, and against the source: no name is missing, none is
left over.
"""

from __future__ import annotations

import re
from typing import NamedTuple

DPO, PPO, GRPO = "arXiv:2305.18290", "arXiv:1707.06347", "arXiv:2402.03300"
RLHF, ZIEGLER = "arXiv:2203.02155", "arXiv:1909.08593"


class Metric(NamedTuple):
    """One row of the table; ``of``: which verbs log it."""

    name: str
    of: str
    what: str
    formula: str = ""
    unit: str = ""
    healthy: str = ""
    paper: str = ""

    def matches(self, name: str) -> bool:
        """Whether it is the row of a logged name."""
        pattern = re.sub(r"<\w+>", "[^/]+", re.escape(self.name).replace(r"\<", "<"))
        return re.fullmatch(pattern.replace(r"\>", ">"), name) is not None


_ALL = "every verb"
_LM = "pretrain, sft"
_PAIRS = "dpo and its family, online_dpo"
_REWARD = "reward"
_ON_POLICY = "ppo, grpo, rloo, online_dpo, raft"
_GROUP = "grpo, rloo"

METRICS: tuple[Metric, ...] = (
    # ------------------------------------------------------------------ every run
    Metric("step", _ALL, "Optimizer steps done.", unit="steps"),
    Metric(
        "loss",
        _ALL,
        "The whole objective: every term by its weight, a mean over the logged steps.",
        "sum over terms of weight x (sum over the step's units) / (units of the step)",
        healthy="falls; of dpo from ln 2 = 0.693. Of ppo and grpo it says nothing: see reward",
    ),
    Metric(
        "loss/<term>",
        _ALL,
        "One term of the objective, or one member of a sum of losses, before its weight.",
        "sum over the step's units / units of the step",
        healthy="as the loss of its name: trimtab explain dpo, nll, ...",
    ),
    Metric(
        "grad_norm",
        _ALL,
        "Norm of the gradient before it is clipped to max_grad_norm.",
        "sqrt(sum of squares over all trained weights)",
        healthy="steady; always far above max_grad_norm: every step is cut; near 0: nothing to "
        "learn, or nothing is trained",
    ),
    Metric(
        "grad_norm/<stream>",
        "with mix",
        "The same of the main rows and of the mixed-in text alone.",
        healthy="of one order: the weight of mix is what balances them",
    ),
    Metric(
        "learning_rate",
        _ALL,
        "Of the last step, schedule and warm-up included.",
        healthy="as lr_scheduler_type draws it",
    ),
    Metric("epoch", _ALL, "Passes over the training rows.", unit="epochs"),
    Metric("num_tokens", _ALL, "Tokens that went through the model.", unit="tokens"),
    Metric(
        "skipped_steps",
        _ALL,
        "Steps whose loss or gradient was not finite, and that changed nothing (on_nonfinite).",
        unit="steps",
        healthy="not there; a few in thousands may be: more is a learning_rate that is too high",
    ),
    Metric("time/tokens_per_second", _ALL, "Speed since the last log.", unit="tokens / s"),
    Metric("time/eval_seconds", _ALL, "Time of an evaluation.", unit="s"),
    Metric(
        "mix_nll",
        "with mix",
        "Loss per token on the mixed-in text, before its weight.",
        "-sum log pi(x_i | x_<i) / tokens",
        "nats",
        "stays where it was before: that is what mix is for",
        RLHF,
    ),
    # ------------------------------------------------------------------ language models
    Metric(
        "perplexity",
        _LM,
        "Held-out text: as many equally likely tokens is the model torn between.",
        "exp(loss)",
        healthy="falls; one that rises while the training loss falls: rows are learned by heart",
    ),
    Metric(
        "bpb",
        "pretrain",
        "Bits per byte of held-out text: comparable between tokenizers.",
        "sum of -log2 pi / bytes",
        "bits",
        "0.6 to 1.2 for English",
    ),
    Metric(
        "mean_token_accuracy",
        "pretrain, sft, raft",
        "How often the likeliest token is the right one.",
        "mean over trained tokens of [argmax pi = x_i]",
        "share",
        "0.4 to 0.8 on text; near 1: learned by heart",
    ),
    Metric(
        "entropy",
        "pretrain, sft, grpo, rloo",
        "How undecided the policy is about a token.",
        "mean over tokens of -sum_v pi(v) log pi(v)",
        "nats",
        "1 to 3 on text. In grpo slowly falling; a fifth of the start is diagnosed (entropy)",
    ),
    Metric("tokens", _LM, "Held-out tokens that were scored.", unit="tokens"),
    Metric("lm_loss", "classify; eval_text_name", "Loss per token on held-out text.", unit="nats"),
    # ------------------------------------------------------------------ classify
    Metric(
        "accuracy",
        "classify, reward",
        "Classify: share of texts whose class is right. Reward: share of comparisons in which the "
        "preferred response has the higher reward; a tie is wrong.",
        "mean of [r(x, y_w) > r(x, y_l)]",
        "share",
        "reward: 0.6 to 0.8 held out, as people agree with each other; 0.5 is a coin, above 0.95 "
        "something gives it away",
        RLHF,
    ),
    Metric("nll", "classify", "Loss per token on the classified text (alpha's term).", unit="nats"),
    Metric(
        "macro_f1",
        "classify",
        "Mean over classes of 2 TP / (2 TP + FP + FN): rare classes count as much.",
        unit="0 to 1",
        healthy="near accuracy; far below it: rare classes are missed",
    ),
    Metric("recall", "classify", "By class: how many of its texts were recognised.", unit="share"),
    Metric("confusion", "classify", "By true class: how many texts were taken for which."),
    Metric("rows", "classify", "Held-out rows.", unit="rows"),
    # ------------------------------------------------------------------ reward
    Metric(
        "margin",
        _REWARD,
        "How far the preferred response's reward is above the other's.",
        "mean of r(x, y_w) - r(x, y_l)",
        healthy="rises to 0.5 to 2; with a falling held-out accuracy it is overconfidence",
        paper=RLHF,
    ),
    Metric(
        "mean_reward",
        _REWARD,
        "Mean reward of all responses.",
        healthy="anything: the loss knows differences alone; it is centred at the end",
    ),
    Metric("min_reward", "reward, " + _ON_POLICY, "Lowest reward of a response."),
    Metric("max_reward", "reward, " + _ON_POLICY, "Highest reward of a response."),
    Metric(
        "pairs",
        "reward; " + _PAIRS,
        "Comparisons that were held out, or (online_dpo) made of a rollout.",
        unit="comparisons",
        healthy="hundreds held out: of 100 an accuracy is known to within 0.1",
    ),
    # ------------------------------------------------------------------ preferences
    Metric(
        "rewards/chosen",
        _PAIRS,
        "Implicit reward of the chosen response.",
        "dpo: beta log(pi / pi_ref)(y_w); simpo: beta log pi(y_w) / |y_w|; see the loss",
        healthy="above 0, or falling slower than rewards/rejected; below 0 is displacement",
        paper=DPO,
    ),
    Metric(
        "rewards/rejected",
        _PAIRS,
        "Implicit reward of the rejected response.",
        "as rewards/chosen, of y_l",
        healthy="falls",
        paper=DPO,
    ),
    Metric(
        "rewards/margins",
        _PAIRS,
        "What the loss widens: chosen less rejected.",
        "mean of rewards/chosen - rewards/rejected",
        healthy="0.2 to 2; near 0 for long is stuck, above 5 saturated",
        paper=DPO,
    ),
    Metric(
        "rewards/accuracies",
        _PAIRS,
        "Share of pairs with a positive margin; a tie is wrong, so it is 0 where the policy is its "
        "reference.",
        "mean of [margin > 0]",
        "share",
        "0.6 to 0.8 held out; below 0.5 chosen and rejected may be swapped",
        DPO,
    ),
    Metric(
        "logps/chosen",
        _PAIRS,
        "Log-probability of the chosen response.",
        "mean over pairs of sum_t log pi(y_t | x, y_<t)",
        "nats a response",
        "held out: not below the start. Between training batches it varies with their lengths",
        DPO,
    ),
    Metric(
        "logps/rejected",
        _PAIRS,
        "Log-probability of the rejected response.",
        "as logps/chosen, of y_l",
        "nats a response",
        "falls",
        DPO,
    ),
    Metric(
        "logps/chosen_per_token",
        _PAIRS + ", held out",
        "Log-probability of a token of the chosen response.",
        "mean of log pi(y_w) / |y_w|",
        "nats",
        "not more than 0.02 below the start (perplexity 2 % up): displacement",
    ),
    Metric(
        "logps/accuracies",
        _PAIRS + ", held out",
        "How often the policy gives the chosen response the higher log-probability; there before "
        "any training, too.",
        "mean of [log pi(y_w) > log pi(y_l)]",
        "share",
        "rises, little: it goes by length first",
        "arXiv:2405.19534",
    ),
    Metric(
        "logps/accuracies_mean",
        _PAIRS + ", held out",
        "The same by log-probability per token: how it ranks responses of different lengths.",
        "mean of [log pi(y_w) / |y_w| > log pi(y_l) / |y_l|]",
        "share",
        "rises",
        "arXiv:2405.14734",
    ),
    Metric(
        "displacement/chosen",
        _PAIRS + ", with a reference",
        "How much likelier the chosen response has become.",
        "mean of log pi(y_w) - log pi_ref(y_w) = log(s / s_ref) - elsewhere, "
        "s = pi(y_w) / (pi(y_w) + pi(y_l))",
        "nats a response",
        "above 0; a little below is common in DPO, and displacement is told from 0.02 a token",
        "arXiv:2410.08847",
    ),
    Metric(
        "displacement/rejected",
        _PAIRS + ", with a reference",
        "How much likelier the rejected response has become.",
        "mean of log pi(y_l) - log pi_ref(y_l)",
        "nats a response",
        "below 0",
        "arXiv:2410.08847",
    ),
    Metric(
        "displacement/chosen_per_token",
        _PAIRS + ", with a reference",
        "displacement/chosen by the tokens of each response.",
        "mean of (log pi(y_w) - log pi_ref(y_w)) / |y_w|",
        "nats",
        "above -0.02",
        "arXiv:2410.08847",
    ),
    Metric(
        "displacement/rejected_per_token",
        _PAIRS + ", with a reference",
        "displacement/rejected by the tokens of each response.",
        "mean of (log pi(y_l) - log pi_ref(y_l)) / |y_l|",
        "nats",
        "below 0, above -0.5",
        "arXiv:2410.08847",
    ),
    Metric(
        "displacement/both_fell",
        _PAIRS + ", with a reference",
        "Share of pairs of which both responses have become less likely.",
        "mean of [pi(y_w) < pi_ref(y_w) and pi(y_l) < pi_ref(y_l)]",
        "share",
        "below 0.5",
        "arXiv:2410.08847",
    ),
    Metric(
        "displacement/elsewhere",
        _PAIRS + ", with a reference",
        "Probability that left a pair for responses that are neither of the two: their common "
        "probability has fallen by the factor exp(-elsewhere). Where it is negative the pair has "
        "gained.",
        "mean of log(pi_ref(y_w) + pi_ref(y_l)) - log(pi(y_w) + pi(y_l))",
        "nats",
        "near 0 or below; growing with the margin, it pays for it",
        "arXiv:2410.08847",
    ),
    Metric(
        "lengths/chosen_longer",
        "reward; " + _PAIRS,
        "The data: how often the longer response is the chosen one. Pairs of equal length or "
        "equal reward are left out.",
        "mean of [|y_w| > |y_l|]",
        "share",
        "people prefer longer ones, too: 0.5 to 0.65",
        "arXiv:2403.19159",
    ),
    Metric(
        "lengths/longer_rewarded",
        "reward; " + _PAIRS,
        "The model: how often the longer response has the higher reward, of the same pairs.",
        "mean of [(|y_w| > |y_l|) = (r_w > r_l)]",
        "share",
        "within 0.15 of lengths/chosen_longer",
        "arXiv:2403.19159",
    ),
    Metric(
        "nll_loss",
        "with nll_weight; orpo, cpo",
        "Loss per token of the chosen responses, before its weight.",
        "-sum log pi(y_w,t) / tokens",
        "nats",
        "falls",
        "arXiv:2403.07691",
    ),
    Metric(
        "pairs_kept",
        "beta_dpo",
        "Share of pairs that the filter keeps.",
        unit="share",
        healthy="near loss.keep",
        paper="arXiv:2407.08639",
    ),
    Metric(
        "kl",
        "grpo; kto; on-policy evaluations",
        "grpo: KL term of the loss, a token. kto: z0, the reference point. Held out (eval_kl): KL "
        "to the reference, a response. Not objective/kl, not policy/approxkl_avg.",
        "grpo: mean of k3 = pi_ref/pi - 1 - log(pi_ref/pi); kto: max(0, mean log(pi/pi_ref)) of "
        "mismatched rows; eval: mean of sum_t log(pi/pi_ref)",
        "nats",
        "never below 0 beyond noise; grpo: below 0.1 a token; eval_kl: 1 to 20",
        "arXiv:2402.01306",
    ),
    # ------------------------------------------------------------------ rollouts
    Metric(
        "reward",
        _ON_POLICY,
        "The score that is optimised, a mean over responses: rewards by their weights, penalties "
        "taken off.",
        healthy="rises by design: whether it means anything is for watch/ and the held-out reward",
        paper=RLHF,
    ),
    Metric(
        "reward_std",
        _ON_POLICY,
        "Spread of the score.",
        healthy="above 0: no spread teaches nothing",
    ),
    Metric("rewards/<name>/mean", _ON_POLICY, "One reward before its weight."),
    Metric("rewards/<name>/std", _ON_POLICY, "Its spread over responses."),
    Metric(
        "watch/<name>/mean",
        _ON_POLICY,
        "A watched reward (watch_funcs, watch_model): measured, optimised by nobody.",
        healthy="rises with reward; a fall from its peak is diagnosed (watched)",
        paper="arXiv:2210.10760",
    ),
    Metric("watch/<name>/std", _ON_POLICY, "Its spread over responses."),
    Metric(
        "rewards/disagreement",
        "with an ensemble",
        "Standard deviation between the members of a reward ensemble.",
        healthy="steady; 1.5 times the start: they guess (disagreement)",
        paper="arXiv:2310.02743",
    ),
    Metric(
        "rewards/length_correlation",
        _ON_POLICY,
        "Correlation of the score with the number of tokens.",
        unit="-1 to 1",
        healthy="between -0.3 and 0.3",
        paper="arXiv:2310.03716",
    ),
    Metric(
        "rewards/dropped",
        _ON_POLICY,
        "Share of responses that no reward could judge.",
        unit="share",
        healthy="not there",
    ),
    Metric(
        "rewards/kept",
        "raft",
        "Mean score of the responses that are trained on.",
        healthy="above reward",
    ),
    Metric(
        "completions/kept_ratio",
        "raft",
        "Share of responses that are trained on.",
        unit="share",
        healthy="keep_top / num_generations, less with min_score",
    ),
    Metric(
        "completions/mean_length",
        _ON_POLICY,
        "Tokens of a response.",
        unit="tokens",
        healthy="steady: running away with the score is diagnosed (length)",
    ),
    Metric("completions/min_length", _ON_POLICY, "Shortest response.", unit="tokens"),
    Metric("completions/max_length", _ON_POLICY, "Longest response.", unit="tokens"),
    Metric(
        "completions/mean_terminated_length",
        _ON_POLICY,
        "Tokens of a response that ended by itself.",
        unit="tokens",
    ),
    Metric(
        "completions/clipped_ratio",
        _ON_POLICY,
        "Share of responses that were cut off at max_completion_length.",
        unit="share",
        healthy="below 0.1: a reward of half an answer is of little use; raise "
        "max_completion_length or set missing_eos_penalty",
    ),
    Metric(
        "completions/repetition",
        _ON_POLICY,
        "Share of a response's token 4-grams that it has said before.",
        "1 - different / all",
        "share",
        "steady; a rise by 0.1 is diagnosed (variety)",
    ),
    Metric(
        "completions/distinct_1",
        _ON_POLICY,
        "Different tokens of all responses together, by all of them.",
        unit="share",
        healthy="steady; falls by itself as responses grow longer",
        paper="arXiv:1510.03055",
    ),
    Metric(
        "completions/distinct_2",
        _ON_POLICY,
        "The same of pairs of tokens.",
        unit="share",
        healthy="steady; half of the start is diagnosed (variety)",
        paper="arXiv:1510.03055",
    ),
    Metric(
        "frac_reward_zero_std",
        "grpo, rloo, online_dpo, raft",
        "Share of prompts whose responses all have the same reward: nothing is learned of them.",
        unit="share",
        healthy="below 0.5; above 0.8 the prompts are too easy or too hard, or the reward too "
        "coarse",
        paper="arXiv:2503.14476",
    ),
    Metric(
        "objective/scores_margin",
        "online_dpo",
        "Gap of the scores of the two compared.",
        "mean of r(y_w) - r(y_l)",
        healthy="above 0; it shrinks as responses become alike",
    ),
    # ------------------------------------------------------------------ ppo and groups
    Metric(
        "objective/kl",
        _ON_POLICY,
        "KL of the policy that sampled to the reference, a response.",
        "mean over responses of sum_t log pi(y_t) - log pi_ref(y_t) (k1)",
        "nats a response",
        "0 at the start, 1 to 20 later; negative beyond noise cannot be (impossible_kl)",
        ZIEGLER,
    ),
    Metric(
        "objective/entropy",
        "ppo",
        "Minus log-probability of the sampled response.",
        "mean of -sum_t log pi(y_t)",
        "nats a response",
        "falls slowly",
    ),
    Metric(
        "objective/non_score_reward",
        "ppo",
        "The KL penalty inside the reward.",
        "-kl_coef x sum_t KL_t",
        healthy="small beside objective/scores",
        paper=ZIEGLER,
    ),
    Metric(
        "objective/scores", "ppo", "Score of the responses that could be judged.", healthy="rises"
    ),
    Metric(
        "objective/rlhf_reward",
        "ppo",
        "What PPO maximises: score and penalty.",
        "objective/scores + objective/non_score_reward",
        healthy="rises",
        paper=ZIEGLER,
    ),
    Metric(
        "kl_coef",
        "ppo",
        "Strength of the KL penalty, moved by kl_controller=adaptive.",
        paper=ZIEGLER,
    ),
    Metric(
        "policy/approxkl_avg",
        "ppo, grpo, rloo",
        "How far the policy has gone from the one that sampled the rollout.",
        "mean over tokens of (log pi - log pi_old)^2 / 2",
        "nats^2 a token",
        "below 0.02; 0 with one step a rollout",
        PPO,
    ),
    Metric(
        "policy/clipfrac_avg",
        "ppo",
        "Share of tokens whose ratio is beyond the clip range.",
        "mean of [|rho - 1| > cliprange]",
        "share",
        "0.01 to 0.3",
        PPO,
    ),
    Metric(
        "policy/entropy_avg",
        "ppo",
        "Entropy of a token.",
        "mean of -sum_v pi log pi",
        "nats",
        "falls slowly; a fifth of the start is diagnosed (entropy)",
    ),
    Metric(
        "clip_ratio/region_mean",
        _GROUP,
        "Share of tokens that the clip range holds back.",
        unit="share",
        healthy="0 to 0.2",
        paper=GRPO,
    ),
    Metric(
        "loss/policy_avg",
        "ppo",
        "Policy term, a token (lines 1 to 3: a response).",
        "mean of -min(rho A, clip(rho) A)",
        healthy="near 0, either side",
        paper=PPO,
    ),
    Metric(
        "loss/value_avg",
        "ppo",
        "Value term before vf_coef.",
        "mean of max((V - G)^2, (clip(V) - G)^2) / 2",
        healthy="falls",
        paper=PPO,
    ),
    Metric(
        "val/ratio",
        "ppo, grpo, rloo",
        "Mean importance ratio.",
        "mean of pi / pi_old",
        healthy="0.95 to 1.05; exactly 1 with one step a rollout",
        paper=PPO,
    ),
    Metric(
        "val/ratio_var",
        "ppo",
        "Its spread around 1.",
        "mean of (rho - 1)^2",
        healthy="below 0.1",
        paper=PPO,
    ),
    Metric(
        "val/clipfrac_avg",
        "ppo",
        "Share of values that moved beyond cliprange_value.",
        unit="share",
        healthy="below 0.3; more, and the value function is held back",
    ),
    Metric(
        "val/num_eos_tokens",
        "ppo",
        "Responses of the rollout that ended by themselves.",
        unit="responses",
        healthy="nearly all",
    ),
    Metric(
        "val/explained_variance",
        "ppo",
        "How much of the returns the value function foresees.",
        "1 - Var(G - V) / Var(G)",
        "at most 1",
        "0.3 to 0.9 after some rollouts; below 0.05 it explains nothing (no_value)",
        "arXiv:1506.02438",
    ),
    Metric(
        "length",
        "on-policy evaluations",
        "Tokens of a response to a held-out prompt.",
        unit="tokens",
        healthy="steady",
    ),
    Metric(
        "ended",
        "on-policy evaluations",
        "Share of them that ended by themselves.",
        unit="share",
        healthy="above 0.9",
    ),
    # ------------------------------------------------------------------ a diagnosis in the log
    Metric("diagnosis", _ALL, "A line of the log that is a diagnosis has its name here."),
    Metric("about", _ALL, "The watched reward that a diagnosis is about."),
    Metric("says", _ALL, "A diagnosis as a sentence: the number, what it means, what to change."),
    Metric("numbers", _ALL, "The numbers of that sentence."),
    Metric("severity", _ALL, "How bad a diagnosis is: at twice as much it is told again."),
)


def metric_of(name: str) -> Metric | None:
    """The row of a logged name, held out or with its interval, too."""
    plain = name.removeprefix("eval_").removesuffix("_ci95")
    exact = next((one for one in METRICS if one.name == plain), None)
    return exact or next((one for one in METRICS if one.matches(plain)), None)
