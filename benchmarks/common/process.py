"""A worker's process as the asking side sees it: asked with a time limit, stopped between its turns, ended at last."""

from __future__ import annotations

import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from gradseg.base.errors import GradsegError
from gradseg.base.json_process import JsonProcess, environment_for

SCRIPT = Path(__file__).with_name("worker.py")


class WorkerError(Exception):
    """A request that failed, with the reason in one line. ended: whether the process is gone with it."""

    def __init__(self, reason: str, ended: bool) -> None:
        super().__init__(reason)
        self.ended = ended


class Worker(JsonProcess):
    """A `common.worker`; its own helpers are stopped and ended with it. Raises WorkerError.

    log: a file for its stderr. memory_gib: what it may hold. python: the interpreter that has the packages.
    """

    PATIENCE_S = 5.0

    def __init__(
        self,
        log: Path,
        memory_gib: Optional[float] = None,
        python: Optional[str] = None,
        command: Optional[Sequence[str]] = None,
    ) -> None:
        given = command or [python or sys.executable, str(SCRIPT), *([str(memory_gib)] if memory_gib else [])]
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_bytes(b"")
        except OSError as error:
            raise GradsegError(f"{log}: cannot start a worker ({error.strerror})") from error
        try:
            super().__init__(given, environment_for(another_python=bool(python)), log, own_group=True)
        except OSError as error:
            raise WorkerError(f"{given[0]}: {error.strerror or error}", True) from error

    def open(self, stack: ExitStack, seconds: float, **asked: Any) -> Dict[str, Any]:
        """Opens a pipeline, asleep from then on, until the stack ends it; what the worker says of it."""
        with ExitStack() as guard:
            known = guard.enter_context(self).ask("open", seconds, **asked)
            self.pause()
            stack.push(guard.pop_all())
        return known

    def failure(self, reason: str, ended: bool) -> WorkerError:
        return WorkerError(reason, ended)

    def ending(self, what: str, code: int, said: List[str]) -> str:
        """How it ended, and the last it said."""
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"crashed during {what}: {cause}" + (f"; its last words: {' '.join(said[-3:])[-300:]}" if said else "")
