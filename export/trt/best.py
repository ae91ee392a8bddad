"""`--precision best`: the fastest plan on this GPU among FP32, FP16 and INT8 that keeps the labels."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.calibration.cost.accuracy import Frames
from gradseg.data.specs import is_spec, open_data
from gradseg.export.trt.make import Job, Made, make, write_made
from gradseg.export.trt.manifest import on_trial
from gradseg.export.trt.options import PRECISIONS
from gradseg.export.trt.verify import WANTED, latencies
from gradseg.runtime.engines.open import open_engine

DROP = 0.5  # points of mIoU that INT8 and FP16 may lose on labelled frames, unless --max-drop says otherwise


@dataclass
class Candidate:
    """A plan on trial. agreement: of its labels with ONNX Runtime's; miou: on labelled frames, None without them."""

    precision: str
    plan: Path
    agreement: Optional[float]
    miou: Optional[float] = None
    p50: float = 0.0
    p99: float = 0.0
    why_not: str = ""

    def to_dict(self) -> Dict[str, Any]:
        """What the manifest keeps of it."""
        measured = {"p50_ms": self.p50, "p99_ms": self.p99, "refused": self.why_not or None}
        return {"precision": self.precision, "agreement": self.agreement, "miou": self.miou, **measured}


def measure(candidates: List[Candidate], batches: List[np.ndarray[Any, Any]], frames: Optional[Frames]) -> None:
    """Fills in latencies, the plans taking turns, and mIoU where there are labelled frames."""
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(contextlib.closing(open_engine(each.plan))) for each in candidates]
        for candidate, row in zip(candidates, latencies(engines, batches)):
            candidate.p50, candidate.p99 = row["p50"], row["p99"]
        if frames is not None:
            for candidate, engine in zip(candidates, engines):
                candidate.miou = frames.score(engine.infer).miou


def chosen(candidates: List[Candidate], drop: float) -> Candidate:
    """The fastest (p50) that may be used; the others' `why_not` says why not. GradsegError if none may.

    With mIoU: at most `drop` points below the first candidate, the most precise. Without: the agreement that
    `trt.verify.WANTED` asks of its precision; a candidate that could not be compared counts only if it is the first.
    """
    first = candidates[0]
    for candidate in candidates:
        if candidate.miou is not None and first.miou is not None:
            lost = 100 * (first.miou - candidate.miou)
            if lost > drop:
                candidate.why_not = f"loses {lost:.2f} points of mIoU, {drop:g} are allowed"
        elif candidate.agreement is None:
            candidate.why_not = "" if candidate is first else "its labels could not be compared"
        elif candidate.agreement < WANTED[candidate.precision]:
            wanted = 100 * WANTED[candidate.precision]
            candidate.why_not = f"agrees on {100 * candidate.agreement:.2f} % of the labels, {wanted:g} are wanted"
    allowed = [candidate for candidate in candidates if not candidate.why_not]
    if not allowed:
        raise GradsegError("; ".join(f"{c.precision}: {c.why_not}" for c in candidates) + "; no plan was saved")
    return min(allowed, key=lambda candidate: candidate.p50)


def table(candidates: List[Candidate], winner: Candidate) -> List[str]:
    """A line for each candidate and the verdict, for people."""
    lines = []
    for each in candidates:
        quality = "labels not compared"
        if each.miou is not None:
            quality = f"mIoU {100 * each.miou:.2f}"
        elif each.agreement is not None:
            quality = f"{100 * each.agreement:.3f} % of labels equal"
        note = f"; not allowed: {each.why_not}" if each.why_not else ""
        lines.append(f"  {each.precision}: {each.p50:.3f} ms p50, {each.p99:.3f} p99, {quality}{note}")
    slowest = max(candidates, key=lambda each: each.p50)
    factor = f", {slowest.p50 / winner.p50:.2f}x as fast as {slowest.precision}" if slowest is not winner else ""
    lines.append(f"best here: {winner.precision}{factor}")
    return lines


def make_best(args: argparse.Namespace, prepared_job: Callable[[Optional[str]], Job]) -> None:
    """Prints what was found; GradsegError if no plan can be used, or none can be run here."""
    made: List[Tuple[Job, Made]] = []
    refused: List[str] = []
    for precision in PRECISIONS:
        job: Optional[Job] = None
        try:
            job = prepared_job(precision)
            found = make(job)
        except GradsegError as error:
            if job is not None and error.exit_code == 3:  # without a job it is for want of a package: others may do
                raise
            refused.append(f"{precision} is out: {error}")
            continue
        for line in found.lines:
            print(line)
        if not found.ran:
            raise GradsegError(
                "--precision best: the plans can be built but not run on this machine's GPU "
                f"({found.lines[-1] if found.lines else 'it is none that they were built for'}); name a --precision",
                exit_code=3,
            )
        made.append((job, found))
    for line in refused:
        print(line)
    if not made:
        raise GradsegError(f"--precision best: no precision is left: {'; '.join(refused)}")
    candidates, winner = _measured(args, made)
    for line in table(candidates, winner):
        print(line)
    job, found = made[candidates.index(winner)]
    found.found = replace(found.found, extra={"candidates": [each.to_dict() for each in candidates]})
    print(write_made(job, found))


def _measured(args: argparse.Namespace, made: List[Tuple[Job, Made]]) -> Tuple[List[Candidate], Candidate]:
    """All plans opened at once, timed in turns, and scored on the labelled frames of --data if there are any."""
    first = made[0][0]
    with contextlib.ExitStack() as stack:
        candidates = []
        for job, found in made:
            trial = stack.enter_context(on_trial(job.plan, found.built, job.manifest(found.built, found.found)))
            candidates.append(Candidate(job.prepared.precision, trial, found.found.agreement))
        frames = None
        if is_spec(args.data or "") and first.prepared.batch == 1:
            frames = Frames(open_data(args.data), first.prepared.spec, first.prepared.frame_hw)
        measure(candidates, first.batches(), frames)
        return candidates, chosen(candidates, DROP if args.max_drop is None else args.max_drop)
