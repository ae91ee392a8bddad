"""How much of an engine's own frame rate the whole loop keeps: a recording to labels at frame size, without a sink.

`python benchmarks/loop.py --engine m.onnx --source drive.mp4 [--json F]`. In turns, so that drift of the clocks hits
both: the engine alone over frames that lie in memory at its size, and the video loop over the file. Every stage and the
CPU time of every thread are said, and how busy other programs kept the cores meanwhile. Needs NumPy, OpenCV and one
engine.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any, Deque, Dict, List, Optional, Sequence

import numpy as np

from gradseg.base.conditions import Others, conditions, usable_cores
from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import check_output, write_json
from gradseg.base.options import add, add_common, command_parser
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.engines.protocol import Engine, overlapping, read_spec
from gradseg.runtime.loop.report import latency_table
from gradseg.runtime.loop.streams import two_streams
from gradseg.runtime.loop.video_loop import VideoLoop
from gradseg.runtime.preprocess import Preprocessor
from gradseg.runtime.sources.grammar import open_source
from gradseg.runtime.sources.source import Source

KEPT = 16  # different frames that the engine alone gets in turn
SETTLE = 10  # untimed frames before each turn of the engine alone


class Busy:
    """While entered: wall time, this process's CPU time, and the share of our cores that other programs took."""

    wall_s = cpu_s = 0.0
    others: Optional[float] = None

    def __enter__(self) -> Busy:
        self._others, self._cpu, self._wall = Others(), time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s, self.cpu_s = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self.others = self._others.share(self.cpu_s)


def recording(text: str) -> Source:
    """The source, which must lose no frame; GradsegError for a camera."""
    source = open_source(text)
    if source.live:
        source.close()
        raise GradsegError(
            f"--source {text}: a camera sets the frame rate itself; give a video file, images or scenes:"
        )
    return source


def frames_in_memory(text: str, engine: Engine) -> List[np.ndarray[Any, Any]]:
    """The source's first frames as the engine takes them, uint8 BGR (1, h, w, 3) each."""
    prepare = Preprocessor(engine.frame_hw)
    with contextlib.closing(recording(text)) as source:
        captured = itertools.islice(iter(source.read, None), KEPT)
        batches = [prepare(each[0]).copy() for each in captured if each is not None]
    if not batches:
        raise GradsegError(f"--source {text}: gives no frame")
    return batches


def alone(engine: Engine, batches: Sequence[np.ndarray[Any, Any]], frames: int) -> Dict[str, Any]:
    """The engine over frames that are there already; two at once where it can."""
    ahead = overlapping(engine)
    times: np.ndarray[Any, Any] = np.zeros(SETTLE + frames, np.int64)
    begun: Deque[int] = deque()
    busy = Busy()
    for index in range(SETTLE + frames):
        if index == SETTLE:
            busy.__enter__()
        batch = batches[index % len(batches)]
        begun.append(time.perf_counter_ns())
        if ahead is None:
            engine.infer(batch)
        else:
            np.copyto(ahead.staging, batch)
            ahead.begin(ahead.staging)
            if len(begun) < 2:
                continue
            ahead.finish()
        times[index] = time.perf_counter_ns() - begun.popleft()
    busy.__exit__()
    if ahead is not None and begun:
        ahead.finish()
    return {
        "fps": frames / busy.wall_s,
        "infer_p50_ms": float(np.median(times[SETTLE:])) / 1e6,
        "cpu_ms_per_frame": 1e3 * busy.cpu_s / frames,
        "others": busy.others,
    }


def whole(engine: Engine, text: str, frames: Optional[int]) -> Dict[str, Any]:
    """The loop over the source without a sink."""
    loop = VideoLoop(engine, recording(text), max_frames=frames)
    with Busy() as busy:
        outcome = loop.run()
    if outcome.error is not None:
        raise outcome.error
    return {
        "fps": outcome.fps,
        "frames": outcome.frames_done,
        "stages_ms": outcome.latency_ms,
        "cpu_ms_per_frame": outcome.cpu_ms,
        "others": busy.others,
    }


def measure(engines: Sequence[Engine], text: str, frames: Optional[int], rounds: int) -> Dict[str, Any]:
    """Each engine alone and in the loop, `rounds` times in turn.

    "variants": a row each; "own_fps" and "loop_fps": the best of theirs, "ratio": of these two.
    """
    batches = frames_in_memory(text, engines[0])
    count = [int(whole(engine, text, frames)["frames"]) for engine in engines][-1]  # warms up, and counts them
    turns: List[List[Dict[str, Any]]] = [[] for _ in engines]
    for index in range(rounds):
        for engine, kept in zip(engines, turns):
            turn: Dict[str, Any] = {}
            for name in ("alone", "loop") if index % 2 == 0 else ("loop", "alone"):
                turn[name] = alone(engine, batches, count) if name == "alone" else whole(engine, text, frames)
            kept.append({**turn, "ratio": turn["loop"]["fps"] / turn["alone"]["fps"]})
    variants = [variant(engine, kept) for engine, kept in zip(engines, turns)]
    best = {name: max(float(each[name]) for each in variants) for name in ("own_fps", "loop_fps")}
    first = engines[0]
    return {
        "engine": first.name,
        "backend": first.backend,
        "precision": first.precision,
        "source": text,
        "frames": count,
        **best,
        "ratio": best["loop_fps"] / best["own_fps"],
        "variants": variants,
    }


