"""Where rewards come from: reward models and ensembles of them."""
