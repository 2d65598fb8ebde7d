"""What is wrong with a file of rows: ``trimtab data check FILE``.

``faults`` is the table of what can be found. ``row_checks`` look at one row, ``set_checks``,
``order_checks`` and ``length`` at all of them, ``token_checks`` at what a tokenizer makes of them;
``check`` runs them, and ``view`` prints what they found.
"""
