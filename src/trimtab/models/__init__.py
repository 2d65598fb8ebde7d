"""Models: load and save, tree attention, token log-probs, adapters, tokenizer training.

Each module imports torch and transformers, so import the one that you need where you need it.
"""
