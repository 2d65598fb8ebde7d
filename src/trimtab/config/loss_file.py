"""A user's own loss, ``my_loss.py:my_loss``: its declaration, read without running the file.

The rules are those of ``loss_schema.py``. The file is run when a stage is built
(``losses/from_file.py``), before any weight is loaded.
"""

from __future__ import annotations

import ast
from pathlib import Path

from trimtab.config.loss_schema import LossSchema, Undeclared, declaration, definition, loss_schemas
from trimtab.config.loss_sum import SFT
from trimtab.config.suggest import did_you_mean

# Keys of the recipe's group, and terms of an objective: neither can be the name of anything else.
_TAKEN_KEYS = frozenset({"name", "file", "parameters"})
_TAKEN_NAMES = frozenset({"nll", "mix"})


class LossFileError(Exception):
    """A file that holds no such loss; the message begins with the file, and its line if known."""


def split_loss_file(value: str) -> tuple[str, str]:
    """``my_loss.py:my_loss`` as its two parts. LossFileError where it has not two."""
    path, colon, name = value.rpartition(":")
    if not colon or not path or not name.isidentifier():
        found = _names(_parsed(value)) if Path(value).is_file() else []
        defined = f"; {value} defines {', '.join(found)}" if found else ""
        raise LossFileError(f"{value!r} is not of the form FILE.py:FUNCTION{defined}")
    return path, name


def read_loss_file(value: str) -> LossSchema:
    """The declaration of the loss that ``FILE.py:FUNCTION`` names. LossFileError, one line."""
    path, name = split_loss_file(value)
    tree = _parsed(path)
    node = definition(tree, name)
    if node is None:
        defined = _names(tree)
        what = f"it defines {', '.join(defined)}" if defined else "it defines none"
        raise LossFileError(
            f"{path}: no function or class {name!r} at its top level; {what}"
            + did_you_mean(name, defined)
        )
    if name in loss_schemas() or name in _TAKEN_NAMES:
        raise LossFileError(
            f"{path}:{node.lineno}: {name} is taken (metrics and folders are named after the "
            "loss); give it another name"
        )
    try:
        schema = declaration(name, node)
    except Undeclared as error:
        raise LossFileError(f"{path}:{error.line}: {error}") from None
    for key in schema.parameters.keys() & {*_TAKEN_KEYS, *loss_schemas(), SFT}:
        raise LossFileError(
            f"{path}:{node.lineno}: {key}: no hyper-parameter can have this name; the recipe's "
            f"loss.{key} is something else"
        )
    return schema


def _parsed(path: str) -> ast.Module:
    try:
        return ast.parse(Path(path).read_bytes(), path)
    except FileNotFoundError:
        raise LossFileError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise LossFileError(f"{path}: is a folder; name the file, FILE.py:FUNCTION") from None
    except OSError as error:
        raise LossFileError(f"{path}: cannot be read ({error.strerror or error})") from None
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""
        raise LossFileError(f"{path}{line}: not valid Python: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise LossFileError(f"{path}: not valid Python: {error}") from None


def _names(tree: ast.Module) -> list[str]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]
