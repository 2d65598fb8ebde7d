"""YAML with line numbers, and scalars left as the text they are.

PyYAML reads ``1e-5`` as a string and ``no`` as False; here every scalar stays text until the
recipe's own type reads it. Only an unquoted ``null``, ``~`` or nothing is None. Duplicate keys,
tags and merge keys are refused: each hides a value from the reader of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from trimtab.config.suggest import nearest_beside
from trimtab.errors import RecipeError
from trimtab.shipped import RECIPES, shipped

_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {
    _TAG + name
    for name in ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "value")
}
_MOST_NODES = 100_000  # aliases of aliases can ask for 10^9 values


class YamlText(NamedTuple):
    """``value``: text, None, lists and dicts; ``lines``: dotted path (with indexes) -> line."""

    value: Any
    lines: dict[str, int]


def read_file(path: Path) -> YamlText:
    """Read a recipe file. RecipeError when it is missing, not text or not YAML."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file{_nearest(path)}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder, not a recipe file") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: is not UTF-8 text, so it is no recipe") from None
    return parse(text, str(path))


def _nearest(path: Path) -> str:
    """The recipe beside the one that is missing whose name is nearly its own."""
    beside = {one.name for one in path.parent.glob("*.y*ml")}
    full = path.parts[:1] == (RECIPES,)
    folder = shipped((path if full else RECIPES / path).parent.as_posix())
    if folder is not None:  # as recipes ls names them, where the folder is left out
        beside |= {one.name if full else one.stem for one in folder.glob("*.yaml")}
    found = nearest_beside(path, beside)
    return f". Did you mean {found}?" if found else ""


def parse(text: str, name: str) -> YamlText:
    """Parse YAML (JSON is YAML); ``name`` is for messages."""
    try:
        node = cast(yaml.Node | None, yaml.compose(text, Loader=yaml.SafeLoader))  # pyright: ignore
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context or "").split())
        raise RecipeError(f"{name}{line}: not valid YAML: {problem}") from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise RecipeError(f"{name}: not valid YAML: {problem}") from None
    except RecursionError:
        raise RecipeError(f"{name}: not a recipe: nested too deeply") from None
    reader = _Reader(name)
    value = None if node is None else reader.read(node, "")
    return YamlText(value, reader.lines)


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[str, int] = {}
        self.open: set[int] = set()
        self.count = 0

    def read(self, node: yaml.Node, path: str) -> Any:
        self.count += 1
        if self.count > _MOST_NODES or id(node) in self.open:
            raise self.error(node, "too many values, or a value that contains itself")
        if node.tag not in _PLAIN_TAGS:
            raise self.error(node, f"tag {node.tag.removeprefix(_TAG)} is not allowed in a recipe")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return None if node.tag == _TAG + "null" and node.style is None else node.value
        self.open.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            found: Any = [
                self.read(item, _join(path, str(index))) for index, item in enumerate(node.value)
            ]
        else:
            found = self.read_mapping(node, path)
        self.open.discard(id(node))
        return found

    def read_mapping(self, node: yaml.Node, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(key_node, "a key has to be a word")
            if key_node.tag == _TAG + "merge":
                raise self.error(key_node, "merge keys (<<) are not allowed in a recipe")
            key: str = key_node.value
            if key in found:
                first = self.lines[_join(path, key)]
                raise self.error(key_node, f"{key} is given twice, first in line {first}")
            # The key's line, also where its value begins further down.
            self.lines[_join(path, key)] = key_node.start_mark.line + 1
            found[key] = self.read(value_node, _join(path, key))
        return found

    def error(self, node: yaml.Node, message: str) -> RecipeError:
        return RecipeError(f"{self.name}:{node.start_mark.line + 1}: {message}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
