"""What goes wrong for a user, as exceptions.

Every message is one line that names the place (file and line, or recipe key), the value found and
the remedy. The command line prints it without a traceback and exits with ``exit_code``. A bug of
trimtab's own is an ``AssertionError`` or any other exception, and keeps its traceback.

    TrimtabError
    ├── UsageError          exit 2: configuration, command line, data; nothing was trained
    │   ├── RecipeError     a recipe key or a command-line option
    │   └── DataError       a row, a file of rows, a chat template
    └── RunError            exit 1: the run started and could not go on
        ├── NumericError    a non-finite loss or gradient, before it reached the weights
        └── CheckpointError a checkpoint that cannot be written or read
"""

from __future__ import annotations


class TrimtabError(Exception):
    """Base of all errors that are the user's to read; the message is one line."""

    exit_code = 1


class UsageError(TrimtabError):
    """Configuration, command line or data: found before anything was trained."""

    exit_code = 2


class RecipeError(UsageError, ValueError):
    """A recipe key or command-line option; the message starts with the key and its value."""


class DataError(UsageError, ValueError):
    """Rows, files of rows, templates; the message starts with ``file:line: field``."""


class RunError(TrimtabError, RuntimeError):
    """The run had started and cannot go on; what was saved is safe."""


class NumericError(RunError):
    """A non-finite loss or gradient; the weights were not touched by it."""


class CheckpointError(RunError):
    """A checkpoint could not be written, or none that verifies could be read."""
