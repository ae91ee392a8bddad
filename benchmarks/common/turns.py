"""Pipelines take turns on the same frames, so that drift of the clocks hits all alike; a killed run can go on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Tuple

from gradseg.base.errors import GradsegError
from gradseg.base.files import write_text
from gradseg.benchmarks.common.process import Worker, WorkerError

TURN, SETTLE = 5, 2  # timed frames of a turn, untimed ones before them
TURN_S = 600
Samples = Dict[str, List[List[int]]]  # row → nanoseconds of (preprocess, network, postprocess) per frame
Say = Callable[[str], None]


class Rounds:
    """The rounds done so far, one JSON line each behind a line that says what they are of.

    Args:
        path: the file.
        of: what was measured, JSON types; other rounds than of exactly this are thrown away.
        keep: go on with the rounds in the file; else it is begun anew.
    """

    def __init__(self, path: Path, of: Mapping[str, Any], keep: bool) -> None:
        self._path = path
        head = json.dumps(of, sort_keys=True)
        self.done: List[Samples] = []
        with contextlib.suppress(OSError, ValueError):  # ends before the first line that was cut short
            lines = path.read_text("utf-8").splitlines() if keep else []
            if lines and json.dumps(json.loads(lines[0]), sort_keys=True) == head:
                for line in lines[1:]:
                    self.done.append(json.loads(line))
        write_text(path, "\n".join([head, *map(json.dumps, self.done)]) + "\n")

    def add(self, found: Samples) -> None:
        self.done.append(found)
        try:
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(found) + "\n")
        except OSError as error:
            raise GradsegError(f"cannot write {self._path}: {error.strerror or error}") from error


def take_turns(
    workers: Mapping[str, Worker], frames: int, rounds: Rounds, say: Say, turn: int = TURN, settle: int = SETTLE
) -> Tuple[Samples, Dict[str, str]]:
    """At least `frames` timed frames of each worker, and why those that failed did; these give no samples.

    Every second round goes backwards, so that a steady drift over a round cancels too. Only the worker whose turn it is
    runs: `turn` timed frames, `settle` untimed ones before them.
    """
    failed: Dict[str, str] = {}
    needed = -(-frames // turn)
    for number in range(len(rounds.done), needed):
        names = [name for name in workers if name not in failed]
        found: Samples = {}
        for name in names if number % 2 == 0 else names[::-1]:
            try:
                with awake(workers[name]) as worker:
                    found[name] = worker.ask("turn", TURN_S, start=number * turn, count=turn, settle=settle)["ns"]
            except WorkerError as error:
                failed[name] = f"in round {number + 1} of {needed}: {error}"
                say(f"{name}: {failed[name]}")
        rounds.add(found)
        say(f"round {number + 1} of {needed}")
    samples = {name: [times for found in rounds.done[:needed] for times in found.get(name, [])] for name in workers}
    return {name: times for name, times in samples.items() if times and name not in failed}, failed


@contextlib.contextmanager
def awake(worker: Worker) -> Iterator[Worker]:
    """Outside it is stopped."""
    worker.resume()
    try:
        yield worker
    finally:
        worker.pause()
