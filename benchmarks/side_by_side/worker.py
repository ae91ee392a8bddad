"""One pipeline in a process of its own: versus.py asks it for its turns, and stops it while others have theirs.

It reads one JSON object per line on stdin and answers each with one on its first stdout; whatever else prints goes to
stderr. It ends with the process that started it.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np

from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import write_json
from gradseg.base.json_process import answers_alone, die_with_parent, serve
from gradseg.benchmarks.side_by_side.jobs import Job, Pipeline, spec_of
from gradseg.data.specs import open_data
from gradseg.runtime.metrics import Confusion


class Worker:
    """Answers requests; at most one pipeline is open."""

    def __init__(self) -> None:
        self._pipeline: Optional[Pipeline] = None
        self._frames: list[np.ndarray[Any, Any]] = []
        self._job: Optional[Job] = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["do"]
        if name == "turn":
            return {"ns": self._turn(request["start"], request["count"], request["settle"])}
        if name == "miou":
            return self._miou(request["data"], request["limit"])
        self._job = job = Job.from_dict(request["job"])
        if name == "prepare":
            return prepare(job)
        module = importlib.import_module(request["module"])
        if name == "build":
            module.build(job, request["variant"])
            return {}
        if name == "open":
            self._pipeline = module.open_pipeline(job, request["variant"])
            return self._opened(Path(request["frames"]), Path(request["labels"]))
        raise GradsegError(f"unknown request {name!r}")

    def _opened(self, frames: Path, labels: Path) -> dict[str, Any]:
        """Runs every frame once, which warms the pipeline up, and leaves the labels, uint8 (N, H, W), in a file."""
        assert self._pipeline is not None
        self._frames = list(np.load(frames))
        found = np.stack([self._pipeline.run(frame)[0].copy() for frame in self._frames])
        np.save(labels, found)
        return {
            "engine": self._pipeline.engine,
            "precision": self._pipeline.precision,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }

    def _turn(self, start: int, count: int, settle: int) -> list[list[int]]:
        """Nanoseconds of the stages of `count` frames, after `settle` ones that are not kept."""
        assert self._pipeline is not None
        times = []
        for index in range(-settle, count):
            taken = self._pipeline.run(self._frames[(start + index) % len(self._frames)])[1]
            if index >= 0:
                times.append(list(taken))
        return times

    def _miou(self, text: str, limit: Optional[int]) -> dict[str, Any]:
        """mIoU of the whole pipeline on labelled frames, at their size."""
        assert self._pipeline is not None and self._job is not None
        data = open_data(text, limit)
        confusion = Confusion(spec_of(self._job).num_classes)
        for index in range(len(data)):
            sample = data[index]
            confusion.update(self._pipeline.run(sample.image)[0], sample.label)
        return {"miou": confusion.miou(), "frames": len(data)}


def prepare(job: Job) -> dict[str, Any]:
    """Leaves spec.json in the job's folder, and a checkpoint if the network is untrained; gives what it costs."""
    from gradseg.benchmarks.common.untrained import untrained_network
    from gradseg.benchmarks.side_by_side.peers_torch import checkpoint_of
    from gradseg.models.checkpoint import save_checkpoint
    from gradseg.models.counts import count
    from gradseg.models.networks.erfnet import SegNetwork
    from gradseg.models.spec import spec_for

    job.folder.mkdir(parents=True, exist_ok=True)
    if not job.trained and not job.checkpoint.is_file():
        save_checkpoint(job.checkpoint, untrained_network(spec_for(job.model, input_hw=job.input_hw), 0))
    spec = checkpoint_of(job).spec
    if spec.arch != job.model:
        raise GradsegError(f"{job.checkpoint}: is of architecture {spec.arch}, not {job.model}")
    write_json(job.folder / "spec.json", spec.to_dict())
    counts = count(SegNetwork(spec), job.input_hw)
    return {"gmac": counts.macs / 1e9, "parameters": counts.parameters, "classes": list(spec.classes)}


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-gib", type=float, default=6.0, help="what this process may hold")
    arguments = parser.parse_args(argv)
    die_with_parent(signal.SIGKILL)
    limit = int(arguments.memory_gib * (1 << 30))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with answers_alone() as out:
        serve(Worker().answer, sys.stdin, out)
    return 0


if __name__ == "__main__":
    run_main(main)
