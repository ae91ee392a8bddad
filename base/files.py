"""Writing files so that a reader never sees half of one. Torch-free."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Iterable, Iterator, List, Optional, Sequence, Union

from gradseg.base.errors import GradsegError

PathLike = Union[str, Path]


# raised while a block writes: what the user can mend, so one line
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path` with the same suffix; renames it to `path` if the block succeeds.

    On failure the temporary file and the folders made for it are removed; whatever stood at `path` stays. Raises
    GradsegError at once if the folder cannot be created or written to, and if the disk fills up or the rename fails;
    any other exception of the block passes as it is.
    """
    target, temporary = Path(path), None
    made = _missing_folders(target)
    try:
        temporary = temporary_beside(target)
        try:
            yield temporary
        except OSError as error:
            if error.errno in FULL:
                raise _cannot_write(target, error) from error
            raise
        put_in_place(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            if temporary is not None:
                temporary.unlink()
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for folder in made:
                folder.rmdir()
        raise


def temporary_beside(target: Path) -> Path:
    """A new empty file in the folder of `target`, which is made if need be, with its suffix.

    Raises GradsegError if there cannot be one, or if `target` is a folder or device, which no file may replace.
    """
    try:
        if target.exists() and not target.is_file():
            kind = "a directory" if target.is_dir() else "not a regular file"
            raise GradsegError(f"cannot write {target}: it is {kind}; name a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=str(target.parent))
        os.close(handle)
    except OSError as error:
        raise GradsegError(f"{_cannot_write(target, error)}; choose another output path") from error
    return Path(name)


def put_in_place(temporary: Path, target: Path) -> None:
    """Flushes a finished file to the disk, gives it the permissions of an ordinary new file, and its final name.

    Raises GradsegError if one of them fails.
    """
    mask = os.umask(0)
    os.umask(mask)
    try:
        handle = os.open(str(temporary), os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except OSError as error:
        raise _cannot_write(target, error) from error


@contextlib.contextmanager
def locked(path: PathLike, wait: bool = True) -> Iterator[None]:
    """Holds an advisory lock on the file at `path`, which is made; nothing where there are none (Windows).

    Without `wait` BlockingIOError says that another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(str(path), "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def check_writable(path: PathLike) -> None:
    """Raises GradsegError at once if a file at `path` could not be written later; nothing is changed or left behind."""
    with contextlib.suppress(_UntouchedError), atomic_path(path):
        raise _UntouchedError


class _UntouchedError(Exception):
    """Leaves `atomic_path` before its rename."""


def _missing_folders(target: Path) -> List[Path]:
    """The folders that must be made for `target`, innermost first."""
    try:
        return [folder for folder in target.parents if not folder.exists()]
    except OSError as error:
        raise _cannot_write(target, error) from error


def _cannot_write(target: Path, error: OSError) -> GradsegError:
    return GradsegError(f"cannot write {target}: {error.strerror or error}")


def write_text(path: PathLike, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: PathLike, what: str) -> Any:
    """A JSON file, parsed; GradsegError if it is missing (`what` was expected there), unreadable or not JSON."""
    found = require_file(path, what)
    try:
        return json.loads(found.read_text("utf-8"))
    except ValueError as error:
        raise GradsegError(f"{found}: not JSON ({error})") from error


def write_json(path: PathLike, value: Any) -> None:
    """Writes indented JSON atomically; NaN and infinities are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def refuse_inputs(output: PathLike, inputs: Iterable[PathLike], option: str) -> None:
    """Raises GradsegError if `output`, named by `option`, is one of the files that are read."""
    target = Path(output)
    if any(target.exists() and Path(given).exists() and target.samefile(given) for given in inputs):
        raise GradsegError(f"{option} {target}: is an input itself and would be overwritten; name another file")


def check_output(
    option: str, path: Optional[Path], inputs: Iterable[Optional[PathLike]] = (), suffixes: Sequence[str] = ()
) -> None:
    """Before any work: GradsegError if what `option` names, if anything, is an input, is called otherwise than
    `suffixes` allow, or could not be written."""
    if path is None:
        return
    refuse_inputs(path, [each for each in inputs if each], option)
    if suffixes and path.suffix.lower() not in suffixes and not path.is_dir():
        raise GradsegError(f"{option} {path}: expected a name that ends in {suffixes[0]}")
    check_writable(path)


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
