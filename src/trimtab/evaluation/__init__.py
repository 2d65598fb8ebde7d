"""What a model is worth on held-out rows, and how far the numbers can be trusted."""
