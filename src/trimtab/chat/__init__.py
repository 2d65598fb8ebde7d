"""``trimtab chat``: a conversation with one model or two, in the terminal or through a pipe."""
