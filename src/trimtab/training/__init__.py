"""The one training loop and what it stands on: terms, precision, checkpoints, metrics, progress."""
