"""Files of rows to records: JSON lines, JSON, CSV and Parquet, each row with its line number.

A row that cannot be read becomes a record with a problem, and the reader goes on with the next
one; only what makes the rest of a file unreadable (a broken JSON array, a damaged Parquet page) is
a ``DataError`` at once. Texts are UTF-8, with or without a byte order mark, LF or CRLF; a further
``.gz`` is unpacked on the way.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from trimtab.data.quarantine import BadRow
from trimtab.errors import DataError

_BOM = b"\xef\xbb\xbf"
_WRAPPERS = ("data", "rows", "train", "examples", "instances")
_SPACE = re.compile(r"[ \t\r\n]*")
_PARQUET_BATCH = 512


class Record(NamedTuple):
    """One row: its line (JSON, CSV) or row number (Parquet, hub), from 1; a row or a problem.

    ``raw`` is what the quarantine file shows: the row itself, or the text that was no row.
    ``textual`` says that all values are strings because the format knows nothing else (CSV).
    """

    line: int
    row: dict[str, Any] | None
    problem: BadRow | None
    raw: Any
    textual: bool = False


Reader = Callable[[Path, str], Iterator[Record]]


def read_file(path: Path, name: str) -> Iterator[Record]:
    """The records of one file, by the ending of its name.

    Args:
        path: The file.
        name: The file as the user named it, for messages.

    Raises:
        DataError: unknown ending, or a file that cannot be read (on).
    """
    reader = READERS.get(data_suffix(path) or "")
    if reader is None:
        known = ", ".join(READERS)
        raise DataError(
            f"{name}: unknown kind of file; known endings: {known} (and .gz after them)"
        )
    try:
        yield from reader(path, name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name}: not a readable gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error


def data_suffix(path: Path) -> str | None:
    """The ending that names the format (``.jsonl`` of ``a.jsonl.gz``), None when unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else None


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return path.open("rb")


def _lines(path: Path, name: str) -> Iterator[bytes]:
    """The lines of a file as bytes, line ends included, without a byte order mark."""
    with _open(path) as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = _without_mark(line, name)
            yield line


def _without_mark(data: bytes, name: str) -> bytes:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{name}:1: the file is UTF-16; save it as UTF-8")
    return data.removeprefix(_BOM)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte, place = data[error.start], error.start + 1
        raise BadRow("", "not valid UTF-8", f"byte 0x{byte:02x} at byte {place} of it") from error


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadRow("", "not valid JSON", f"{error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise BadRow("", "not valid JSON", "nested too deeply") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise BadRow("", "not valid JSON", str(error).split(";")[0]) from error


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)
    found = "a list" if isinstance(value, list) else json.dumps(value)[:30]
    raise BadRow("", "not an object", f'wanted {{"column": value, ...}}, found {found}')


def read_jsonl(path: Path, name: str) -> Iterator[Record]:
    """One object a line; blank lines are no rows but count as lines."""
    for number, line in enumerate(_lines(path, name), 1):
        if line.isspace() or not line:
            continue
        text: str | None = None
        try:
            text = _decode(line).rstrip("\r\n")
            row = _object(_parse(text))
        except BadRow as problem:
            raw = text if text is not None else line.decode("utf-8", "backslashreplace")
            yield Record(number, None, problem, raw.rstrip("\r\n"))
        else:
            yield Record(number, row, None, row)


def read_json(path: Path, name: str) -> Iterator[Record]:
    """An array of objects, alone or under a key such as ``data``; or JSON lines after all."""
    with _open(path) as stream:
        data = _without_mark(stream.read(), name)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x}"
        raise DataError(f"{name}:{line}: not valid UTF-8: {byte}; save it as UTF-8") from error
    start = _after_space(text, 0)
    if text.startswith("[", start):
        yield from _array(text, start, name)
    elif text.startswith("{", start):
        yield from _objects(text, path, name)
    elif start < len(text):
        line = text.count("\n", 0, start) + 1
        raise DataError(
            f"{name}:{line}: not valid JSON: wanted an array of objects: [{{...}}, ...]"
        )


def _objects(text: str, path: Path, name: str) -> Iterator[Record]:
    """A file that starts with an object: rows under a known key, one row, or JSON lines."""
    try:
        whole: Any = json.loads(text)
    except (ValueError, RecursionError):
        yield from read_jsonl(path, name)
        return
    for key in _WRAPPERS:
        rows: Any = whole.get(key)
        if isinstance(rows, list) and all(isinstance(row, dict) for row in cast("list[Any]", rows)):
            for number, row in enumerate(cast("list[dict[str, Any]]", rows), 1):
                yield Record(number, row, None, row)
            return
    yield Record(1, whole, None, whole)


