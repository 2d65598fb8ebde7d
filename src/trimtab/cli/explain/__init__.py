"""``trimtab explain NAME``: what a metric, loss, recipe key, verb or diagnosis is.

    command    the verb
    entry      what is said of a name
    sources    where entries come from, by kind: ``SOURCES`` is the registry, and a further kind of
               names is one more line of it

Nothing here imports torch: losses are read from their source, keys from the recipes' schema.
"""
