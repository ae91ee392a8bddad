"""Builds FP32, FP16 and INT8, runs them all on this GPU, and writes the fastest that keeps the labels."""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import replace
from typing import Callable, List, Optional, Tuple

from gradseg.base.errors import GradsegError
from gradseg.calibration.cost.accuracy import Frames
from gradseg.data.specs import is_spec, open_data
from gradseg.export.trt.best import DROP, Candidate, chosen, measure, table
from gradseg.export.trt.make import Job, Made, make, write_made
from gradseg.export.trt.manifest import on_trial
from gradseg.export.trt.options import PRECISIONS


def make_best(args: argparse.Namespace, prepared_job: Callable[[Optional[str]], Job]) -> None:
    """Prints what was found; GradsegError if no plan can be used, or none can be run here."""
    made: List[Tuple[Job, Made]] = []
    refused: List[str] = []
    for precision in PRECISIONS:
        try:
            job = prepared_job(precision)
        except GradsegError as error:  # also for want of a package: then the others are compared
            refused.append(f"{precision} is out: {error}")
            continue
        for note in job.prepared.notes:
            print(note)
        try:
            found = make(job)
        except GradsegError as error:
            if error.exit_code == 3:
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
