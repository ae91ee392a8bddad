"""A pipeline's process as versus.py sees it: asked with a time limit, stopped between its turns, ended at the end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from gradseg.base.errors import GradsegError
from gradseg.base.json_process import JsonProcess, environment_for

SCRIPT = Path(__file__).resolve().parent / "worker.py"


class WorkerError(Exception):
    """A request that failed, with the reason in one line. ended: whether the process is gone with it."""

    def __init__(self, reason: str, ended: bool) -> None:
        super().__init__(reason)
        self.ended = ended


class Worker(JsonProcess):
    """A `side_by_side.worker`; its own helpers are stopped and ended with it. Raises WorkerError. log: its stderr."""

    PATIENCE_S = 5.0

    def __init__(self, log: Path, memory_gib: float = 6.0, command: Optional[Sequence[str]] = None) -> None:
        given = command or [sys.executable, str(SCRIPT), "--memory-gib", str(memory_gib)]
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_bytes(b"")
            super().__init__(given, environment_for(), log, own_group=True)
        except OSError as error:
            raise GradsegError(f"{log}: cannot start a worker ({error.strerror})") from error

    def failure(self, reason: str, ended: bool) -> WorkerError:
        return WorkerError(reason, ended)

    def ending(self, what: str, code: int, said: list[str]) -> str:
        """How it ended, and the last it said."""
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"crashed: {cause}" + (f"; its last line: {said[-1].strip()[:200]}" if said else "")
