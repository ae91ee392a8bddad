"""The real bench of tune.py: candidates' processes, --data's frames, and records on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import numpy as np

from gradseg.base.conditions import Others, proc_bytes
from gradseg.base.errors import GradsegError
from gradseg.export.tuning.candidates import BASE
from gradseg.export.tuning.judge import Exactness, Judge
from gradseg.export.tuning.machine import cpu_seconds
from gradseg.export.tuning.process import WARM_UP, CandidateError, Pool, Worker, room_for
from gradseg.export.tuning.state import Record, Store
from gradseg.export.tuning.verdict import percentile
from gradseg.graphs.sessions import OnnxRunner

OVERHEAD_MS = 4.0  # of a scored frame beside the engine


class Workbench:
    """What `Measuring` needs from outside: open engines, judgement of labels, and a place to keep records. The frames
    are read when something is first to be measured.

    Args:
        folder: a temporary one.
        judge: makes the judge of --data.
        base: the .onnx of FP32 as exported.
    """

    def __init__(
        self, store: Store, folder: Path, judge: Callable[[], Judge], base: Path, drop: float, threads: Optional[int]
    ) -> None:
        self.store, self.folder, self.drop = store, folder, drop
        self._make_judge, self._base, self._threads = judge, base, threads
        self._judge: Optional[Judge] = None
        self._exactness: Optional[Exactness] = None
        self._pool = Pool(folder, 2)
        self._most = 0
        self._others: Optional[Others] = None
        self._own = 0.0
        self.others_share: Optional[float] = None

    @property
    def measured(self) -> bool:
        """Whether any engine was opened."""
        return self._judge is not None

    @property
    def judge(self) -> Judge:
        if self._judge is None:
            self._judge = self._make_judge()
            np.save(str(self.folder / "frames.npy"), self._judge.timed())
        return self._judge

    def worker(self) -> Worker:
        """A new process, for building."""
        return Worker(self.folder)

    def running(self, record: Record) -> Worker:
        """Open, with the first frames behind it if it was opened now. CandidateError if it cannot be."""
        found = self._pool.get(record.name)
        if found is not None:
            return found
        frame_hw = self.judge.spec.input_hw
        if self._others is None:
            self._own, self._others = self._cpu(), Others()
        worker = self.worker()
        try:
            path = self.store.folder / record.files[0]
            opened = worker.open(path, self.folder / "frames.npy", frame_hw, record.threads, record.cpus)
            worker.ask("turn", settle=WARM_UP, frames=0)
        except BaseException:
            worker.close()
            raise
        record.backend = str(opened["backend"])
        self._pool.limit = room_for(self._most, proc_bytes(Path("/proc/meminfo"), "MemAvailable"))
        self._pool.add(record.name, worker)
        return worker

    def done_with(self, record: Record) -> None:
        """Its process may end."""
        self._pool.drop(record.name)

    def check(self, record: Record, running: Worker) -> None:
        """Its labels on a few frames; notes agreement. CandidateError if they rule it out."""
        if self._exactness is None:
            frames = np.load(str(self.folder / "frames.npy"))
            self._exactness = Exactness(self._base, frames, self._threads)
        try:
            share, warnings = self._exactness.check(running.infer, record.title, record.exact)
        except GradsegError as error:
            raise CandidateError(str(error), "refused") from error
        record.agreement, record.notes = share, [*record.notes, *warnings]

    def score(self, record: Record, running: Worker) -> Dict[str, Any]:
        """As `tuning.judge.Judge.score`. Without FP32's labels, which are not kept, they are computed again first."""
        if not self.judge.has_reference:
            if record.name == BASE:
                return self.judge.expect(running.infer)
            self.judge.expect(OnnxRunner(self._base.read_bytes(), str(self._base), self._threads).first)
        return self.judge.score(running.infer)

    def score_seconds(self, record: Record) -> float:
        """How long that will take."""
        return self.judge.count * (percentile(record.screening, 0.5) + OVERHEAD_MS) / 1e3

    def keep(self, record: Record) -> None:
        self._most = max(self._most, record.memory_bytes)
        self.store.keep(record)

    def operators(self, record: Record) -> Dict[str, float]:
        """Milliseconds by operator, {} for engines that are not asked."""
        path = self.store.folder / record.files[0]
        found = self.running(record).ask("operators", path=str(path), threads=record.threads)["ms"]
        return {str(name): float(value) for name, value in found.items()}

    def close(self) -> None:
        if self._others is not None:
            self.others_share = self._others.share(self._cpu() - self._own)
        self._pool.close()

    def _cpu(self) -> float:
        """Seconds of CPU of this process and of all candidates', past and present."""
        return sum(os.times()[:4]) + sum(cpu_seconds(self._pool.pids()).values())
