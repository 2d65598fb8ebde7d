"""From what a recipe names to a reward function: a built-in, one of a module, or one in a file.

    accuracy_reward               a built-in, by its name
    my_rewards.py:brevity         a function of a file
    package.module:brevity        a function of a module (so does package.module.brevity)
    length(target=200)            any of these with options, which it gets as keyword arguments

Nothing here imports torch: an isolated function's process loads in the blink of an eye.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import inspect
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trimtab.rewards import builtin
from trimtab.shipped import or_shipped

OWN = ("prompts", "completions", "completion_ids")
"""What a reward function is given beside the columns of the rows."""

_FORM = "a built-in name, FILE.py:FUNCTION or MODULE:FUNCTION"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """As ``config.suggest``, whose package takes a second to import in a function's process."""
    found = difflib.get_close_matches(word, sorted(set(known)), n=1, cutoff=0.65)
    return f". Did you mean {found[0]}?" if found else ""


class SpecError(Exception):
    """A name that gives no reward function; the message is one line."""


class Spec(NamedTuple):
    """A name taken apart; ``place`` is a file, a module, or empty for a built-in."""

    text: str
    kind: Literal["builtin", "module", "file"]
    place: str
    name: str
    options: Mapping[str, Any]


class Takes(NamedTuple):
    """What a function takes by name: ``anything`` with ``**columns``; ``required`` it must get."""

    names: frozenset[str]
    required: tuple[str, ...]
    anything: bool


class Loaded(NamedTuple):
    """A function that can be called, and what identifies its code.

    ``one_of`` are columns of which the rows must have one. ``digest`` is the SHA-256 of the file
    that it stands in.
    """

    function: Callable[..., Any]
    name: str
    takes: Takes
    one_of: tuple[str, ...]
    digest: str


def names_a_model(text: str) -> bool:
    """Whether ``text`` is no function but the place of a reward model: a folder, or a hub id."""
    if Path(text).expanduser().is_dir():
        return True
    return "/" in text and ":" not in text and not text.endswith(".py") and "(" not in text


def parse(text: str) -> Spec:
    """Take a name apart; SpecError where it is of no known form. Nothing is run."""
    base, options = _options(text.strip())
    place, colon, name = base.rpartition(":")
    if colon:
        if not place or not name.isidentifier():
            raise SpecError(f"not of the form {_FORM}")
        return Spec(text, "file" if _is_path(place) else "module", place, name, options)
    if _is_path(base):
        told = f": {base}:FUNCTION"
        if _file(base).is_file():
            told += f"; {_listed(_defined(_compiled(base)[1]))}"
        raise SpecError(f"which function of the file? Write it behind a colon{told}")
    if base.isidentifier():
        if base not in builtin.BUILTINS:
            raise SpecError(
                f"no built-in reward of that name ({', '.join(builtin.BUILTINS)}); else it is "
                f"FILE.py:FUNCTION or MODULE:FUNCTION{did_you_mean(base, builtin.BUILTINS)}"
            )
        return Spec(text, "builtin", "", base, options)
    place, _, name = base.rpartition(".")
    if not place or not all(part.isidentifier() for part in base.split(".")):
        raise SpecError(f"not of the form {_FORM}")
    return Spec(text, "module", place, name, options)


def load(spec: Spec) -> Loaded:
    """Import what ``spec`` names, which runs its file; SpecError, one line, for what is wrong."""
    if spec.kind == "builtin":
        return _builtin(spec)
    if spec.kind == "file":
        module, digest = _run_file(spec.place)
    else:
        module, digest = _import(spec.place)
    function = getattr(module, spec.name, None)
    if function is None:
        found = [name for name in vars(module) if inspect.isfunction(getattr(module, name))]
        found = [name for name in found if not name.startswith("_")]
        raise SpecError(
            f"{spec.place}: no function {spec.name!r}; {_listed(found)}"
            f"{did_you_mean(spec.name, found)}"
        )
    if inspect.isclass(function) or not callable(function):
        what = "a class" if inspect.isclass(function) else f"a {type(function).__name__}"
        raise SpecError(f"{spec.place}: {spec.name} is {what}, not a function")
    takes = _takes(function, f"{spec.place}: {spec.name}", spec.options)
    name = getattr(function, "__name__", spec.name)
    return Loaded(function, name, takes, (), digest)


def readable_by(spec: Spec) -> tuple[list[Path], list[Path]]:
    """Folders an isolated function reads from beside Python's own, and folders it may only list.

    Of a file, its folder. Of a module or package in the working directory, its folder or its file.
    """
    if spec.kind == "builtin":
        return [], []
    if spec.kind == "file":
        return [_file(spec.place).resolve().parent], []
    top = spec.place.partition(".")[0]
    here = Path.cwd()
    if (here / top).is_dir():
        return [here / top], [here]
    return ([here], []) if (here / f"{top}.py").is_file() else ([], [])


# ---------------------------------------------------------------------- options


def _options(text: str) -> tuple[str, dict[str, Any]]:
    """``name(key=value, ...)`` as the name and its options; values are Python literals."""
    if not text.endswith(")"):
        return text, {}
    for place, char in enumerate(text):
        if char == "(" and place > 0:
            try:
                call = ast.parse(f"f{text[place:]}", mode="eval").body
            except (SyntaxError, ValueError):
                continue  # a bracket in the name of a folder, say
            if isinstance(call, ast.Call):
                return text[:place], _literals(call)
    raise SpecError("its options are not of the form NAME(key=value, key=value)")


