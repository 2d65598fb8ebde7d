"""Rows of every format, chat templates and masks, token trees, their batches and their order."""
