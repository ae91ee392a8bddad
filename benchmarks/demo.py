"""The whole pipeline in one command: shipped checkpoint → the fastest engine on this device → video loop → figures.

`python benchmarks/demo.py [--source SOURCE] [--out DIR]`. Every step is a command of its own, printed before it runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import write_json
from gradseg.base.options import add, add_common, command_parser
from gradseg.commands import ROOT, command
from gradseg.export import tune
from gradseg.runtime import run_video
from gradseg.runtime.sources.grammar import LIVE

CHECKPOINT = ROOT / "assets" / "dg2-star-light.pth"
CALIBRATION = "scenes:frames=24,seed=101"
LIVE_FRAMES = 300
EVALUATION = "scenes:frames=24,seed=202"  # other scenes than those of training (seed 0) and calibration
SECONDS = 60  # for finding the engine


def step(script: str, main: Any, arguments: Sequence[str]) -> None:
    """Prints and runs one command of the pipeline; a failure ends the demo with that command's exit code."""
    print(f"\n$ {command(script, *arguments)}", flush=True)
    code = main(list(arguments))
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise GradsegError(f"{script} failed with exit code {code}", code)


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = command_parser("benchmarks/demo.py", __doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="network (default: dg2-star-light)")
    parser.add_argument("--source", default="scenes:frames=150,seed=7", help="video, camera, images or scenes:")
    parser.add_argument("--data", default=EVALUATION, help="labelled frames that mIoU is measured on")
    add(parser, "--out", type=Path, default=Path("demo"), metavar="DIR", help="folder for all results (default demo)")
    parser.add_argument("--max-frames", type=int, help="end the video after this many frames")
    parser.add_argument("--time-budget", type=float, default=SECONDS, help="seconds for finding the fastest engine")
    add_common(parser, "--size")
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    live = LIVE.match(arguments.source) is not None
    recorded = not live and not arguments.source.startswith("scenes:")
    tuned = out / "tuned"
    words = [str(arguments.checkpoint), "--data", arguments.data, "-o", str(tuned)]
    words += ["--calib", arguments.source if recorded else CALIBRATION, "--calib-frames", "24"]
    words += ["--time-budget", f"{arguments.time_budget:g}", *(["--size", arguments.size] if arguments.size else [])]
    step("export/tune.py", tune.main, words)

    found = json.loads((tuned / "tune.json").read_text(encoding="utf-8"))
    engine, video, report = tuned / found["engine"], out / "overlay.mp4", out / "report.json"
    command = ["--engine", str(engine), arguments.source, "--save", str(video), "--report", str(report)]
    frames = arguments.max_frames or (LIVE_FRAMES if live else None)
    if frames:
        command += ["--max-frames", str(frames)]
    step("runtime/run_video.py", run_video.main, command)
    loop = json.loads(report.read_text(encoding="utf-8"))
    kept = {key: found[key] for key in ("candidate", "verdict", "warnings", "data", "candidates")}
    write_json(report, {**loop, "tuned": kept})
    total = loop["latency_ms"]["total"]
    print(
        f"\n{found['verdict'][0]}\n"
        f"video loop with {engine}: {loop['frames_done']} frames, {loop['fps']:.1f} FPS, "
        f"capture to labels p50 {total['p50']:.1f} ms, p99 {total['p99']:.1f} ms\n"
        f"wrote {video}, the labels over the frames with a legend, {report} and {tuned / 'tune.html'}"
    )
    return 0


if __name__ == "__main__":
    run_main(main)
