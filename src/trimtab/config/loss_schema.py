"""What the preference losses take, read from their source without importing them (or torch).

``PREFERENCE_LOSSES`` in ``losses/__init__.py`` is a literal dictionary of imported functions and
classes. Keyword-only parameters with a default (of ``__init__``, for a class) are the recipe's
keys; the other parameters name what the loss needs, and the annotation of ``policy`` says what it
compares. ``losses/contract.py`` reads the same from the live objects; a test holds the two
together.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from trimtab.config.suggest import did_you_mean
from trimtab.config.values import Number, Whole, conflict

LOSSES = Path(__file__).resolve().parent.parent / "losses"

LossKind = Literal["pair", "unpaired", "ranking"]
_KINDS: dict[str, LossKind] = {
    "Pair": "pair",
    "SequenceLogprobs": "unpaired",
    "Ranking": "ranking",
}


class LossParameter(NamedTuple):
    """A hyper-parameter: its type as written, and as a type."""

    annotation: str
    type: Any
    default: Any


class LossSchema(NamedTuple):
    """A loss's declaration. ``needs``: the inputs it names, of the call and of ``prepare``."""

    name: str
    kind: LossKind
    parameters: Mapping[str, LossParameter]
    needs: frozenset[str]
    summary: str

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with a reference model."""
        return "reference" in self.needs

    def refusal(self, key: str) -> str:
        """Why ``key`` is no hyper-parameter, and which one it may have been meant to be."""
        others = [n for n, s in loss_schemas().items() if key in s.parameters]
        takes = ", ".join(self.parameters) or "no hyper-parameters"
        belongs = f"; {key} belongs to {', '.join(others)}" if others else ""
        hint = did_you_mean(key, self.parameters)
        return f"{self.name} takes {takes}{belongs}{hint}"


def loss_schema(name: object) -> LossSchema | None:
    """The declaration of the loss called ``name``, None if there is none."""
    return loss_schemas().get(name) if isinstance(name, str) else None


@functools.cache
def loss_schemas(folder: Path = LOSSES) -> Mapping[str, LossSchema]:
    """All declarations by name, in the order of ``PREFERENCE_LOSSES``."""
    package = _parse(folder / "__init__.py")
    imports = _imports(package)
    found: dict[str, LossSchema] = {}
    for name, symbol in _registry(package).items():
        module, original = imports.get(symbol, ("__init__", symbol))
        tree = _parse(folder / f"{module}.py")
        node = next(
            (
                n
                for n in tree.body
                if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == original
            ),
            None,
        )
        assert node is not None, f"losses/{module}.py does not define {original}"
        found[name] = _declaration(name, node)
    return found


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _registry(package: ast.Module) -> dict[str, str]:
    for node in package.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(t, ast.Name) and t.id == "PREFERENCE_LOSSES" for t in targets)
        value = getattr(node, "value", None)
        if named and isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            return {
                str(key.value): symbol.id
                for key, symbol in pairs
                if isinstance(key, ast.Constant) and isinstance(symbol, ast.Name)
            }
    raise AssertionError("losses/__init__.py has no literal dictionary PREFERENCE_LOSSES")


def _imports(package: ast.Module) -> dict[str, tuple[str, str]]:
    """Imported symbol -> (sibling module, its name there); relative and absolute imports."""
    return {
        alias.asname or alias.name: (node.module.rpartition(".")[2], alias.name)
        for node in package.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def _declaration(name: str, node: ast.FunctionDef | ast.ClassDef) -> LossSchema:
    summary = (ast.get_docstring(node) or "").split("\n")[0]
    if isinstance(node, ast.FunctionDef):
        settings, calls = node, [node]
    else:
        methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
        settings = methods.get("__init__")
        calls = [methods[m] for m in ("__call__", "prepare") if m in methods]
    parameters = _parameters(settings) if settings else {}
    needs = {a.arg for call in calls for a in _arguments(call)} - {"self"} - parameters.keys()
    policy = next((a for call in calls for a in _arguments(call) if a.arg == "policy"), None)
    annotation = ast.unparse(policy.annotation) if policy and policy.annotation else ""
    kind = _KINDS.get(annotation.rpartition(".")[2])
    assert kind is not None, f"{name}: annotate policy with one of {', '.join(_KINDS)}"
    return LossSchema(name, kind, parameters, frozenset(needs), summary)


def _arguments(function: ast.FunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def _parameters(function: ast.FunctionDef) -> dict[str, LossParameter]:
    found: dict[str, LossParameter] = {}
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if default is None:
            continue
        value = ast.literal_eval(default)
        node = argument.annotation
        written = ast.unparse(node) if node is not None else type(value).__name__
        found[argument.arg] = LossParameter(written, _type_of(written), value)
    return found


_TYPES: dict[str, Any] = {"float": Number, "int": Whole, "bool": bool, "str": str}


def _type_of(written: str) -> Any:
    """The type of an annotation made of float, int, bool, str, None, Literal and ``|``."""
    return _read_type(ast.parse(written, mode="eval").body)


def _read_type(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name) if name in _TYPES:
            return _TYPES[name]
        case ast.Constant(value=None):
            return None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_read_type(left), _read_type(right)]  # noqa: UP007 - at run time
        case ast.Subscript(value=ast.Name(id="Literal"), slice=words):
            return Literal[ast.literal_eval(words)]
        case _:
            raise AssertionError(
                f"a loss's hyper-parameter cannot be of type {ast.unparse(node)} in a recipe"
            )


def read_parameter(key: str, parameter: LossParameter, value: Any) -> Any:
    """``value`` as the hyper-parameter's type; ``key`` is for the message."""
    try:
        return TypeAdapter(parameter.type).validate_python(value)
    except ValidationError:
        shown = f"{value!r} is not {_in_words(parameter)}"
        conflict(key, shown)


def _in_words(parameter: LossParameter) -> str:
    if get_origin(parameter.type) is Literal:
        return "one of " + ", ".join(map(str, get_args(parameter.type)))
    words = {"float": "a number", "int": "a whole number", "bool": "true or false"}
    return words.get(parameter.annotation, f"of type {parameter.annotation}")
