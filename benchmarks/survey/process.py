"""Workers of the survey, each in a process of its own that is stopped while another has its turn."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import Any, Iterator, List, Mapping, Optional

from gradseg.base.json_process import JsonProcess, environment_for

SCRIPT = Path(__file__).resolve().parent / "worker.py"
CONVERT_S, OPEN_S, TURN_S, HELLO_S = 1800, 300, 600, 120
TAIL = 300  # characters of a worker's messages that stand in the result when it dies


class WorkerFailed(Exception):  # noqa: N818  a row's result, no failure of the survey
    """The worker cannot do what was asked; the message is the reason that stands in the result."""


class EngineProcess(JsonProcess):
    """One engine, precision and network. Raises WorkerFailed for a crash, an overdue answer, and what it refuses.

    python: the interpreter that has the engine's packages. source: .json of a `Source`. folder: for its files and its
    messages; must exist.
    """

    def __init__(self, name: str, precision: str, source: Path, folder: Path, python: Optional[str] = None) -> None:
        command = [python or sys.executable, str(SCRIPT), name, precision, str(source), str(folder)]
        try:
            super().__init__(command, environment_for(another_python=True), folder / "messages.txt")
        except OSError as error:
            raise WorkerFailed(f"{command[0]}: {error.strerror or error}") from error

    def failure(self, reason: str, ended: bool) -> WorkerFailed:
        return WorkerFailed(reason)

    def ending(self, what: str, code: int, said: List[str]) -> str:
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        words = f"; its last words: {' '.join(said[-3:])[-TAIL:]}" if said else ""
        return f"its process ended during {what}: {cause}{words}"

    @contextlib.contextmanager
    def turn(self) -> Iterator[EngineProcess]:
        """The process awake; outside it is stopped, so that none of its threads can spin on another's core."""
        self.resume()
        try:
            yield self
        finally:
            self.pause()


def probe(name: str, source: Path, folder: Path, python: Optional[str]) -> Mapping[str, Any]:
    """{"missing": packages that this Python lacks, "precisions"} of an engine. Raises WorkerFailed."""
    with EngineProcess(name, "fp32", source, folder, python) as process:
        return process.ask("hello", HELLO_S)