def _literals(call: ast.Call) -> dict[str, Any]:
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise SpecError("its options are not of the form NAME(key=value, key=value)")
    found: dict[str, Any] = {}
    for keyword in call.keywords:
        assert keyword.arg is not None
        try:
            found[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:
            written = ast.unparse(keyword.value)
            raise SpecError(
                f"option {keyword.arg}={written} is not a number, true value or quoted text"
            ) from None
    return found


def _refuse_options(options: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for name in options:
        if name not in known:
            told = f"it takes {', '.join(known)}" if known else "it takes none"
            raise SpecError(f"{what} has no option {name!r}; {told}{did_you_mean(name, known)}")


# ---------------------------------------------------------------------- where functions come from


def _is_path(text: str) -> bool:
    return text.endswith(".py") or "/" in text or os.sep in text


def _builtin(spec: Spec) -> Loaded:
    make = builtin.BUILTINS[spec.name]
    _refuse_options(spec.options, list(inspect.signature(make).parameters), spec.name)
    try:
        function = make(**spec.options)
    except (ValueError, TypeError) as error:
        raise SpecError(str(error)) from None
    digest = hashlib.sha256()
    for file in builtin.SOURCES:
        digest.update(file.read_bytes())
    takes = _takes(function, spec.name, {})
    one_of: tuple[str, ...] = getattr(function, "one_of", ())
    return Loaded(function, spec.name, takes, one_of, digest.hexdigest())


def _file(place: str) -> Path:
    return or_shipped(Path(place).expanduser())


def _compiled(path: str) -> tuple[bytes, ast.Module]:
    file = _file(path)
    try:
        text = file.read_bytes()
        return text, ast.parse(text, path)
    except FileNotFoundError:
        near = sorted(p.name for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise SpecError(f"{path}: no such file{did_you_mean(file.name, near)}") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror or error})") from None
    except SyntaxError as error:
        raise SpecError(failure(error, path)) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise SpecError(f"{path}: not valid Python: {error}") from None


def _run_file(path: str) -> tuple[types.ModuleType, str]:
    text, tree = _compiled(path)
    digest = hashlib.sha256(text).hexdigest()
    name = f"trimtab_reward_{hashlib.sha256(path.encode()).hexdigest()[:8]}_{digest[:16]}"
    if name in sys.modules:  # one file, several of its functions
        return sys.modules[name], digest
    module = types.ModuleType(name)
    module.__file__ = str(_file(path))
    _search(_file(path).resolve().parent)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        # dont_inherit: the future statements of this module are not the user's.
        exec(compile(tree, path, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise SpecError(failure(error, path)) from None
    return module, digest


def _import(name: str) -> tuple[types.ModuleType, str]:
    _search(Path.cwd())
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise SpecError(
                f"no module named {error.name!r}, installed or in the working directory"
            ) from None
        raise SpecError(failure(error, None)) from None
    except (Exception, SystemExit) as error:
        raise SpecError(failure(error, None)) from None
    file = getattr(module, "__file__", None)
    content = Path(file).read_bytes() if file and Path(file).is_file() else name.encode()
    return module, hashlib.sha256(content).hexdigest()


def _search(folder: Path) -> None:
    """Let a function's file import its neighbours; last, so that they can replace nothing."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _defined(tree: ast.Module) -> list[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"it defines {', '.join(names[:most])}{more}" if names else "it defines none"


def failure(error: BaseException, file: str | None) -> str:
    """``file:line: Error: message``, one line: where in ``file``, or wherever it happened."""
    place: str | None = None
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}" if error.lineno else error.filename
        message = error.msg
    else:
        message = str(error)
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename == file or (file is None and not _is_ours(frame.filename)):
                place = f"{frame.filename}:{frame.lineno}"
    told = f"{type(error).__name__}: {message}" if message else type(error).__name__
    told = f"{place}: {told}" if place else told
    return " ".join(told.split())[:500]


def _is_ours(filename: str) -> bool:
    return filename.startswith("<frozen") or Path(filename).parent == Path(__file__).parent


# ---------------------------------------------------------------------- signatures


def _takes(function: Callable[..., Any], what: str, options: Mapping[str, Any]) -> Takes:
    """What the function takes; SpecError where TRL's protocol could not call it."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        raise SpecError(f"{what}: its parameters cannot be read; wrap it in a def") from None
    form = "it is called as f(prompts=..., completions=..., column=..., ...)"
    if any(p.kind is p.POSITIONAL_ONLY for p in parameters):
        raise SpecError(f"{what}: its parameters have no names to be called by; {form}")
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [p.name for p in named]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if not anything and not {"completions", "completion_ids"} & set(names):
        shown = ", ".join(names) or "nothing"
        raise SpecError(f"{what}: it takes {shown}, and so no completions; {form}")
    own = [name for name in names if name not in OWN]
    if not anything:
        _refuse_options(options, own, what)
    for name in OWN:
        if name in options:
            raise SpecError(f"{what}: {name} cannot be an option")
    required = [p.name for p in named if p.default is p.empty and p.name not in options]
    return Takes(frozenset(names), tuple(required), anything)
