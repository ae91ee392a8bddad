"""tune.py's side of a `tune_worker`: one process per candidate, asleep except while it is asked something.

A process that is not asked is stopped (SIGSTOP), so that its worker threads take nothing from the one being measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

import gradseg
from gradseg.export import tune_worker
from gradseg.models.errors import GradsegError

START, BUILD, OPEN, ANSWER = 120.0, 900.0, 600.0, 300.0  # seconds until a process counts as hung


class CandidateError(Exception):
    """A candidate that is out; the message is the reason in words.

    state: "unavailable", it cannot be built or run here, or "refused", what it gives cannot be used.
    """

    def __init__(self, reason: str, state: str = "unavailable") -> None:
        super().__init__(reason)
        self.state = state


class Worker:
    """A `tune_worker`. Every method raises CandidateError for what it refuses, and if it crashed or hangs.

    Args:
        folder: for what it prints and for the frames it shares; the caller removes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=str(folder)))
        self._log = open(str(self.folder / "log"), "w+b")  # noqa: SIM115  closed in close()
        root = str(Path(gradseg.__file__).resolve().parent.parent)
        paths = [root, os.environ.get("PYTHONPATH", "")]
        # CPU engines are compared; torch would take a GPU by itself
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [sys.executable, tune_worker.__file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            start_new_session=True,  # Ctrl-C is for tune.py alone
        )
        self._left = b""
        self._may_stop = False
        self._frame: np.ndarray[Any, Any] = np.empty(0, np.uint8)
        self._labels: np.ndarray[Any, Any] = np.empty(0, np.uint8)
        self._may_stop = bool(self._answer(START)["may_be_stopped"])
        self._sleep()

    def ask(self, do: str, timeout: float = ANSWER, **given: Any) -> Dict[str, Any]:
        """Wakes the process, has it do one thing, and gives its answer."""
        self._signal(signal.SIGCONT)
        try:
            assert self._process.stdin is not None
            self._process.stdin.write((json.dumps({"do": do, **given}) + "\n").encode())
            self._process.stdin.flush()
        except OSError:
            raise CandidateError(self._ended()) from None
        answer = self._answer(timeout)
        self._sleep()
        if "error" in answer:
            raise CandidateError(str(answer["error"]))
        return answer

    def open(
        self, path: Path, frames: Path, frame_hw: Sequence[int], threads: Optional[int], cpus: Sequence[int]
    ) -> Dict[str, Any]:
        """Opens an engine file; see `tune_worker`. frame_hw: (height, width) of the network."""
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

    def close(self) -> None:
        """Ends the process at once. Calling it twice is harmless."""
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def _signal(self, number: int) -> None:
        if self._may_stop and self._process.poll() is None:
            with contextlib.suppress(OSError):
                os.kill(self._process.pid, number)

    def _sleep(self) -> None:
        self._signal(signal.SIGSTOP)

    def _answer(self, timeout: float) -> Dict[str, Any]:
        """The next line of JSON."""
        assert self._process.stdout is not None
        end = time.monotonic() + timeout
        while b"\n" not in self._left:
            ready = select.select([self._process.stdout], [], [], max(0.0, end - time.monotonic()))[0]
            if not ready:
                self.close()
                raise CandidateError(f"no answer within {timeout:.0f} s, ended")
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                raise CandidateError(self._ended())
            self._left += piece
        line, _, self._left = self._left.partition(b"\n")
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def _ended(self) -> str:
        """Why the process is no longer there."""
        code = self._process.wait()
        self._log.seek(0)
        lines = [line for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        self.close()
        if code < 0:
            return f"crashed ({signal.Signals(-code).name})"
        return lines[-1].strip()[:300] if lines else f"ended with exit code {code}"


class Pool:
    """Open workers by name, at most `limit`; the one not used for longest makes room."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, max(1, limit)
        self._open: Dict[str, Worker] = {}

    def get(self, name: str) -> Optional[Worker]:
        """The open worker of that name, now the one used last."""
        worker = self._open.pop(name, None)
        if worker is not None:
            self._open[name] = worker
        return worker

    def add(self, name: str, worker: Worker) -> None:
        self._open[name] = worker
        while len(self._open) > self.limit:
            self.drop(next(iter(self._open)))

    def drop(self, name: str) -> None:
        worker = self._open.pop(name, None)
        if worker is not None:
            worker.close()

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


def available_memory() -> Optional[int]:
    """Bytes that may still be taken, None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text("utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def need_processes() -> None:
    """GradsegError on systems without select on pipes and signals."""
    if os.name != "posix":
        raise GradsegError(
            "tune.py runs each candidate in a process that it stops and wakes; it needs Linux or macOS", 3
        )
