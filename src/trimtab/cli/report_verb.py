"""``trimtab report``."""

from __future__ import annotations


def report(folder: str, /, *, output: str | None = None) -> int:
    """Write report.html of a run, a demo or a comparison: one file, which needs no network.

    Parameters
    ----------
    folder
        Folder of a training run, of a demo, or with a comparison.json.
    output
        File to write; otherwise report.html in the folder.
    """
    from trimtab.report.page import write_report

    print(write_report(folder, output))
    return 0
