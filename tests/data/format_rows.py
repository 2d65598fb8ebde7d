"""A row of every kind, for the tests of formats."""

from __future__ import annotations


def user(content):
    return {"role": "user", "content": content}


def bot(content):
    return {"role": "assistant", "content": content}


PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}
