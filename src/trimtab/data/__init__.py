"""Rows of every format, chat templates and masks, token trees, batches of trees, and their order."""
