"""The models of a run one after the other, each in a process of its own. Python 3.8."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Optional, Sequence

from gradseg.benchmarks.on_gpu.results import Results

AGAIN = 75  # exit code of a worker that wants a new process (EX_TEMPFAIL)
OUT_OF_TIME = -1  # what `launch` gives for a worker that was ended because its time was up
GRACE_S = 30.0  # a worker that is still busy so long after its time is ended
Launch = Callable[[str, Optional[float]], int]


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
