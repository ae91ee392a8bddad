"""The processes of a run: one for each model, and PyTorch's, asked for its turns between the engines'. Python 3.8.

The packed Python of a device image has no torch, the machine's own may have; so PyTorch's is found by trying.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from gradseg.base.errors import GradsegError
from gradseg.base.json_process import JsonProcess, environment_for
from gradseg.benchmarks.on_gpu.results import Results

AGAIN = 75  # exit code of a worker that wants a new process (EX_TEMPFAIL)
OUT_OF_TIME = -1  # what `launch` gives for a worker that was ended because its time was up
GRACE_S = 30.0  # a worker that is still busy so long after its time is ended
Launch = Callable[[str, Optional[float]], int]
SCRIPT = Path(__file__).resolve().parent / "with_torch.py"
PROBE = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 7)"
PROBE_S, OPEN_S, TURN_S = 120, 420, 120  # seconds; torch.compile takes minutes


def run_models(path: Path, models: Sequence[str], deadline: Optional[float], launch: Launch) -> Results:
    """Works on the result file at `path` until every row of the models has ended, or time is up.

    A row that has not ended then says why in its "error", and keeps its status for a later run.

    Args:
        deadline: of time.monotonic; None without a time budget.
        launch: (model, seconds left or None) → exit code: 0 when it is through, `AGAIN` for a new process, others
            after a crash; then the model is taken up again as long as that changes something.
    """
    for model in models:
        before, code = "", 0
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            state = repr(Results.read(path).unfinished(model))
            if state in ("[]", before) or (left is not None and left <= 0):
                break
            before = state
            code = launch(model, left)
            if code == OUT_OF_TIME:  # a step that was cut off for time is no crash: it does not count as an attempt
                results = Results.read(path)
                for row in results.unfinished(model):
                    row["attempts"] = {}
                results.save()
            if code == 0:
                break
        late = deadline is not None and time.monotonic() >= deadline
        why = "the time budget was used up; go on with --resume" if late else f"its process ended with exit code {code}"
        results = Results.read(path)
        for row in results.unfinished(model):
            row["error"] = f"not run to its end: {why}"
        results.save()
    return Results.read(path)


def in_process_of_its_own(command: Sequence[str]) -> Launch:
    """`launch` for `run_models`: a script with arguments, `--worker MODEL` added; ended if it is busy long after its
    time."""

    def launch(model: str, left: Optional[float]) -> int:
        budget = [] if left is None else ["--time-budget", f"{left:.0f}"]
        # a process group of its own, so that what it started (PyTorch's process) ends with it
        child = subprocess.Popen([sys.executable, *command, "--worker", model, *budget], start_new_session=True)
        try:
            return child.wait(None if left is None else left + GRACE_S)
        except subprocess.TimeoutExpired:
            return OUT_OF_TIME
        finally:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()

    return launch


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
    plain = environment_for(another_python=True)
    bare = {key: value for key, value in plain.items() if key != "LD_LIBRARY_PATH"}
    return [plain, bare] if bare != plain else [plain]


class TorchProcess(JsonProcess):
    """The worker. Each request has a time limit; one that breaks it, or a crash, ends the process.

    Raises GradsegError for whatever goes wrong there.
    """

    def __init__(self, command: Sequence[str], environment: Optional[Dict[str, str]] = None) -> None:
        super().__init__(command, environment)
        try:
            self.facts = self.ask("hello", OPEN_S)
        except BaseException:
            self.close()
            raise

    def failure(self, reason: str, ended: bool) -> GradsegError:
        return GradsegError(f"PyTorch: {reason}")

    def ending(self, what: str, code: int, said: List[str]) -> str:
        return f"its process ended with exit code {code}; see its messages above"

    def open(self, row: str, model: str, variant: str) -> Tuple[TorchSeries, Dict[str, Any]]:
        """A network on the GPU, and what its labels are (see `on_gpu.check.labels_of`)."""
        found = self.ask("open", OPEN_S, row=row, model=model, variant=variant)
        return TorchSeries(self, row), found["labels"]


class TorchSeries:
    """One network in the worker, as a `on_gpu.measure.Series`."""

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
        return float(self._process.ask("flight", TURN_S, row=self.row, count=count)["seconds"])

    def close(self) -> None:
        with contextlib.suppress(GradsegError):  # it has ended already
            self._process.ask("close", TURN_S, row=self.row)

    def _turn(self, name: str, start: int, count: int, settle: int) -> Any:
        return self._process.ask(name, TURN_S, row=self.row, start=start, count=count, settle=settle)["ms"]


def start_torch(pack: Path, given: Optional[str], cpu: bool) -> TorchProcess:
    """The worker on a pack. cpu: without CUDA, in this Python, to try it. Raises TorchMissing or GradsegError."""
    if cpu:
        python, environment = sys.executable, _environments()[0]
    else:
        python, environment = find_python(given)
    device = "cpu" if cpu else "cuda"
    return TorchProcess([python, str(SCRIPT), "--from", str(pack), "--device", device], environment)
