"""Pipelines take turns on the same frames, so that drift of the clocks hits all alike; a killed run can go on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradseg.base.errors import GradsegError
from gradseg.base.files import write_text
from gradseg.benchmarks.side_by_side.process import Worker, WorkerError

TURN, SETTLE = 5, 2  # timed frames of a turn, untimed ones before them
TURN_S = 300
Samples = dict[str, list[list[int]]]  # row → nanoseconds of (preprocess, network, postprocess) per frame
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
        self.done: list[dict[str, list[list[int]]]] = []
        with contextlib.suppress(OSError, ValueError):
            lines = path.read_text("utf-8").splitlines() if keep else []
            if lines and json.dumps(json.loads(lines[0]), sort_keys=True) == head:
                self.done = _whole(lines[1:])
        write_text(path, "\n".join([head, *map(json.dumps, self.done)]) + "\n")

    def add(self, found: dict[str, list[list[int]]]) -> None:
        self.done.append(found)
        try:
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(found) + "\n")
        except OSError as error:
            raise GradsegError(f"cannot write {self._path}: {error.strerror or error}") from error


def _whole(lines: Sequence[str]) -> list[dict[str, list[list[int]]]]:
    """The rounds before the first line that was cut short."""
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def take_turns(workers: Mapping[str, Worker], frames: int, rounds: Rounds, say: Say) -> tuple[Samples, dict[str, str]]:
    """At least `frames` timed frames of each worker, and why those that failed did; these give no samples.

    Every second round goes backwards, so that a steady drift over a round cancels too. Only the worker whose turn it is
    runs.
    """
    failed: dict[str, str] = {}
    needed = -(-frames // TURN)
    for number in range(len(rounds.done), needed):
        names = [name for name in workers if name not in failed]
        found: dict[str, list[list[int]]] = {}
        for name in names if number % 2 == 0 else names[::-1]:
            try:
                found[name] = one_turn(workers[name], number * TURN)
            except WorkerError as error:
                failed[name] = f"in round {number + 1} of {needed}: {error}"
                say(f"{name}: {failed[name]}")
        rounds.add(found)
        say(f"round {number + 1} of {needed}")
    samples = {
        name: [times for found in rounds.done[:needed] for times in found.get(name, [])]
        for name in workers
        if name not in failed
    }
    return {name: times for name, times in samples.items() if times}, failed


def one_turn(worker: Worker, start: int) -> list[list[int]]:
    """A worker's turn, from frame number `start`; it is stopped before and after."""
    worker.resume()
    try:
        times: list[list[int]] = worker.ask("turn", TURN_S, start=start, count=TURN, settle=SETTLE)["ns"]
    finally:
        worker.pause()
    return times
