"""tune.py's side of a `tuning.worker`: one process per candidate, asleep except while it is asked something.

A process that is not asked is stopped (SIGSTOP), so that its worker threads take nothing from the one being measured.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.base.json_process import JsonProcess, environment_for

START, BUILD, OPEN, ANSWER = 120.0, 900.0, 600.0, 300.0  # seconds until a process counts as hung
WARM_UP = 6  # untimed frames before the first turn


class CandidateError(Exception):
    """A candidate that is out; the message is the reason in words.

    state: "unavailable", it cannot be built or run here, or "refused", what it gives cannot be used.
    """

    def __init__(self, reason: str, state: str = "unavailable") -> None:
        super().__init__(reason)
        self.state = state


class Worker(JsonProcess):
    """A `tuning.worker`. Every method raises CandidateError for what it refuses, and if it crashed or hangs.

    Args:
        folder: for what it prints and for the frames it shares; the caller removes it.
    """

    OVERDUE = "no answer within {seconds:.0f} s, ended"

    def __init__(self, folder: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=str(folder)))
        self._may_stop = False
        self._frame: np.ndarray[Any, Any] = np.empty(0, np.uint8)
        self._labels: np.ndarray[Any, Any] = np.empty(0, np.uint8)
        # CPU engines are compared; torch would take a GPU by itself
        environment = environment_for(CUDA_VISIBLE_DEVICES="")
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(os.getpid())]
        super().__init__(command, environment, self.folder / "log", own_group=True)
        self._may_stop = bool(self.answer("start", START)["may_be_stopped"])
        self._sleep()

    def failure(self, reason: str, ended: bool) -> CandidateError:
        return CandidateError(reason)

    def ending(self, what: str, code: int, said: List[str]) -> str:
        if code < 0:
            return f"crashed ({signal.Signals(-code).name})"
        return said[-1].strip()[:300] if said else f"ended with exit code {code}"

    def ask(self, what: str, seconds: float = ANSWER, **given: Any) -> Dict[str, Any]:
        """Wakes the process, has it do one thing, and gives its answer."""
        self.resume()
        try:
            return super().ask(what, seconds, **given)
        finally:
            self._sleep()

    def open(
        self, path: Path, frames: Path, frame_hw: Sequence[int], threads: Optional[int], cpus: Sequence[int]
    ) -> Dict[str, Any]:
        """Opens an engine file; see `tuning.worker`. frame_hw: (height, width) of the network."""
        shared = str(self.folder / "shared")
        shape = (1, int(frame_hw[0]), int(frame_hw[1]))
        self._frame = np.memmap(shared + ".frame", np.uint8, "w+", shape=(*shape, 3))
        self._labels = np.memmap(shared + ".labels", np.uint8, "w+", shape=shape)
        given = {"path": str(path), "frames": str(frames), "threads": threads, "cpus": list(cpus), "shared": shared}
        return self.ask("open", OPEN, **given)

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 BGR (1, h, w, 3) → labels uint8 (1, h, w), valid until the next call."""
        np.copyto(self._frame, batch)
        self.ask("infer")
        return self._labels

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def _sleep(self) -> None:
        if self._may_stop:
            self.pause()


class Pool:
    """Open workers by name, at most `limit`; the one not used for longest makes room."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, max(1, limit)
        self._open: Dict[str, Worker] = {}

    def get(self, name: str) -> Optional[Worker]:
        """The open worker of that name, now the one used last."""
        if name in self._open:
            self._open[name] = self._open.pop(name)
        return self._open.get(name)

    def add(self, name: str, worker: Worker) -> None:
        self._open[name] = worker
        while len(self._open) > self.limit:
            self.drop(next(iter(self._open)))

    def drop(self, name: str) -> None:
        if name in self._open:
            self._open.pop(name).close()

    def pids(self) -> List[int]:
        return [worker.pid for worker in self._open.values()]

    def close(self) -> None:
        for name in list(self._open):
            self.drop(name)


def room_for(memory: int, available: Optional[int]) -> int:
    """How many processes of `memory` bytes may be open in `available` bytes; half is left alone."""
    if available is None or memory <= 0:
        return 8
    return max(2, available // 2 // memory)


def need_processes() -> None:
    """GradsegError, exit code 3, on systems without signals that stop and wake."""
    if os.name != "posix":
        raise GradsegError(
            "tune.py runs each candidate in a process that it stops and wakes; it needs Linux or macOS", 3
        )
