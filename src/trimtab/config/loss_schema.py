"""What the preference losses take, read from their source without importing them (or torch).

``PREFERENCE_LOSSES`` in ``losses/__init__.py`` is a literal dictionary of imported functions and
classes. Keyword-only parameters with a default (of ``__init__``, for a class) are the recipe's
keys; the other parameters name what the loss needs, and the annotation of ``policy`` says what it
compares. ``losses/contract.py`` reads the same from the live objects; a test holds the two
together. ``loss_file.py`` reads a user's own loss by the same rules.
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
_OF_REFERENCE = {"reference", "sequence_kl", "reference_tokens", "mismatched_reference"}
_MACHINERY = ("contract", "sums")  # modules that hold no formula
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
    """A loss's declaration. ``needs``: the inputs it names, of the call and of ``prepare``.

    ``text`` is its whole docstring, ``summary`` the first line.
    """

    name: str
    kind: LossKind
    parameters: Mapping[str, LossParameter]
    needs: frozenset[str]
    summary: str
    text: str = ""

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with a reference model."""
        return bool(self.needs & _OF_REFERENCE)

    def refusal(self, key: str) -> str:
        """Why ``key`` is no hyper-parameter, and which one it may have been meant to be."""
        others = [n for n, s in loss_schemas().items() if key in s.parameters]
        takes = ", ".join(self.parameters) or "no hyper-parameters"
        belongs = f"; {key} belongs to {', '.join(others)}" if others else ""
        known = [*self.parameters]
        if any("." in name for name in known):  # a sum: the name of a member, misspelt
            known += loss_schemas()
        hint = did_you_mean(key, known)
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
        node = definition(tree, original)
        assert node is not None, f"losses/{module}.py does not define {original}"
        try:
            found[name] = declaration(name, node)
        except Undeclared as error:
            raise AssertionError(f"losses/{module}.py:{error.line}: {error}") from None
    return found


@functools.cache
def loss_functions(folder: Path = LOSSES) -> Mapping[str, str]:
    """Docstrings of the functions of ``trimtab.losses`` that are no preference losses, by name."""
    package = _parse(folder / "__init__.py")
    taken = set(_registry(package).values())
    found: dict[str, str] = {}
    for symbol, (module, original) in _imports(package).items():
        path = folder / f"{module}.py"  # all but those of the standard library
        node = definition(_parse(path), original) if path.exists() else None
        if isinstance(node, ast.FunctionDef) and symbol not in taken and module not in _MACHINERY:
            found[symbol] = ast.get_docstring(node) or ""
    return found


def definition(tree: ast.Module, name: str) -> ast.FunctionDef | ast.ClassDef | None:
    """The function or class of a module that ``name`` is bound to; the last one counts."""
    return next(
        (
            node
            for node in reversed(tree.body)
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name
        ),
        None,
    )


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


class Undeclared(Exception):
    """A definition that declares no loss: the line, and (as its text) why, with the remedy."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def declaration(name: str, node: ast.FunctionDef | ast.ClassDef) -> LossSchema:
    """What a definition declares. Raises Undeclared where it declares no loss."""
    text = ast.get_docstring(node) or ""
    if isinstance(node, ast.FunctionDef):
        settings, calls = node, [node]
    else:
        methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
        settings = methods.get("__init__")
        calls = [methods[m] for m in ("__call__", "prepare") if m in methods]
    parameters = _parameters(settings) if settings else {}
    needs = {a.arg for call in calls for a in _arguments(call)} - {"self"} - parameters.keys()
    policy = next((a for call in calls for a in _arguments(call) if a.arg == "policy"), None)
    if policy is None:
        where = "" if isinstance(node, ast.FunctionDef) else "its own __call__ with "
        raise Undeclared(
            node.lineno,
            f"{name}: needs {where}a parameter policy, annotated with one of {', '.join(_KINDS)}",
        )
    written = ast.unparse(policy.annotation).strip("'\"") if policy.annotation else ""
    kind = _KINDS.get(written.rpartition(".")[2])
    if kind is None:
        raise Undeclared(
            policy.lineno,
            f"{name}: annotate its parameter policy with one of {', '.join(_KINDS)}"
            + (f", not {written}" if written else ""),
        )
    return LossSchema(name, kind, parameters, frozenset(needs), text.split("\n")[0], text)


def _arguments(function: ast.FunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def _parameters(function: ast.FunctionDef) -> dict[str, LossParameter]:
    found: dict[str, LossParameter] = {}
    for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if default is None:
            continue
        try:
            value = ast.literal_eval(default)
        except ValueError:
            raise Undeclared(
                default.lineno,
                f"{argument.arg}: its default {ast.unparse(default)} has to be a plain number, "
                "text, true, false or None: it is read without running the file",
            ) from None
        node = argument.annotation
        written = ast.unparse(node) if node is not None else type(value).__name__
        try:
            kind = _type_of(written)
        except (TypeError, ValueError, SyntaxError):
            raise Undeclared(
                argument.lineno,
                f"{argument.arg}: a hyper-parameter of type {written} cannot stand in a recipe; "
                "use float, int, bool, str, Literal, or one of them | None",
            ) from None
        found[argument.arg] = LossParameter(written, kind, value)
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
        case ast.Constant(value=str(text)):
            return _type_of(text)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return Union[_read_type(left), _read_type(right)]  # noqa: UP007 - at run time
        case ast.Subscript(value=ast.Name(id="Literal"), slice=words):
            return Literal[ast.literal_eval(words)]
        case _:
            raise TypeError(ast.unparse(node))


def read_parameter(key: str, parameter: LossParameter, value: Any) -> Any:
    """``value`` as the hyper-parameter's type; ``key`` is for the message."""
    if value in ("null", "~") and type(None) in get_args(parameter.type):
        value = None  # as a command line writes it
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
