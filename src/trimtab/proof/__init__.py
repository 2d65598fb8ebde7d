"""Objectives held against optima that are known: a language small enough to list every response.

language       the responses, as letters and as tokens
problem        a reference, rewards and a sampling distribution over them; the setup E6
preferences    every comparison or ranking with its exact probability, or a sample of them
closed_forms   the optima: KL-regularised reward maximisation, IPO
tabular        policies with one number a response, or one a prefix and token
expectation    the exact expected loss of such a policy, and its minimum
transformer    the same language for a real model: folder, tokenizer, rows, log-probs
optimum        where a loss leads on E6, beside those optima
differences    gradients by finite differences, stopped gradients held
bench          what a loss's numbers do: gradient, direction, extremes, invariances
verify         all of it together, for ``trimtab verify-loss``

``tests/exact`` makes its claims with these.
"""
