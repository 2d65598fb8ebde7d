"""The command line: verbs, their help and exit codes; everything heavy is imported by a verb."""

from trimtab.cli.app import main

__all__ = ["main"]