def _array(text: str, start: int, name: str) -> Iterator[Record]:
    """The elements of a top-level array, one at a time, so that each has its line."""
    decoder = json.JSONDecoder()
    line, counted, place = 1, 0, _after_space(text, start + 1)
    first = True
    while True:
        line, counted = line + text.count("\n", counted, place), place
        if text.startswith("]", place) and first:
            place += 1
            break
        try:
            value, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            where = f"{error.msg} at column {error.colno}"
            raise _broken_array(name, error.lineno, where) from error
        except RecursionError as error:
            raise _broken_array(name, line, "nested too deeply") from error
        except ValueError as error:
            raise _broken_array(name, line, str(error).split(";")[0]) from error
        try:
            row = _object(value)
        except BadRow as problem:
            yield Record(line, None, problem, value)
        else:
            yield Record(line, row, None, row)
        first = False
        place = _after_space(text, place)
        if text.startswith("]", place):
            place += 1
            break
        if not text.startswith(",", place):
            line += text.count("\n", counted, place)
            raise _broken_array(name, line, "wanted , or ] after an object")
        place = _after_space(text, place + 1)
    end = _after_space(text, place)
    if end < len(text):
        raise _broken_array(name, text.count("\n", 0, end) + 1, "text after the array's end")


def _after_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None
    return found.end()


def _broken_array(name: str, line: int, reason: str) -> DataError:
    return DataError(
        f"{name}:{line}: not valid JSON: {reason}; an array cannot be read past an error: mend it, "
        "or write one object per line (.jsonl)"
    )


def read_csv(path: Path, name: str) -> Iterator[Record]:
    """Comma-separated values (tabs in ``.tsv``) with a header line; empty cells are null."""
    delimiter = "\t" if data_suffix(path) == ".tsv" else ","
    csv.field_size_limit(2**31 - 1)  # a long document in a cell is no error
    seen = 0

    def decoded() -> Iterator[str]:
        nonlocal seen
        for line in _lines(path, name):
            seen += 1
            yield line.decode("utf-8", "surrogateescape")

    reader = csv.reader(decoded(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        start = seen + 1
        try:
            cells = next(reader)
            if not cells:
                continue
            for cell in cells:
                _no_escapes(cell)
            if header is None:
                header = _header(cells, name, start)
                continue
            if len(cells) != len(header):
                detail = f"the header has {len(header)} columns, the row has {len(cells)}"
                raise BadRow("", "wrong number of columns", detail)
        except StopIteration:
            return
        except (csv.Error, BadRow) as error:
            problem = error if isinstance(error, BadRow) else _csv_problem(error, start, seen)
            if header is None:
                raise DataError(f"{name}:{start}: header: {problem.text}") from error
            yield Record(start, None, problem, f"lines {start} to {seen}", textual=True)
        else:
            row = {key: cell or None for key, cell in zip(header, cells, strict=True)}
            yield Record(start, row, None, row, textual=True)


def _no_escapes(cell: str) -> None:
    if not cell.isascii():
        try:
            cell.encode("utf-8")
        except UnicodeEncodeError as error:
            byte = ord(cell[error.start]) - 0xDC00
            raise BadRow("", "not valid UTF-8", f"byte 0x{byte:02x}") from error


def _csv_problem(error: csv.Error, start: int, end: int) -> BadRow:
    if "unexpected end of data" in str(error):
        return BadRow("", "not valid CSV", f"a quote opened here is not closed by line {end}")
    return BadRow("", "not valid CSV", str(error))


def _header(cells: list[str], name: str, line: int) -> list[str]:
    header = [cell.strip() for cell in cells]
    if "" in header:
        raise DataError(f"{name}:{line}: header: column {header.index('') + 1} has no name")
    twice = [cell for cell in header if header.count(cell) > 1]
    if twice:
        raise DataError(f"{name}:{line}: header: the column {twice[0]!r} is there twice")
    return header


def read_parquet(path: Path, name: str) -> Iterator[Record]:
    """The rows of a Parquet file, numbered from 1."""
    arrow: Any = importlib.import_module("pyarrow")  # 0.3 s, and untyped
    parquet: Any = importlib.import_module("pyarrow.parquet")
    # Values that Python cannot hold (a date out of range, a bad decimal) are errors of their own.
    failures = (arrow.ArrowException, OSError, ValueError, TypeError, ArithmeticError)
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for record in _batch(batch, number, failures):
                    number = record.line
                    yield record
    except failures as error:
        raise DataError(f"{name}:{number + 1}: not readable as Parquet: {_line(error)}") from error


def _batch(batch: Any, done: int, failures: tuple[type[Exception], ...]) -> Iterator[Record]:
    """The rows of one batch; where some value cannot be converted, each row by itself."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except failures:
        for index in range(batch.num_rows):
            yield _one_row(batch.slice(index, 1), done + index + 1, failures)
    else:
        for number, row in enumerate(rows, done + 1):
            yield Record(number, row, None, row)


def _one_row(batch: Any, number: int, failures: tuple[type[Exception], ...]) -> Record:
    try:
        row: dict[str, Any] = batch.to_pylist()[0]
    except UnicodeDecodeError:
        problem = BadRow("", "not valid UTF-8")
    except failures as error:
        problem = BadRow("", "not a readable value", _line(error))
    else:
        return Record(number, row, None, row)
    return Record(number, None, problem, f"row {number}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
