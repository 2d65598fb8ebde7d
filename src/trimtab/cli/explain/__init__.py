"""``trimtab explain NAME``: what a metric, loss, recipe key, verb, tool or diagnosis is.

    command    the verb
    entry      what is said of a name
    recipe_names, tool_names
               losses and recipe keys, tools and their options: as they say it themselves
    sources    where entries come from, by kind: ``SOURCES`` is the registry, and a further kind of
               names is one more line of it

Nothing here imports torch or numpy: losses are read from their source, keys from the recipes'
schema, tools from their table and their functions.
"""
