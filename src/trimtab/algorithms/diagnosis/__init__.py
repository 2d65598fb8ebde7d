"""What goes wrong in a run, found in what it logs and said in plain language.

    history       the logged numbers as columns, windows over them, and their noise
    hacking       on-policy runs: the reward rises, and something says that the rise is empty
    sampled       on-policy runs: a value function that explains nothing, a KL that cannot be
    preference    dpo and its family, on rows
    reward_model  reward
    limits        the numbers at which the checks tell
    catalogue     what each is told for, and what it means: for ``trimtab explain`` and the docs
    told          a run's history and what has been found of it

A check is a function of the history and a few facts of the recipe. So a run that is killed and goes
on finds the same, and the log is the only state.
"""
