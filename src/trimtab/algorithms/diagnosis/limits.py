"""The numbers at which the checks tell: apart from them, so that naming them takes no numpy."""

RISE = 3.0  # standard errors of the difference of a window and the start

# ---------------------------------------------------------------------- reward hacking
FALL = 3.5  # standard errors of the difference of two windows
LONGER, SHORTER, CORRELATED = 1.5, 0.5, 0.3  # of the mean length at the start; a correlation
LESS_VARIOUS, REPEATED = 0.5, 0.1  # of distinct-2 at the start; more of repetition
LESS_ENTROPY = 0.2  # of the entropy at the start
APART = 1.5  # times the disagreement at the start
FAR_FOR_GAIN, NATS = 5.0, 5.0  # times the KL that the gain asks for, and at least so many nats

# ---------------------------------------------------------------------- on-policy training
NOTHING = 0.05  # of the variance of returns; what is below it is no help
STILL_LEARNING = 0.5  # of the run: a value function that gets better may take so long
NEGATIVE = 0.1  # nats below 0, beside the error: rounding of a long response is less
AT_START = 0.5  # nats between a policy and itself: in bf16, rounding of 256 tokens is 0.2
BEFORE_A_STEP = 0.01  # nats^2 a token: half the squared log-ratio of weights with themselves

# ---------------------------------------------------------------------- preference training
PER_TOKEN = 0.02  # nats: the perplexity of the chosen responses is 2 % up
EARLY = 0.25  # of the run, warm-up (a tenth) included: what has not moved by then may be slow
STILL = 0.2  # nats of a response: with a beta of 0.1 the loss is within 1 % of ln 2
WIDE, SURE = 5.0, 0.98  # sigmoid(-5) = 0.7 % of the gradient is left; and of nearly every pair
NARROW = 1.0  # a margin at which over half of the first gradient is left, sigmoid(-1) = 0.27 of 0.5
FAR, FAR_PER_TOKEN = 20.0, 0.5  # nats of a pair: odds have changed by e^20, a token's by 1.6
ERRORS = 3.0  # standard errors that a share of rows has to be away from what is expected
BY_LENGTH, ONE_SIDED = 0.15, 0.1  # above the data's share; and away from a half
LEAST_MARGIN = 0.01  # below it, a policy beside its reference: signs of rounding

# ---------------------------------------------------------------------- reward models
HALF = 0.5  # of the run: an epoch is often all there is
COIN, NO_BETTER = 0.55, 0.6  # accuracy; the end of its interval: rows enough to tell
TOO_GOOD = 0.95  # people agree in 63 to 77 % of comparisons (arXiv:2009.01325, 2203.02155)
BY_HEART = 0.7  # on training rows, while held-out ones are at chance
