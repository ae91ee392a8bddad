"""Finds the fastest engine for a network on this device: engines × precisions × rewrites, measured in turns.

python export/tune.py ckpt.pth --data camvid:DIR --calib camvid:DIR -o tuned
python export/tune.py unet.onnx --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --classes 19 --data my_video.mp4

Writes OUT/engine.* (what won), OUT/tune.json and OUT/tune.html (every candidate, and why), and keeps its work in
OUT/work: an interrupted run goes on there, and a repeat measures nothing twice.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from gradseg.base.conditions import code_hash
from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import require_file, sha256_of
from gradseg.base.options import FRAMES, add, add_common, add_model_arguments, check_threads, command_parser
from gradseg.base.packages import need
from gradseg.data.specs import is_spec, open_data
from gradseg.export.trt.best import DROP
from gradseg.export.tuning.machine import facts, placements
from gradseg.export.tuning.measure import Deadline
from gradseg.export.tuning.process import need_processes
from gradseg.export.tuning.progress import shown
from gradseg.export.tuning.state import Store, source_fingerprint
from gradseg.graphs.foreign.spec import OPTIONS
from gradseg.graphs.frames import open_frames
from gradseg.models.spec import parse_size
from gradseg.runtime.sources.grammar import LIVE

LEAST_BUDGET = 1.0


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = command_parser("export/tune.py", __doc__)
    out = {"metavar": "DIR", "help": "folder for the engine, tune.json and tune.html; by default MODEL.tuned"}
    add_model_arguments(parser, out=out, help=f"frames to measure on, labelled ones for mIoU: {FRAMES}")
    lost = f"points of mIoU that may be lost against FP32 (default {DROP:g}); needs labelled --data"
    add(parser, "--max-drop", help=lost)
    add(parser, "--threads", help="CPU threads; by default what is fastest of the sensible numbers")
    parser.add_argument(
        "--time-budget",
        type=float,
        metavar="S",
        help="seconds that all of it may take, about; half of it at least for measuring",
    )
    add_common(parser, "--limit")
    parser.add_argument("--force", action="store_true", help="forget what was measured before")
    add_common(parser.add_argument_group("INT8"), "--calib", "--calib-frames", "--calib-method", "--skip-bad")
    parser.set_defaults(power_of_two=False, reduce_range="auto", no_equalise=False, no_bias_correction=False)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    out = Path(args.out) if args.out else Path(args.model).with_suffix(".tuned")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        return _main(args, out, list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        found = f"what was found so far is in {out / 'work'}"
        print(f"interrupted; {found}, the same command goes on there", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _main(args: argparse.Namespace, out: Path, words: List[str]) -> int:
    deadline = Deadline(args.time_budget)
    _check(args, out)
    need(args.model, "export", "onnx", "onnxruntime", "jinja2")
    from gradseg.export.tuning.result import write_result
    from gradseg.export.tuning.run import tuned

    store = Store(out / "work", key_of(args))
    with store.locked():
        if args.force:
            store.forget()
        with tempfile.TemporaryDirectory(prefix="gradseg-tune-") as folder, shown(deadline) as say:
            found = tuned(args, store, Path(folder), placements(args.threads), deadline, say)
        for line in write_result(found, args, out, words):
            print(line)
    return 0


def _check(args: argparse.Namespace, out: Path) -> None:
    """What can be said before any work."""
    need_processes()
    require_file(args.model, "a checkpoint (.pth) or an ONNX model (.onnx)")
    if Path(args.model).suffix.lower() not in (".pth", ".pt", ".onnx"):
        raise GradsegError(f"{args.model}: expected a checkpoint (.pth) or an ONNX model (.onnx)")
    if not args.data:
        raise GradsegError(
            "--data is needed: frames to measure on, labelled ones for mIoU: camvid:DIR, folder:DIR, a video"
        )
    for option, source in (("--data", args.data), ("--calib", args.calib)):
        if source and LIVE.match(source):
            raise GradsegError(
                f"{option} {source}: a camera does not show the same frames twice; record some, give those"
            )
    if args.max_drop is not None and not args.max_drop >= 0:
        raise GradsegError(f"--max-drop {args.max_drop:g}: expected points of mIoU, 0 or more")
    if args.time_budget is not None and not args.time_budget >= LEAST_BUDGET:
        raise GradsegError(f"--time-budget {args.time_budget:g}: expected seconds, {LEAST_BUDGET:g} or more")
    if args.limit is not None and args.limit < 1:
        raise GradsegError(f"--limit {args.limit}: at least 1 frame is needed")
    check_threads(args.threads)
    if args.size:
        parse_size(args.size)
    if out.exists() and not out.is_dir():
        raise GradsegError(f"{out}: is a file; -o names a folder, for the engine, tune.json, tune.html and the work")
    if Path(args.model).resolve().parent == out.resolve() and Path(args.model).stem == "engine":
        raise GradsegError(f"{args.model}: would be overwritten by what wins; name another folder with -o")
    if is_spec(args.data):
        open_data(args.data, args.limit)
    else:
        open_frames(args.data, args.limit or 1)
    if args.calib:
        open_frames(args.calib, args.calib_frames)


def key_of(args: argparse.Namespace) -> Dict[str, Any]:
    """All that the figures depend on, by what it is called when it changed."""
    given = [*OPTIONS, "spec", "size", "arch", "calib_frames", "calib_method", "skip_bad"]
    return {
        "model": sha256_of(args.model),
        "description": sha256_of(args.spec) if args.spec and Path(args.spec).is_file() else None,
        "data": [args.data, source_fingerprint(args.data), args.limit],
        "calibration": [args.calib, source_fingerprint(args.calib)],
        "options": {name: getattr(args, name, None) for name in given},
        "number of threads": args.threads,
        "machine or library version": facts(),
        "version of GradSeg": code_hash(),
    }


if __name__ == "__main__":
    run_main(main)
