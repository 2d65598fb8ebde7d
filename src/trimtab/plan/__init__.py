"""``trimtab plan``: what a recipe will need, in memory and time, before a weight is loaded."""
