"""What the losses' hyper-parameters do, in words: for ``--help`` and ``trimtab explain beta``.

Several losses share a name; the formula of each is in its docstring (``trimtab explain LOSS``).
"""

from __future__ import annotations

PARAMETERS = {
    "beta": "Strength of the KL pull to the reference: larger keeps the policy nearer to it, "
    "smaller lets it go further. Without a reference (simpo, simpo_ratio, alphapo, cpo) the scale "
    "of the margin; of orpo the weight of the loss.",
    "epsilon": "Share of labels taken to be flipped, from 0 to 0.5 (cdpo, robust); what the "
    "target of exo gives the rejected response.",
    "tau": "Strength of the pull to the reference (ipo, ipo_sum: the margin aimed at is "
    "1 / (2 tau)); of discopop how softly it changes between its two losses.",
    "delta": "Margin of log-probabilities from which on a pair costs nothing.",
    "target_weight": "Weight of the chosen response's log-likelihood.",
    "gamma": "Margin by which the chosen response has to win, in units of the reward.",
    "gamma_beta_ratio": "That margin divided by beta, as the authors' code asks for it.",
    "alpha": "Another thing in every loss: the weight of the chosen response's likelihood (irpo, "
    "rpo), of the difference in KL (tdpo2), of a token of length (r_dpo) or of the tokens beyond "
    "the shorter response (ld_dpo); the shape of the reward (alphapo) or of the divergence "
    "(fdpo_alpha); the temperature of the scores (infonca, nca_rewards).",
    "log_epsilon": "Logarithm of the target of the rejected response.",
    "eta": "1 / beta: smaller keeps the policy nearer to the reference.",
    "penalty": "Weight of the penalty where the chosen response has lost probability.",
    "scale": "How much the step's beta follows the gap of its pairs; 0: beta stays.",
    "momentum": "Of the running means over steps: nearer to 1 they move more slowly.",
    "keep": "Share of a step's pairs that is kept, above all those whose gap is no outlier.",
    "desirable_weight": "Weight of desirable responses.",
    "undesirable_weight": "Weight of undesirable responses.",
    "reward_beta": "Temperature of the scores: smaller puts more of the target on the best.",
}