def variant(engine: Engine, turns: List[Dict[str, Any]]) -> Dict[str, Any]:
    """The turns of one engine put together: frame rates of the mean times, medians of everything else."""
    fps = {name: 1.0 / float(np.mean([1.0 / turn[name]["fps"] for turn in turns])) for name in ("alone", "loop")}
    loop, own = (_medians([turn[name] for turn in turns]) for name in ("loop", "alone"))
    return {
        "streams": int(getattr(engine, "streams", 1)),
        "threads": engine.threads,
        "own_fps": fps["alone"],
        "loop_fps": fps["loop"],
        "ratio": fps["loop"] / fps["alone"],
        "own_infer_p50_ms": own["infer_p50_ms"],
        "own_cpu_ms_per_frame": own["cpu_ms_per_frame"],
        "stages_ms": loop["stages_ms"],
        "cpu_ms_per_frame": loop["cpu_ms_per_frame"],
        "others": _medians([turn[name]["others"] for turn in turns for name in ("loop", "alone")]),
        "rounds": turns,
    }


def _medians(values: Sequence[Any]) -> Any:
    """Of numbers, without those that are None; of dictionaries alike, for each of their keys."""
    if isinstance(values[0], dict):
        return {key: _medians([each[key] for each in values]) for key in values[0]}
    there = [value for value in values if value is not None]
    return float(np.median(there)) if there else None


def explained(row: Dict[str, Any]) -> List[str]:
    """What was measured, in lines of text, and where the rest of the engine's rate went."""
    name = f"{Path(row['engine']).name} ({row['backend']}, {row['precision']})"
    lines = [f"{name} on {row['source']}, {row['frames']} frames a turn"]
    for each in row["variants"]:
        cpu, cores = each["cpu_ms_per_frame"], usable_cores()
        own_ms, loop_ms = 1e3 / each["own_fps"], 1e3 / each["loop_fps"]
        beside = cpu["process"] - each["own_cpu_ms_per_frame"]
        rounds = ", ".join(f"{100 * turn['ratio']:.1f}" for turn in each["rounds"])
        lines += [
            "",
            f"{each['streams']} frame{'s' * (each['streams'] > 1)} at once, {each['threads']} threads: alone "
            f"{each['own_fps']:.1f} FPS ({own_ms:.2f} ms a frame), whole loop {each['loop_fps']:.1f} FPS "
            f"({loop_ms:.2f} ms): {100 * each['ratio']:.1f} %; each round: {rounds}",
            *latency_table(each["stages_ms"]),
            "CPU ms per frame: " + ", ".join(f"{thread} {value:.2f}" for thread, value in cpu.items()),
            f"the engine alone takes {each['own_cpu_ms_per_frame']:.2f} of CPU time, the loop {beside:.2f} more: on "
            f"{cores} cores that is {beside / cores:.2f} ms a frame if no core ever waits; {loop_ms - own_ms:.2f} were "
            "lost",
            f"a frame is {each['own_infer_p50_ms']:.2f} ms in the engine alone, "
            f"{each['stages_ms']['infer']['p50'] or 0.0:.2f} in the loop",
        ]
        if each["others"] is not None:
            again = ": measure again" if each["others"] > 0.03 else ""
            lines.append(f"other programs took {100 * each['others']:.0f} % of the cores{again}")
    best = f"the best loop has {100 * row['ratio']:.1f} % of the best frame rate that the engine has alone"
    return [*lines, "", f"{best}: {row['loop_fps']:.1f} of {row['own_fps']:.1f} FPS"]


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = command_parser("benchmarks/loop.py", __doc__)
    add(parser, "--engine", required=True)
    add(parser, "--source", required=True, help="a video file, images, or scenes:")
    parser.add_argument("--frames", type=int, help="frames of a turn (default: the whole source)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--streams", type=int, nargs="+", choices=(1, 2), default=[1, 2], help="frames at once")
    add_common(parser, "--threads", "--spec", "--json")
    arguments = parser.parse_args(argv)
    for name, value in (("--frames", arguments.frames), ("--rounds", arguments.rounds)):
        if value is not None and value < 1:
            raise GradsegError(f"{name} {value}: expected a number above 0")
    check_output("--json", arguments.json, (arguments.engine, arguments.source, arguments.spec))
    opened = partial(open_engine, arguments.engine, spec=read_spec(arguments.spec) if arguments.spec else None)
    engines: List[Engine] = []
    with contextlib.ExitStack() as stack:
        for streams in sorted(set(arguments.streams)):
            engines.append(opened(arguments.threads) if streams == 1 else two_streams(opened, arguments.threads))
            stack.callback(engines[-1].close)
        if engines[0].batch != 1:
            raise GradsegError(f"{engines[0].name}: takes {engines[0].batch} frames at a time; build it for 1")
        row = measure(engines, arguments.source, arguments.frames, arguments.rounds)
    print("\n".join(explained(row)))
    if arguments.json:
        write_json(arguments.json, {**row, "conditions": conditions(threads=engines[0].threads)})
    return 0


if __name__ == "__main__":
    run_main(main)
