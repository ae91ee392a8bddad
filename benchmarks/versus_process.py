"""A pipeline's process as versus.py sees it: asked with a time limit, stopped between its turns, ended at the end."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from gradseg.models.errors import GradsegError

SCRIPT = Path(__file__).resolve().parent / "versus_worker.py"
SOURCES = SCRIPT.parent.parent / "src"


class WorkerError(Exception):
    """A request that failed, with the reason in one line. ended: whether the process is gone with it."""

    def __init__(self, reason: str, ended: bool) -> None:
        super().__init__(reason)
        self.ended = ended


class Worker:
    """A process that answers one JSON line with one. log: its stderr. Use as a context."""

    def __init__(self, log: Path, memory_gib: float = 6.0, command: Optional[Sequence[str]] = None) -> None:
        self._log = log
        given = command or [sys.executable, str(SCRIPT), "--memory-gib", str(memory_gib)]
        paths = [str(SOURCES), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "w", encoding="utf-8") as stderr:
                self._process = subprocess.Popen(
                    list(given),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=environment,
                    text=True,
                    start_new_session=True,  # its own helpers are stopped and ended with it
                )
        except OSError as error:
            raise GradsegError(f"{log}: cannot start a worker ({error.strerror})") from error
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, seconds: float, **request: Any) -> dict[str, Any]:
        """The answer within so many seconds; WorkerError if there is none or it is an error."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise WorkerError(f"no answer to {request['do']} within {seconds:.0f} s", True) from None
        except (OSError, ValueError):  # it has ended, or was closed
            line = ""
        if not line:
            raise WorkerError(f"crashed: {self._ending()}", True)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(str(answer["error"]), False)
        return answer

    def pause(self) -> None:
        """Stops all its threads where they are, so that none spins in another's turn."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends it, and what it started."""
        self._end(0)
        self._reader.join(5)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signal(self, number: int) -> None:
        if self._process.returncode is None:  # else its number may be another's by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _end(self, patience: float) -> None:
        """Waits so many seconds for it to end by itself; ends what is left, and what it started."""
        deadline = time.monotonic() + patience
        while not self._is_over() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _is_over(self) -> bool:
        """Whether it has ended; unlike `poll` this leaves it its number, which is its group's too."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _ending(self) -> str:
        """How it ended, and the last it said."""
        self._end(5)
        code = self._process.wait()
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        with contextlib.suppress(OSError):
            said = self._log.read_text("utf-8", "replace").strip().splitlines()
            if said:
                return f"{cause}; its last line: {said[-1].strip()[:200]}"
        return cause

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put("")
