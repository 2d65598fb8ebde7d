"""Rows to trees in few words, for the tests of tokenising."""

from __future__ import annotations

from tests.data.fixtures_tokenizers import make_tokenizer
from tests.data.mask_checks import assistant, user
from tests.data.test_chat import CHATML, CONTROL

from trimtab.data.chat import ChatRenderer
from trimtab.data.rows import (
    Example,
)
from trimtab.data.tokenise import Drop, TokeniseOptions, tokenise
from trimtab.data.trees import Origin, TokenTree

NO_LIMIT = TokeniseOptions(max_length=None)

HI, YES, NO = [user("Hi?")], [assistant("yes")], [assistant("no way")]


def renderer(kind: str = "bytes, no bos", template: str | None = CHATML) -> ChatRenderer:
    return ChatRenderer(make_tokenizer(kind, template, CONTROL))


def at(row: int = 1) -> Origin:
    return Origin("rows.jsonl", row)


def trees(example: Example, options: TokeniseOptions = NO_LIMIT, **kind: str) -> list[TokenTree]:
    found = tokenise(example, renderer(**kind), options)
    assert not isinstance(found, Drop), found
    return found
