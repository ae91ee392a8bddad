"""base/files.py: a file is complete or not there, and only trouble with writing is told as such."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from gradseg.base.errors import GradsegError
from gradseg.base.files import atomic_path, check_writable, write_text


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line(tmp_path: Path, code: int) -> None:
    with (
        pytest.raises(GradsegError, match=r"cannot write .*out\.bin: " + os.strerror(code)),
        atomic_path(tmp_path / "new" / "er" / "out.bin"),
    ):
        raise OSError(code, os.strerror(code))
    assert not list(tmp_path.iterdir()), "folders that were made for the file are gone too"


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "No such file", "input.txt"), OSError("no errno"), KeyboardInterrupt()]
)
def test_what_the_block_itself_raises_passes_unchanged(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, atomic_path(tmp_path / "new" / "out.bin"):
        raise error
    assert caught.value is error and not list(tmp_path.iterdir())


def test_folders_that_were_there_or_hold_something_stay(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with pytest.raises(ValueError, match="x"), atomic_path(tmp_path / "old" / "new" / "sub" / "out.bin"):
        (tmp_path / "old" / "new" / "kept.txt").write_text("x")
        raise ValueError("x")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["old", "old/new", "old/new/kept.txt"]


@pytest.mark.parametrize("step", ["fsync", "open"])
def test_trouble_at_the_end_is_one_line_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "out.txt"
    write_text(path, "old")

    def fails(*_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(GradsegError, match=r"cannot write .*out\.txt: Input/output error"), atomic_path(path) as new:
        new.write_text("new")
        monkeypatch.setattr(os, step, fails)
    monkeypatch.undo()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced, fsync = tmp_path / "deep" / "out.txt", [], os.fsync

    def watch(handle: int) -> None:
        synced.append((os.fstat(handle).st_size, path.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    write_text(path, "12345")
    assert synced == [(5, False)] and path.read_text() == "12345"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_check_writable_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "folder" / "out.json")
    for path, message in (
        (tmp_path, "is a directory"),
        (Path("/dev/null"), "not a regular file"),
        (tmp_path / "file" / "out.json", "cannot write"),
        (tmp_path / ("x" * 300), "cannot write .*name too long"),
        (tmp_path / ("x" * 300) / "out.json", "cannot write .*name too long"),
    ):
        with pytest.raises(GradsegError, match=message):
            check_writable(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "x"
