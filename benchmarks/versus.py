"""GradSeg beside its peers in one run: same frames, same cores, pipelines in turn, from decoded frame to labels.

`python benchmarks/versus.py [--json F] [--html F] [--plot F]`. PyTorch, torch.compile, ncnn, ONNX Runtime and OpenVINO
as their tutorials use them, ONNX Runtime and OpenVINO in INT8 of their own quantisers, and GradSeg's engines. Each
pipeline has a process of its own; only the one whose turn it is runs, the others are stopped. What is built and
calibrated is kept in --work for the next run. What is missing or crashes is listed, and the rest goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

from gradseg.base.conditions import conditions, usable_cores
from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import check_output, write_json, write_text
from gradseg.base.options import add_common, check_threads, command_parser
from gradseg.base.packages import need
from gradseg.benchmarks.common.job import INPUT_HW
from gradseg.benchmarks.common.turns import SETTLE, TURN
from gradseg.benchmarks.side_by_side.jobs import FRAME_HW, KINDS, MODELS, Kind, make_jobs, versions_of
from gradseg.benchmarks.side_by_side.ratios import read_ceilings
from gradseg.benchmarks.side_by_side.report import page, table, write_plot
from gradseg.benchmarks.side_by_side.run import Plan, Run
from gradseg.commands import ROOT
from gradseg.data.specs import open_data

SHARED = Path(os.path.relpath(ROOT.parent / "shared" / "data"))
VIDEO = SHARED / "video" / "highway.mp4"
SCENES = f"scenes:frames=64,seed=3,size={FRAME_HW[0]}x{FRAME_HW[1]}"
CALIBRATION = "scenes:frames=32,seed=101"
ROOFLINE = ROOT / "benchmarks" / "results" / "roofline.json"


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = command_parser("benchmarks/versus.py", __doc__)
    add_common(parser, "--json", "--plot", "--threads")
    add = parser.add_argument
    add("--html", type=Path, metavar="FILE", help="HTML file to write a page to")
    add("--models", nargs="+", default=list(MODELS), metavar="ID", help="architectures (default: all four)")
    add("--pipelines", nargs="+", metavar="NAME", help=f"only these: {', '.join(kind.name for kind in KINDS)}")
    add(
        "--checkpoint",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="weights of a model (default: assets/NAME.pth or runs/NAME.pth, else untrained)",
    )
    add(
        "--source", help="video or images (default: the dash-camera clip where it lies beside the project, else scenes)"
    )
    add("--frames", type=int, default=40, help=f"timed frames per pipeline, in turns of {TURN} (default 40)")
    add("--data", help="CamVid's folder with train/ and val/ as camvid:DIR (default: where it lies beside the project)")
    add("--val-frames", type=int, default=32, help="labelled frames for mIoU, evenly spread, 0 for all (default 32)")
    add("--tuned", type=Path, help="folder of tune.py's results, MODEL/engine.* (default: tune.py is called)")
    add("--roofline", type=Path, default=ROOFLINE, help="JSON of roofline.py, for the floors")
    add("--work", type=Path, default=Path("runs") / "versus", help="folder for what is built (default runs/versus)")
    add("--resume", action="store_true", help="go on with the turns of a run that was killed")
    add("--memory-gib", type=float, default=6.0, help="memory that one pipeline may hold (default 6)")
    return parser.parse_args(argv)


def plan_of(args: argparse.Namespace) -> Plan:
    """The arguments as a plan; GradsegError for what does not exist or go together. Pins this process to its cores."""
    if args.frames < 1 or args.val_frames < 0 or args.memory_gib <= 0:
        raise GradsegError("--frames must be at least 1, --val-frames at least 0 and --memory-gib above 0")
    check_threads(args.threads)
    for name in ("json", "html", "plot"):
        check_output(f"--{name}", getattr(args, name), [text.partition("=")[2] for text in args.checkpoint])
    if args.plot and args.plot.suffix.lower() not in (".png", ".svg"):
        raise GradsegError(f"--plot {args.plot}: the name must end in .png or .svg")
    calib, val = data_of(args.data)
    threads = pinned(args.threads)
    jobs = make_jobs(args.models, args.checkpoint, args.work, args.tuned, threads=threads, calib=calib, val=val)
    source = args.source or (str(VIDEO) if VIDEO.is_file() else SCENES)
    plan = Plan(jobs, kinds_of(args.pipelines), source, args.frames, val, args.val_frames or None, args.work)
    ceilings = read_ceilings(args.roofline, threads)
    return replace(plan, resume=args.resume, memory_gib=args.memory_gib, ceilings=ceilings)


def data_of(text: Optional[str]) -> tuple[str, Optional[str]]:
    """(frames to calibrate on, labelled frames or None) from --data or CamVid beside the project."""
    if text is not None and not text.startswith("camvid:"):
        raise GradsegError(f"--data {text}: write camvid:DIR, DIR with train/ and val/ inside")
    folder = SHARED / "camvid" if text is None else Path(text.partition(":")[2])
    parts = [folder / "train", folder / "val"]
    if not all(part.is_dir() for part in parts):
        if text is not None:
            raise GradsegError(f"--data {text}: no train/ and val/ in {folder}")
        return CALIBRATION, None
    train, val = (f"camvid:{part}" for part in parts)
    for part in (train, val):
        open_data(part, 1)  # what is wrong with it is said now
    return train, val


def kinds_of(names: Optional[Sequence[str]]) -> list[Kind]:
    known = {kind.name: kind for kind in KINDS}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise GradsegError(f"--pipelines {unknown[0]!r}: unknown; known: {', '.join(known)}")
    return [known[name] for name in names] if names else list(KINDS)


def pinned(threads: Optional[int]) -> int:
    """Pins this process, and with it all workers, to so many of its cores; how many they are."""
    count = threads or usable_cores()
    if count > usable_cores():
        raise GradsegError(f"--threads {count}: this process may use {usable_cores()} cores")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    return count


def measure(plan: Plan) -> dict[str, Any]:
    """The result as its JSON has it."""
    try:
        plan.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GradsegError(f"--work {plan.work}: cannot be written ({error.strerror})") from error
    found = Run(plan).measure()
    known = conditions(
        threads=plan.jobs[0].threads,
        input_hw=list(INPUT_HW),
        source=Path(plan.source).name if Path(plan.source).exists() else plan.source,
        frames=plan.frames,
        turn=TURN,
        settle=SETTLE,
        val_frames=plan.val_frames,
        data=plan.val,
        calibration=f"{plan.jobs[0].calib_frames} frames of {plan.jobs[0].calib}",
        ceilings_gmacs=dict(plan.ceilings),
        **found.pop("facts"),
    )
    known["versions"] = {**known["versions"], **versions_of(plan.kinds)}
    return {**found, "conditions": known}


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    plan = plan_of(args)
    need("the comparison", "export", "torch", "onnx", "onnxruntime", *(["jinja2"] if args.html else []))
    result = measure(plan)
    print(table(result))
    if args.json:
        write_json(args.json, result)
    if args.plot:
        write_plot(result, plan.ceilings, args.plot)
    if args.html:
        write_text(args.html, page(result, plan.ceilings))
    return 0


if __name__ == "__main__":
    run_main(main)
