"""A loss of the user's own, out of a Python file.

The file is run as it stands: it can import what is installed, and ``trimtab.losses`` above all. Its
text is read once, so that the digest is that of the code that runs, whatever ``__pycache__`` holds.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class OwnLoss(NamedTuple):
    """The function or class, and the SHA-256 of the file that it comes from."""

    loss: Callable[..., Any]
    sha256: str


def load_loss(path: str | Path, name: str) -> OwnLoss:
    """Run the file at ``path`` and take ``name`` out of it.

    ValueError, one line that begins with the file, where it cannot be read or run, or defines no
    such function or class.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    digest = hashlib.sha256(text).hexdigest()
    module = types.ModuleType(f"trimtab_loss_{digest[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        # dont_inherit: the future statements of this module are not the user's.
        exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        raise ValueError(failure(path, error)) from None
    loss = getattr(module, name, None)
    if not callable(loss):
        raise ValueError(f"{path}: no function or class {name!r}")
    return OwnLoss(loss, digest)


def failure(path: str | Path, error: Exception) -> str:
    """What went wrong inside the file at ``path``: ``file:line: Error: message``, in one line."""
    line: int | None = None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(path):
            line = frame.lineno
    message = str(error)
    if isinstance(error, SyntaxError):
        line, message = error.lineno, error.msg
    place = f"{path}:{line}" if line else str(path)
    return " ".join(f"{place}: {type(error).__name__}: {message}".split())
