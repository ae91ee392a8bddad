"""One engine of the survey in a process of its own: requests as JSON lines on stdin, answers on stdout.

`python benchmarks/survey/worker.py ENGINE PRECISION SOURCE.json FOLDER`, by `survey.process.py` and under whatever
Python has the engine's packages. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import numpy as np

from gradseg.base.json_process import answers_alone, die_with_parent, serve
from gradseg.benchmarks.survey.base import Source, engine, missing


class Worker:
    def __init__(self, name: str, precision: str, source: Source, folder: Path) -> None:
        self.module, self.precision, self.source, self.folder = engine(name), precision, source, folder
        self.runner: Any = None
        self.frames: Optional[Sequence[np.ndarray[Any, Any]]] = None

    def answer(self, request: Dict[str, Any]) -> Dict[str, Any]:
        found: Dict[str, Any] = getattr(self, f"do_{request.pop('do')}")(**request)
        return found

    def do_hello(self) -> Dict[str, Any]:
        return {"missing": list(missing(self.module)), "precisions": list(self.module.PRECISIONS)}

    def do_convert(self) -> Dict[str, Any]:
        begin = time.perf_counter()
        path = self.module.convert(self.source, self.precision, self.folder)
        return {"path": str(path), "bytes": path.stat().st_size, "seconds": time.perf_counter() - begin}

    def do_open(self, path: str, threads: int, logits: str) -> Dict[str, Any]:
        """Opens what `convert` wrote and saves the logits of the first frame as .npy."""
        self.runner = self.module.Runner(Path(path), self.precision, threads)
        self.frames = [np.ascontiguousarray(frame[None]) for frame in self.source.load_frames()]
        np.save(logits, np.array(self.runner.run(self.frames[0]), np.float32))
        return {"version": self.runner.version}

    def do_run(self, frames: int, settle: int) -> Dict[str, Any]:
        """Milliseconds of so many frames in turn, after `settle` untimed ones."""
        assert self.frames is not None
        times = []
        for index in range(-settle, frames):
            frame = self.frames[index % len(self.frames)]
            begin = time.perf_counter_ns()
            self.runner.run(frame)
            if index >= 0:
                times.append((time.perf_counter_ns() - begin) / 1e6)
        return {"ms": times}


def main(argv: Sequence[str]) -> int:
    name, precision, source, folder = argv
    die_with_parent(signal.SIGKILL)
    with answers_alone() as answers:
        facts = json.loads(Path(source).read_text("utf-8"))
        height, width = facts.pop("input_hw")
        worker = Worker(name, precision, Source(**facts, input_hw=(height, width)), Path(folder))
        serve(worker.answer, sys.stdin, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
