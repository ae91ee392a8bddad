"""One network in a process of its own, which is asked for its turns and stopped while others have theirs.

`python benchmarks/common/worker.py [GIB]`, GIB being the memory that it may hold, under whatever Python has the
packages: NumPy and the standard library until a module is asked for. A module that runs networks has

build(job, variant)          makes files in the job's folder
open_pipeline(job, variant)  opens them, a `job.Pipeline`

What else is asked of a module is one of its functions. Requests are JSON objects, a line each on stdin, and so are the
answers, on its first stdout; whatever else prints goes to stderr. It ends with the process that started it.
"""

from __future__ import annotations

import importlib
import resource
import signal
import sys
import time
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from gradseg.base.json_process import answers_alone, die_with_parent, serve
from gradseg.benchmarks.common.job import Job, Pipeline, missing


class Worker:
    """Answers requests; at most one pipeline is open."""

    def __init__(self) -> None:
        self._pipeline: Optional[Pipeline] = None
        self._frames: Sequence[np.ndarray[Any, Any]] = []

    def answer(self, request: Dict[str, Any]) -> Dict[str, Any]:
        what = request.pop("do")
        if "job" in request:
            request["job"] = Job.from_dict(request["job"])
        own = getattr(self, f"do_{what}", None)
        if own is None or "module" in request:
            request["module"] = importlib.import_module(request["module"])
        found: Dict[str, Any] = own(**request) if own else getattr(request.pop("module"), what)(**request)
        return found

    def do_missing(self, packages: Sequence[str]) -> Dict[str, Any]:
        return {"missing": missing(packages)}

    def do_build(self, module: Any, job: Job, variant: str) -> Dict[str, Any]:
        begin = time.perf_counter()
        module.build(job, variant)
        return {"seconds": time.perf_counter() - begin}

    def do_open(
        self, module: Any, job: Job, variant: str, frames: str, kept: str, first: Optional[int] = None
    ) -> Dict[str, Any]:
        """Runs every frame of a .npy once, or the first ones, which warms the pipeline up, and leaves what it gives in
        another."""
        self._pipeline = module.open_pipeline(job, variant)
        self._frames = list(np.load(frames))
        np.save(kept, np.stack([np.array(self._pipeline.run(frame)[0]) for frame in self._frames[:first]]))
        names = ("engine", "precision", "version")
        known = {name: getattr(self._pipeline, name) for name in names if hasattr(self._pipeline, name)}
        return {**known, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}

    def do_turn(self, start: int, count: int, settle: int) -> Dict[str, Any]:
        """Nanoseconds of the stages of `count` frames, after `settle` ones that are not kept."""
        assert self._pipeline is not None
        times: List[List[int]] = []
        for index in range(start - settle, start + count):
            taken = self._pipeline.run(self._frames[index % len(self._frames)])[1]
            if index >= start:
                times.append(list(taken))
        return {"ns": times}

    def do_miou(self, data: str, limit: Optional[int], classes: int) -> Dict[str, Any]:
        """mIoU of the whole pipeline on labelled frames, at their size."""
        from gradseg.data.specs import open_data
        from gradseg.runtime.metrics import Confusion

        assert self._pipeline is not None
        samples, confusion = open_data(data, limit), Confusion(classes)
        for index in range(len(samples)):
            sample = samples[index]
            confusion.update(self._pipeline.run(sample.image)[0], sample.label)
        return {"miou": confusion.miou(), "frames": len(samples)}


def main(argv: Sequence[str]) -> int:
    die_with_parent(signal.SIGKILL)
    for gib in argv:
        limit = int(float(gib) * (1 << 30))
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with answers_alone() as out:
        serve(Worker().answer, sys.stdin, out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
