"""PyTorch in a process of its own, asked for its turns between the engines': see `gpu_torch`. Python 3.8.

The packed Python of a device image has no torch, the machine's own may have; so the Python is found by trying.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from gradseg.models.errors import GradsegError

SCRIPT = Path(__file__).resolve().parent / "gpu_torch.py"
SOURCES = SCRIPT.parent.parent / "src"
PROBE = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 7)"
PROBE_S, OPEN_S, TURN_S = 120, 420, 120  # seconds; torch.compile takes minutes


class TorchMissing(Exception):  # noqa: N818  not a failure: PyTorch's rows are skipped
    """No Python with PyTorch and CUDA was found; says what was tried."""


def find_python(given: Optional[str]) -> Tuple[str, Dict[str, str]]:
    """(Python with PyTorch and CUDA, environment for it): the given one, else this one, else `python3` on the path.

    Each is tried in this environment and in one without LD_LIBRARY_PATH, which may be made for another Python.
    Raises TorchMissing.
    """
    candidates = [given] if given else [sys.executable, shutil.which("python3") or ""]
    tried: List[str] = []
    for python in dict.fromkeys(filter(None, candidates)):
        for environment in _environments():
            try:
                done = subprocess.run(
                    [python, "-c", PROBE],
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=PROBE_S,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                tried.append(f"{python}: {error}")
                break
            if done.returncode == 0:
                return python, environment
        else:
            tried.append(f"{python}: {'its PyTorch finds no CUDA' if done.returncode == 7 else 'has no PyTorch'}")
    raise TorchMissing("; ".join(tried) or "no Python to try")


def _environments() -> List[Dict[str, str]]:
    plain = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    plain["PYTHONPATH"] = str(SOURCES)
    bare = {key: value for key, value in plain.items() if key != "LD_LIBRARY_PATH"}
    return [plain, bare] if bare != plain else [plain]


class TorchProcess:
    """The worker. Each request has a time limit; one that breaks it, or a crash, ends the process.

    Raises GradsegError for whatever goes wrong there.
    """

    def __init__(self, command: Sequence[str], environment: Optional[Dict[str, str]] = None) -> None:
        self._process = subprocess.Popen(
            list(command), env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True
        )
        self._lines: "queue.Queue[str]" = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.facts = self.ask(OPEN_S, do="hello")
        except BaseException:
            self.close()
            raise

    def ask(self, seconds: float, **request: Any) -> Dict[str, Any]:
        """The answer to one request within so many seconds."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise GradsegError(f"PyTorch: no answer to {request['do']} within {seconds:.0f} s") from None
        except (OSError, ValueError):  # it has ended, or was closed
            line = ""
        if not line:
            code = self._process.wait()
            raise GradsegError(f"PyTorch: its process ended with exit code {code}; see its messages above")
        answer: Dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise GradsegError(f"PyTorch: {answer['error']}")
        return answer

    def open(self, row: str, model: str, variant: str) -> Tuple[TorchSeries, Dict[str, Any]]:
        """A network on the GPU, and what its labels are (see `gpu_check.labels_of`)."""
        found = self.ask(OPEN_S, do="open", row=row, model=model, variant=variant)
        return TorchSeries(self, row), found["labels"]

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
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put("")


class TorchSeries:
    """One network in the worker, as a `gpu_measure.Series`."""

    way = "plain"

    def __init__(self, process: TorchProcess, row: str) -> None:
        self._process, self.row = process, row

    def end_to_end(self, start: int, count: int, settle: int) -> List[float]:
        times: List[float] = self._turn("end_to_end", start, count, settle)
        return times

    def stages(self, start: int, count: int, settle: int) -> List[List[float]]:
        times: List[List[float]] = self._turn("stages", start, count, settle)
        return times

    def flight(self, count: int) -> float:
        return float(self._process.ask(TURN_S, do="flight", row=self.row, count=count)["seconds"])

    def close(self) -> None:
        with contextlib.suppress(GradsegError):  # it has ended already
            self._process.ask(TURN_S, do="close", row=self.row)

    def _turn(self, name: str, start: int, count: int, settle: int) -> Any:
        return self._process.ask(TURN_S, do=name, row=self.row, start=start, count=count, settle=settle)["ms"]


def start_torch(pack: Path, given: Optional[str], cpu: bool) -> TorchProcess:
    """The worker on a pack. cpu: without CUDA, in this Python, to try it. Raises TorchMissing or GradsegError."""
    if cpu:
        python, environment = sys.executable, _environments()[0]
    else:
        python, environment = find_python(given)
    device = "cpu" if cpu else "cuda"
    return TorchProcess([python, str(SCRIPT), "--from", str(pack), "--device", device], environment)
