"""Writing files so that a reader never sees half of one. Torch-free."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Iterator, Union

from gradseg.models.errors import GradsegError

PathLike = Union[str, Path]


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path` with the same suffix; renames it to `path` if the block succeeds.

    The temporary file is removed on failure, whatever stood at `path` stays. Raises GradsegError at once if the
    folder cannot be created or written to.
    """
    target = Path(path)
    if target.exists() and not target.is_file():  # renaming onto a device node would replace it
        kind = "a directory" if target.is_dir() else "not a regular file"
        raise GradsegError(f"cannot write {target}: it is {kind}; name a file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=str(target.parent))
        os.close(handle)
    except OSError as error:
        raise GradsegError(f"cannot write {target}: {error.strerror or error}; choose another output path") from error
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except OSError as error:
        raise GradsegError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: PathLike, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: PathLike, value: Any) -> None:
    """Writes indented JSON atomically; NaN and infinities are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256_of(path: PathLike) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open(str(path), "rb") as stream:
        for piece in iter(lambda: stream.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def require_file(path: PathLike, what: str) -> Path:
    """The path, if it is a readable non-empty file; else a GradsegError naming `what` was expected there."""
    found = Path(path)
    if not found.exists():
        raise GradsegError(f"{found}: no such file; expected {what}")
    if found.is_dir():
        raise GradsegError(f"{found}: is a directory; expected {what}")
    if not os.access(str(found), os.R_OK):
        raise GradsegError(f"{found}: cannot be read (permissions); expected {what}")
    if found.stat().st_size == 0:
        raise GradsegError(f"{found}: is empty; expected {what}")
    return found
