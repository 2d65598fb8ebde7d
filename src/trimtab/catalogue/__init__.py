"""What the numbers of a run mean, for every part that shows them; imports nothing of ours."""
