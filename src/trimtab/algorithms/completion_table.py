"""Tables of completions in a run's folder, one Parquet file each."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trimtab.errors import CheckpointError
from trimtab.training import files


def write_table(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of equal length, whole or not at all.

    Raises CheckpointError where the disk refuses: the run can go on from its last checkpoint.
    """
    content = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), content)
    try:
        files.make_folder(path.parent)
        files.write_atomic(path, content.getvalue())
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror or error}); see to the disk and run the "
            "same command again: it goes on from the last checkpoint"
        ) from error
