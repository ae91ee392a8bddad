"""Segments live video: source → network → overlay, labels, report.

python runtime/run_video.py cam0 --show
python runtime/run_video.py --engine m.onnx drive.mp4 --save out.mp4 --report r.json
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from gradseg.base.conditions import conditions
from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import check_output, write_json
from gradseg.base.options import COMMON, add, add_common, command_parser
from gradseg.runtime.engines.open import open_engine, open_or_rebuild
from gradseg.runtime.engines.protocol import PLANS, Engine, read_spec
from gradseg.runtime.engines.shipped import DEFAULT, shipped_or_given
from gradseg.runtime.loop.report import LiveLine, Outcome, engine_facts, latency_table
from gradseg.runtime.loop.streams import two_streams
from gradseg.runtime.loop.video_loop import VideoLoop
from gradseg.runtime.sinks.labels import LabelsSink
from gradseg.runtime.sinks.overlay import MODES, Overlay
from gradseg.runtime.sinks.sink import Sink
from gradseg.runtime.sinks.video import VideoSink, video_fourcc
from gradseg.runtime.sinks.window import WindowSink
from gradseg.runtime.sources.grammar import GRAMMAR, open_source
from gradseg.runtime.sources.source import Source


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line; argparse ends the process with 2 on a mistake."""
    parser = command_parser("runtime/run_video.py", __doc__)
    say = parser.add_argument
    say("source", help=GRAMMAR)
    engine = f"{COMMON['--engine']['help']} (default: {DEFAULT}, which is shipped)"
    add(parser, "--engine", help=engine)
    add_common(parser, "--spec", "--threads", "--provider", "--no-cuda-graph")
    say("--streams", type=int, choices=(1, 2), default=1, help="2: two frames at once, each with half of the threads")
    say("--rebuild", action="store_true", help="build a TensorRT plan that does not fit here again, from its ONNX")
    say("--save", type=Path, metavar="OUT.mp4", help="file to write the picture to as video, .mp4 or .avi")
    say("--labels", type=Path, metavar="DIR", help="folder to write class indices to as PNG, one per frame")
    say("--report", type=Path, metavar="FILE", help="JSON file to write what was measured to")
    say("--max-frames", type=int, metavar="N", help="end after N frames (default: when the source ends, or Ctrl-C)")
    say("--duration", type=float, metavar="S", help="end after S seconds")
    say("--overlay", choices=MODES, default="overlay", help="what the picture shows (default: overlay)")
    say("--alpha", type=float, default=0.5, help="weight of the colours over the frame, 0 to 1 (default 0.5)")
    say("--no-legend", action="store_true", help="no names and colours of the classes in the picture")
    say("--show", action="store_true", help="show the picture in a window; Esc or q ends it")
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Opens everything, runs the loop, writes the report; returns the exit code. Raises what broke a stage."""
    options = parse(arguments)
    engine_file, why = shipped_or_given(options.engine or DEFAULT, options.provider)
    options.engine = str(engine_file)
    if why:
        print(f"engine: {engine_file} ({why})", file=sys.stderr)
    _check(options)
    engine = _open_engine(options)
    source: Optional[Source] = None
    outcome: Optional[Outcome] = None
    try:
        if engine.batch != 1:
            raise GradsegError(
                f"{engine.name}: takes {engine.batch} frames at a time, and a video gives one after the other; build "
                "it with --batch 1, or give frames of several cameras to gradseg.runtime.Segmenter.many()"
            )
        classes = () if options.no_legend else engine.spec.classes
        overlay = Overlay(engine.spec.palette, options.overlay, options.alpha, classes)
        source = open_source(options.source)
        if source.live and options.streams > 1:
            raise GradsegError(f"--streams {options.streams}: is for recordings, {source.name} is live; leave it out")
        _note_size(engine, source)
        outcome = _run(options, engine, source, overlay)
        return _tell(options, engine, source, outcome)
    finally:
        if source is not None and outcome is None:
            source.close()
        if outcome is None or not outcome.hung:
            engine.close()


def _check(options: argparse.Namespace) -> None:
    """Everything that can be wrong before a file is opened."""
    for name, value in (("--max-frames", options.max_frames), ("--duration", options.duration)):
        if value is not None and not 0 < value < math.inf:
            raise GradsegError(f"{name} {value}: expected a number above 0")
    for name, given in (("--rebuild", options.rebuild), ("--no-cuda-graph", options.no_cuda_graph)):
        if given and Path(options.engine).suffix.lower() not in PLANS:
            raise GradsegError(f"{name}: is for TensorRT plans; leave it out for {options.engine}")
    Overlay((), options.overlay, options.alpha)
    for name, path in (("--save", options.save), ("--report", options.report)):
        check_output(name, path, (options.source, options.engine, options.spec))
    if options.save is not None:
        video_fourcc(options.save)
        if options.report is not None and options.save.absolute() == options.report.absolute():
            raise GradsegError(f"--save and --report both name {options.save}; give them different files")


def _open_engine(options: argparse.Namespace) -> Engine:
    spec = read_spec(options.spec) if options.spec else None

    def opened(threads: Optional[int]) -> Engine:
        return open_engine(options.engine, threads, spec, options.provider, not options.no_cuda_graph)

    def wanted() -> Engine:
        return opened(options.threads) if options.streams == 1 else two_streams(opened, options.threads)

    return open_or_rebuild(options.engine, wanted) if options.rebuild else wanted()


def _note_size(engine: Engine, source: Source) -> None:
    """Says so if frames are resized on the CPU though the engine was built to take them as they are."""
    if engine.frame_hw not in (engine.spec.input_hw, tuple(source.size_hw)):
        built, given = ("x".join(map(str, size)) for size in (engine.frame_hw, source.size_hw))
        print(
            f"note: {source.name} gives frames of {given}, {engine.name} was built for {built}: they are resized on "
            f"the CPU first; to have that on the GPU build it with --frame-size {given}",
            file=sys.stderr,
        )


def _run(options: argparse.Namespace, engine: Engine, source: Source, overlay: Overlay) -> Outcome:
    live_line = LiveLine()
    expected = source.frame_count
    if options.max_frames is not None:
        expected = min(options.max_frames, expected or options.max_frames)
    sinks: List[Sink] = []
    loop_box: List[VideoLoop] = []
    try:
        if options.labels is not None:
            if options.labels.is_dir() and any(map(options.labels.samefile, source.folders)):  # of the same names
                raise GradsegError(
                    f"--labels {options.labels}: is the folder of the source's own images; name another folder"
                )
            sinks.append(LabelsSink(options.labels))
        if options.show:
            sinks.append(WindowSink(lambda: loop_box[0].stop.request("window closed")))
        if options.save is not None:
            video = VideoSink(options.save, overlay.output_hw(source.size_hw), source.fps, realtime=source.live)
            sinks.append(video)
            if video.note:
                print(f"note: {video.note}", file=sys.stderr)
    except BaseException:
        for sink in sinks:
            sink.close()
        raise
    # before the clock starts: backends allocate and choose kernels in the first inference
    engine.infer(np.zeros((engine.batch, *engine.frame_hw, 3), np.uint8))
    loop = VideoLoop(
        engine,
        source,
        sinks,
        overlay,
        options.max_frames,
        options.duration,
        lambda total_ns, done, dropped: live_line.frame(total_ns, done, expected, dropped),
    )
    loop_box.append(loop)
    outcome = loop.run()
    live_line.close()
    return outcome


def report_of(options: argparse.Namespace, engine: Engine, source: Source, outcome: Outcome) -> Dict[str, Any]:
    """The report as JSON types; latencies in milliseconds, rates per second."""
    return {
        **engine_facts(engine),
        "streams": getattr(engine, "streams", 1),
        "source": source.name,
        "live": source.live,
        "size_hw": list(source.size_hw),
        **{name: getattr(outcome, name) for name in ("frames_in", "frames_done", "frames_dropped", "latency_ms")},
        "duration_s": round(outcome.duration_s, 4),
        "fps": round(outcome.fps, 4),
        "cpu_ms_per_frame": outcome.cpu_ms,
        "exit_reason": outcome.reason,
        "exit_code": outcome.exit_code,
        "warnings": outcome.warnings,
        "outputs": {name: str(path) for name, path in (("save", options.save), ("labels", options.labels)) if path},
        "conditions": conditions(threads=engine.threads, warm_up_frames=1, overlay=options.overlay),
    }


def _tell(options: argparse.Namespace, engine: Engine, source: Source, outcome: Outcome) -> int:
    """Writes the report, prints the summary, and raises what broke the run if something did."""
    for warning in outcome.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{source.name} through {engine.name} ({engine.backend}, {engine.device}, {engine.precision})")
    print(
        f"{outcome.frames_done} frames done, {outcome.frames_dropped} dropped, {outcome.frames_in} in; "
        f"{outcome.fps:.1f} FPS end to end; ended by: {outcome.reason}"
    )
    print("\n".join(latency_table(outcome.latency_ms)))
    if outcome.cpu_ms:
        print("CPU ms per frame: " + ", ".join(f"{name} {value:.2f}" for name, value in outcome.cpu_ms.items()))
    for what, path in (("video", options.save), ("labels", options.labels)):
        if path is not None and outcome.frames_done:
            print(f"{what}: {path}")
    failure = outcome.error
    if options.report is not None:
        try:
            write_json(options.report, report_of(options, engine, source, outcome))
            print(f"report: {options.report}")
        except GradsegError as error:
            if failure is None:
                raise
            print(f"warning: {error}", file=sys.stderr)
    if failure is not None and not isinstance(failure, KeyboardInterrupt):
        raise failure
    return outcome.exit_code


if __name__ == "__main__":
    run_main(main)
