"""One candidate of tune.py in a process of its own, which builds, opens and runs it; a crash ends only this process.

Commands come as JSON lines on stdin, answers go as JSON lines to what was stdout; what libraries print goes to stderr.
A mistake (GradsegError) is an answer; any other exception ends the process, its last line says why.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np

from gradseg.base.conditions import proc_bytes
from gradseg.base.errors import GradsegError
from gradseg.base.json_process import answers_alone, die_with_parent
from gradseg.export.tuning.build import build
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.engines.protocol import Engine


class Served:
    """The commands by name, and what they share."""

    def __init__(self) -> None:
        self.engine: Optional[Engine] = None
        self.frames: np.ndarray[Any, Any] = np.empty(0, np.uint8)
        self.frame: np.ndarray[Any, Any] = np.empty(0, np.uint8)
        self.labels: np.ndarray[Any, Any] = np.empty(0, np.uint8)
        self.count = 0

    def build(self, given: Dict[str, Any]) -> Dict[str, Any]:
        """Writes the engine file or files of a candidate; see `tuning.build`."""
        return {"files": [str(path) for path in build(given)]}

    def open(self, given: Dict[str, Any]) -> Dict[str, Any]:
        """Opens the engine and the frames, (count, h, w, 3); `shared` names the files that `infer` uses."""
        if given["cpus"]:
            os.sched_setaffinity(0, given["cpus"])
        self.engine = open_engine(given["path"], given["threads"])
        self.frames = np.load(given["frames"])
        _, height, width, _ = self.frames.shape
        if tuple(self.engine.frame_hw) != (height, width) or self.engine.batch != 1:
            raise GradsegError(
                f"{given['path']}: takes {self.engine.batch} x {self.engine.frame_hw}, not {height}x{width}"
            )
        shape = (1, height, width)
        self.frame = np.asarray(np.memmap(given["shared"] + ".frame", np.uint8, "r+", shape=(*shape, 3)))
        self.labels = np.asarray(np.memmap(given["shared"] + ".labels", np.uint8, "r+", shape=shape))
        return {"backend": self.engine.backend, "device": self.engine.device, "threads": self.engine.threads}

    def turn(self, given: Dict[str, Any]) -> Dict[str, Any]:
        """`settle` untimed frames, then `frames` timed ones, milliseconds each."""
        assert self.engine is not None
        clock, times = time.perf_counter_ns, []
        for index in range(-given["settle"], given["frames"]):
            self.count += 1
            first = self.count % len(self.frames)
            batch = self.frames[first : first + 1]
            begin = clock()
            self.engine.infer(batch)
            if index >= 0:
                times.append((clock() - begin) / 1e6)
        return {"ms": times, "memory": peak_memory()}

    def infer(self, given: Dict[str, Any]) -> Dict[str, Any]:
        """Labels of the shared frame."""
        assert self.engine is not None
        np.copyto(self.labels, self.engine.infer(self.frame))
        return {}

    def operators(self, given: Dict[str, Any]) -> Dict[str, Any]:
        """Milliseconds per frame by operator, as ONNX Runtime's profiler sees them; {} for other engines."""
        if Path(given["path"]).suffix != ".onnx":
            return {"ms": {}}
        from gradseg.export.tuning.ort_profile import operators

        return {"ms": operators(given["path"], given["threads"], self.frames)}


def peak_memory() -> int:
    """The most bytes of memory that this process had at once."""
    found = proc_bytes(Path("/proc/self/status"), "VmHWM")
    if found is not None:
        return found
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main() -> int:
    answers = answers_alone()

    def answer(value: Dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    may_be_stopped = die_with_parent(signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # it ended before
        return 1
    answer({"may_be_stopped": may_be_stopped})
    served = Served()
    for line in sys.stdin:
        given = json.loads(line)
        try:
            answer(getattr(served, given["do"])(given))
        except GradsegError as error:
            answer({"error": str(error), "exit_code": error.exit_code})
    return 0


if __name__ == "__main__":
    sys.exit(main())
