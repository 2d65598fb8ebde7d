"""The one module that writes: what it promises, and that every operation can be made to fail."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from trimtab.training import files


class Recorder:
    """A hook that notes operations and may fail at one of them."""

    def __init__(self, fail_at: int | None = None, short: int | None = None) -> None:
        self.operations: list[str] = []
        self.fail_at = fail_at
        self.short = short

    def __call__(self, operation: str, path: Path, size: int) -> int | None:
        self.operations.append(operation)
        if len(self.operations) == self.fail_at:
            raise OSError(errno.EIO, "broken", str(path))
        return self.short if operation == "write" else None


def test_write_file_returns_size_and_hash_of_what_it_wrote(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000  # more than two chunks
    assert len(content) > 2 * files.CHUNK
    written = files.write_file(tmp_path / "a", content)
    assert written == (len(content), hashlib.sha256(content).hexdigest())
    assert files.measure_file(tmp_path / "a") == written
    assert (tmp_path / "a").read_bytes() == content


def test_short_writes_are_completed(tmp_path: Path) -> None:
    recorder = Recorder(short=7)
    with files.hooked(recorder):
        written = files.write_file(tmp_path / "a", b"x" * 100)
    assert (tmp_path / "a").read_bytes() == b"x" * 100
    assert written.size == 100
    assert recorder.operations.count("write") == 15  # ceil(100 / 7)


def test_a_device_that_takes_nothing_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    with files.hooked(Recorder(short=0)), pytest.raises(OSError, match="nothing was written"):
        files.write_file(tmp_path / "a", b"abc")


def test_file_is_synced_after_its_last_write_and_before_its_rename(tmp_path: Path) -> None:
    recorder = Recorder()
    with files.hooked(recorder):
        files.write_atomic(tmp_path / "a", b"new")
    assert recorder.operations == ["create", "write", "fsync", "rename", "fsync_folder"]


@pytest.mark.parametrize("at", range(1, 6))
def test_write_atomic_leaves_old_or_new_whatever_fails(tmp_path: Path, at: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with files.hooked(Recorder(fail_at=at)), pytest.raises(OSError, match="broken"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == (b"old" if at < 5 else b"new")  # 5: renamed, durability unknown
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_writing_in_place_would_not_survive_it(tmp_path: Path) -> None:
    """The twin: what `write_atomic` is compared with loses the old content."""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with files.hooked(Recorder(fail_at=2)), pytest.raises(OSError, match="broken"):
        files.write_file(path, b"new")
    assert path.read_bytes() == b""


def test_append_takes_back_what_it_could_not_write_whole(tmp_path: Path) -> None:
    file = files.AppendFile(tmp_path / "log")
    file.append(b"one\n")

    calls = 0

    def full_after_two_bytes(operation: str, path: Path, size: int) -> int | None:
        nonlocal calls
        calls += operation == "write"
        if calls == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return 2

    with files.hooked(full_after_two_bytes), pytest.raises(OSError, match="No space"):
        file.append(b"two\n")
    file.append(b"three\n")
    file.close()
    assert (tmp_path / "log").read_bytes() == b"one\nthree\n"
    assert file.offset == 10


def test_append_continues_an_existing_file_and_truncates(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\ntwo\n")
    file = files.AppendFile(tmp_path / "log")
    file.truncate(4)
    file.append(b"2\n")
    file.sync()
    file.close()
    assert (tmp_path / "log").read_bytes() == b"one\n2\n"


def test_rename_refuses_a_taken_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()  # POSIX alone would replace an empty folder
    with pytest.raises(FileExistsError):
        files.rename(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").is_dir()


def test_remove_tree_removes_links_and_does_not_follow_them(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("x")
    (tree / "link").symlink_to(outside, target_is_directory=True)
    files.remove_tree(tree)
    assert not tree.exists()
    assert (outside / "precious").read_text() == "x"


def test_hook_is_gone_after_the_with(tmp_path: Path) -> None:
    recorder = Recorder()
    with files.hooked(recorder):
        files.write_file(tmp_path / "a", b"1")
    seen = len(recorder.operations)
    files.write_file(tmp_path / "a", b"2")
    assert len(recorder.operations) == seen == 3
