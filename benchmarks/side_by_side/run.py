"""One run of versus.py: builds what is missing, opens every pipeline in its own process, lets them take turns."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np

from gradseg.base.conditions import proc_bytes
from gradseg.base.errors import GradsegError
from gradseg.benchmarks.common.job import Job
from gradseg.benchmarks.common.process import Worker, WorkerError
from gradseg.benchmarks.common.turns import Rounds, awake, take_turns
from gradseg.benchmarks.side_by_side.jobs import EAGER, FRAME_HW, Kind, built, keep, kept, lacking, slug, stamp
from gradseg.benchmarks.side_by_side.ratios import Row, ratios
from gradseg.graphs.frames import open_frames

STAGES = ("preprocess", "network", "postprocess")
DISTINCT = 8  # different frames in turn: a constant input would flatter caches
PREPARE_S, BUILD_S, OPEN_S, MIOU_S = 300, 1800, 900, 1800
NETWORKS = "gradseg.benchmarks.side_by_side.networks"
SPARE_MIB = 1024  # memory that must stay free when a pipeline is opened


@dataclass(frozen=True)
class Plan:
    """What to measure. source: frames, `frames` timed ones per pipeline. val: labelled frames, `val_frames` of them at
    most. work: folder that is kept between runs. resume: go on with the rounds of a killed run."""

    jobs: Sequence[Job]
    kinds: Sequence[Kind]
    source: str
    frames: int
    val: Optional[str]
    val_frames: Optional[int]
    work: Path
    resume: bool = False
    memory_gib: float = 6.0
    ceilings: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Entry:
    """A pipeline that is open. facts: what its worker said of it. times: nanoseconds of STAGES per frame."""

    job: Job
    kind: Kind
    worker: Worker
    facts: Mapping[str, Any]
    labels: Path
    miou: Optional[float] = None
    times: Sequence[Sequence[int]] = ()

    def row(self) -> Row:
        """What the ratios are made of."""
        total, network = (float(np.median(each)) / 1e6 for each in (np.sum(self.times, 1), np.array(self.times)[:, 1]))
        engine, precision = str(self.facts["engine"]), str(self.facts["precision"])
        return Row(self.kind.name, self.job.model, total, network, self.miou, engine, precision, self.kind.ours)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Run:
    """See `measure`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stack = ExitStack()
        self.unavailable: list[dict[str, str]] = []
        self.models: dict[str, dict[str, Any]] = {}
        self.entries: dict[str, Entry] = {}

    def measure(self) -> dict[str, Any]:
        """{"pipelines", "ratios", "facts"}; facts belong under the conditions. GradsegError if nothing could run.
        Nothing is left running."""
        with self._stack:
            frames = self._write_frames()
            for job in self._plan.jobs:
                if self._prepare(job):
                    for kind in self._plan.kinds:
                        self._open(job, kind, frames)
            if not self.entries:
                raise GradsegError(f"no pipeline could run; the first reason: {self.unavailable[0]['reason']}")
            self._accuracies()
            self._turns()
        entries = {name: entry for name, entry in self.entries.items() if entry.times}
        measured = entries.values()
        gmac = {model: float(known["gmac"]) for model, known in self.models.items()}
        return {
            "pipelines": [
                {"name": each.kind.name, "model": each.job.model, **summary(each.times), "miou": each.miou}
                for each in measured
            ],
            "ratios": ratios([entry.row() for entry in measured], gmac, self._plan.ceilings),
            "facts": {
                "models": self.models,
                "pipelines": {name: self._about(entry) for name, entry in entries.items()},
                "unavailable": self.unavailable,
                "samples": {name: len(entry.times) for name, entry in entries.items()},
            },
        }

    def _write_frames(self) -> Path:
        """The frames that all pipelines get, uint8 BGR (N, H, W, 3), in a file."""
        frames = list(open_frames(self._plan.source, DISTINCT))
        if not frames:
            raise GradsegError(f"--source {self._plan.source}: no frames inside")
        if any(frame.shape != frames[0].shape for frame in frames):
            raise GradsegError(f"--source {self._plan.source}: its frames differ in size; give a video")
        height, width = frames[0].shape[:2]
        if (height, width) != FRAME_HW:
            say(f"frames are {height}x{width}, not the usual {FRAME_HW[0]}x{FRAME_HW[1]}")
        path = self._plan.work / "frames.npy"
        np.save(path, np.stack(frames))
        return path

    def _prepare(self, job: Job) -> bool:
        try:
            with self._worker(job, "prepare") as worker:
                found = worker.ask("prepare", PREPARE_S, module=NETWORKS, job=job.to_dict())
        except WorkerError as error:
            self._lost(job, "all", str(error))
            return False
        note = "" if job.trained else "untrained weights (seed 0): latency means something, mIoU would not"
        self.models[job.model] = {**found, "checkpoint": job.checkpoint.name, "trained": job.trained, "note": note}
        say(f"{job.model}: {found['gmac']:.2f} GMAC, {note or job.checkpoint}")
        return True

    def _open(self, job: Job, kind: Kind, frames: Path) -> None:
        """Builds a pipeline's files in a process that ends then, and opens it in one that stays, stopped."""
        name, reason = f"{kind.name} | {job.model}", lacking(kind) or no_memory()
        if reason:
            self._lost(job, kind.name, reason)
            return
        asked = {"job": job.to_dict(), "module": kind.module, "variant": kind.variant}
        labels = job.folder / f"{slug(kind.name)}.labels.npy"
        try:
            if kind.files and not built(job, kind):
                say(f"building {name}")
                with self._worker(job, f"build-{slug(kind.name)}") as builder:
                    builder.ask("build", BUILD_S, **asked)
                keep(job, kind, "built")
            worker = self._worker(job, slug(kind.name))
            facts = worker.open(self._stack, OPEN_S, frames=str(frames), kept=str(labels), **asked)
            self.entries[name] = Entry(job, kind, worker, facts, labels)
        except WorkerError as error:
            self._lost(job, kind.name, str(error))

    def _accuracies(self) -> None:
        """mIoU of every pipeline of a trained network, kept for the next run."""
        plan = self._plan
        what = f"miou-{plan.val_frames or 'all'}"
        for name, entry in list(self.entries.items()):
            if plan.val is None or not entry.job.trained:
                continue
            found = (kept(entry.job, entry.kind, what) or {"value": {}})["value"]
            if found.get("data") != plan.val:
                say(f"mIoU of {name}")
                classes = len(self.models[entry.job.model]["classes"])
                try:
                    with awake(entry.worker) as worker:
                        found = worker.ask("miou", MIOU_S, data=plan.val, limit=plan.val_frames, classes=classes)
                except WorkerError as error:
                    say(f"{name}: no mIoU: {error}")
                    if error.ended:
                        self._lost(entry.job, entry.kind.name, str(error))
                        del self.entries[name]
                    continue
                keep(entry.job, entry.kind, what, {"data": plan.val, **found})
            entry.miou = float(found["miou"])

    def _turns(self) -> None:
        plan = self._plan
        of = {
            "rows": {name: stamp(entry.job, entry.kind) for name, entry in self.entries.items()},
            "folders": [str(job.folder) for job in plan.jobs],
            "source": plan.source,
            "threads": plan.jobs[0].threads,
        }
        rounds = Rounds(plan.work / "rounds.jsonl", of, plan.resume)
        workers = {name: entry.worker for name, entry in self.entries.items()}
        samples, failed = take_turns(workers, plan.frames, rounds, say)
        for name, times in samples.items():
            self.entries[name].times = times
        for name, reason in failed.items():
            self._lost(self.entries[name].job, self.entries[name].kind.name, reason)

    def _about(self, entry: Entry) -> dict[str, Any]:
        """What a reader must know of a pipeline beside its figures."""
        base = self.entries.get(f"{EAGER} | {entry.job.model}")
        same = None if base is None else agreement(entry.labels, base.labels)
        return {**entry.facts, "ours": entry.kind.ours, "follows": entry.kind.follows, "agreement": same}

    def _worker(self, job: Job, log: str) -> Worker:
        return Worker(job.folder / "logs" / f"{log}.txt", self._plan.memory_gib)

    def _lost(self, job: Job, name: str, reason: str) -> None:
        self.unavailable.append({"name": name, "model": job.model, "reason": reason})
        say(f"not measured: {name} | {job.model}: {reason}")


def no_memory() -> str:
    """Why no further pipeline can be opened, or an empty string."""
    free = proc_bytes(Path("/proc/meminfo"), "MemAvailable")
    if free is None or free >> 20 >= SPARE_MIB:
        return ""
    return f"only {free >> 20} MiB of memory are left; measure fewer --models or --pipelines at a time"


def summary(times: Sequence[Sequence[int]]) -> dict[str, Any]:
    """p50 and p99 of the whole way in milliseconds, and p50 split in stages as the middle half of the frames were."""
    stages = np.asarray(times, np.float64) / 1e6
    total = stages.sum(axis=1)
    p50, p99 = (float(value) for value in np.percentile(total, (50, 99)))
    cut = len(total) // 4
    middle = stages[np.argsort(total, kind="stable")[cut : len(total) - cut]].sum(axis=0)
    shares = middle * (p50 / max(float(middle.sum()), 1e-12))
    return {"p50_ms": p50, "p99_ms": p99, "stages_ms": dict(zip(STAGES, map(float, shares), strict=True))}


def agreement(mine: Path, other: Path) -> float:
    """Share of pixels with the same label in two files of labels, uint8 (N, H, W)."""
    return float(np.mean(np.load(mine) == np.load(other)))
