"""Workers of the survey, each in a process of its own that is stopped while another has its turn."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

SCRIPT = Path(__file__).resolve().parent / "engines_worker.py"
SOURCES = SCRIPT.parent.parent / "src"
CONVERT_S, OPEN_S, TURN_S, HELLO_S = 1800, 300, 600, 120
TAIL = 300  # characters of a worker's messages that stand in the result when it dies


class WorkerFailed(Exception):  # noqa: N818  a row's result, no failure of the survey
    """The worker cannot do what was asked; the message is the reason that stands in the result."""


class EngineProcess:
    """One engine, precision and network. Raises WorkerFailed for a crash, an overdue answer, and what it refuses.

    python: the interpreter that has the engine's packages. source: .json of a `Source`. folder: for its files and its
    messages; must exist.
    """

    def __init__(self, name: str, precision: str, source: Path, folder: Path, python: Optional[str] = None) -> None:
        self.log = folder / "messages.txt"
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONHOME"}
        environment["PYTHONPATH"] = str(SOURCES)
        command = [python or sys.executable, str(SCRIPT), name, precision, str(source), str(folder)]
        with self.log.open("ab") as messages:
            try:
                self._process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=messages,
                    text=True,
                )
            except OSError as error:
                raise WorkerFailed(f"{command[0]}: {error.strerror or error}") from error
        self._lines: "queue.Queue[str]" = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, what: str, seconds: float, **arguments: Any) -> Dict[str, Any]:
        """The answer to one request; the process must be awake."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise WorkerFailed(f"no answer to {what} within {seconds:.0f} s") from None
        except (OSError, ValueError):  # it has ended, or was closed
            line = ""
        if not line:
            raise WorkerFailed(f"its process ended during {what}: {self._ending()}")
        answer: Dict[str, Any] = json.loads(line)
        if "unsupported" in answer:
            raise WorkerFailed(str(answer["unsupported"]))
        return answer

    @contextlib.contextmanager
    def turn(self) -> Any:
        """The process awake; outside it is stopped, so that none of its threads can spin on another's core."""
        self._process.send_signal(signal.SIGCONT)
        try:
            yield self
        finally:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(5)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put("")

    def _ending(self) -> str:
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        lines: List[str] = self.log.read_text("utf-8", "replace").strip().splitlines()
        return f"{name}; its last words: {' '.join(lines[-3:])[-TAIL:]}" if lines else name


def probe(name: str, source: Path, folder: Path, python: Optional[str]) -> Mapping[str, Any]:
    """{"missing": packages that this Python lacks, "precisions"} of an engine. Raises WorkerFailed."""
    process = EngineProcess(name, "fp32", source, folder, python)
    try:
        return process.ask("hello", HELLO_S)
    finally:
        process.close()
