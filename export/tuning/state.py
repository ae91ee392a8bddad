"""What tune.py knows so far, on disk: one JSON file per piece, written atomically, each naming what it belongs to.

A piece of another model, machine or version is not taken for this one's; neither is one that is damaged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional

from gradseg.base.errors import GradsegError
from gradseg.base.files import locked, sha256_of, write_json
from gradseg.data.specs import paths_of
from gradseg.runtime.sources.grammar import image_paths

MARK, LOCK = "tune-state.json", "lock"


@dataclass
class Record:
    """A candidate and all that is known of it.

    state: "" while it may still win; "unavailable" (cannot be built or run here), "refused" (labels, mIoU), both with
    `reason`. files: engine first, relative to the work folder; digests: their SHA-256. turns: round → milliseconds.
    screening: the first turn, outside the rounds. agreement: share of labels equal to FP32's on the frames that are
    timed, near-ties aside; score: see `tuning.judge`. operators: milliseconds by operator, where they were looked at.
    """

    name: str
    title: str
    engine: str
    precision: str
    rewrite: str
    threads: Optional[int] = None
    cpus: List[int] = field(default_factory=list)
    state: str = ""
    reason: str = ""
    files: List[str] = field(default_factory=list)
    digests: List[str] = field(default_factory=list)
    size_bytes: int = 0
    backend: str = ""
    memory_bytes: int = 0
    agreement: Optional[float] = None
    notes: List[str] = field(default_factory=list)
    screening: List[float] = field(default_factory=list)
    turns: Dict[int, List[float]] = field(default_factory=dict)
    score: Optional[Dict[str, Any]] = None
    operators: Dict[str, float] = field(default_factory=dict)
    measured: str = ""
    base: str = ""

    @property
    def exact(self) -> bool:
        """Whether it computes in float32, so that its labels must be FP32's."""
        return self.precision == "fp32"

    def to_dict(self) -> Dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Record:
        """ValueError, TypeError or KeyError for what JSON does not have of `to_dict`."""
        found = Record(**raw)
        found.turns = {int(key): [float(v) for v in value] for key, value in raw["turns"].items()}
        if not all(found.turns.values()) or not isinstance(found.name, str):
            raise ValueError("a turn without frames")
        return found


class Store:
    """The work folder of one tuning.

    Args:
        folder: made if need be; GradsegError if there is something else in it.
        key: JSON object of everything that the results depend on.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder = folder
        self.hash = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.notes: List[str] = []
        mark = folder / MARK
        if folder.exists() and not folder.is_dir():
            raise GradsegError(f"{folder}: is a file, and tune.py keeps its work there; name another -o")
        if folder.is_dir() and any(folder.iterdir()) and not mark.is_file():
            raise GradsegError(f"{folder}: holds files that tune.py did not make; name another -o, or move them away")
        before = _json(mark)
        old = before.get("key") if isinstance(before, dict) else None
        if mark.is_file() and (not isinstance(before, dict) or before.get("hash") != self.hash):
            changed = [name for name in key if not isinstance(old, dict) or old.get(name) != key[name]]
            self.notes.append(f"what lay in {folder} was of another {' and '.join(changed) or 'state'}: measured anew")
            shutil.rmtree(str(folder))
        write_json(mark, {"hash": self.hash, "key": dict(key)})

    def forget(self) -> None:
        """Removes what is known, not the lock."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(str(path))
            elif path.name not in (MARK, LOCK):
                path.unlink()

    def read(self, name: str) -> Optional[Any]:
        """What was written under a name; None if there is none, with a note if it is damaged."""
        path = self._path(name)
        found = _json(path)
        if isinstance(found, dict) and found.get("hash") == self.hash and "value" in found:
            return found["value"]
        if path.exists():
            self.notes.append(f"{path}: damaged, so it is made again")
        return None

    def write(self, name: str, value: Any) -> None:
        write_json(self._path(name), {"hash": self.hash, "value": value})

    def record(self, name: str) -> Optional[Record]:
        """A candidate's record; None also if its files are not as they were written."""
        raw = self.read(f"candidate-{name}")
        if raw is None:
            return None
        try:
            found = Record.from_dict(raw)
            intact = [sha256_of(self.folder / file) for file in found.files] == found.digests
        except (ValueError, TypeError, KeyError, AttributeError, OSError):
            intact = False
        if not intact:
            self.notes.append(f"{name}: its files or figures are damaged, so it is built and measured again")
            return None
        return found

    def keep(self, record: Record) -> None:
        self.write(f"candidate-{record.name}", record.to_dict())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """GradsegError if another process holds it."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder / LOCK, wait=False))
            except BlockingIOError as error:
                raise GradsegError(
                    f"{self.folder}: another tune.py is at work there; wait, or name another -o"
                ) from error
            yield

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def source_fingerprint(source: Optional[str]) -> Optional[str]:
    """A short hash of the names, sizes and times of the files behind a data source; of its text where it has none."""
    if source is None:
        return None
    digest = hashlib.sha256(source.encode())
    for text in paths_of(source):
        top = Path(text)
        for path in sorted(top.rglob("*")) if top.is_dir() else [top] if top.exists() else image_paths(text) or []:
            if path.is_file():
                known = path.stat()
                digest.update(f"{path}\n{known.st_size}\n{known.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
