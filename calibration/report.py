"""What INT8 costs: float against every variant for every target, as JSON and as one HTML page.

    python calibration/report.py CKPT... --data camvid:DIR --calib camvid:DIR --json int8.json --html int8.html

Networks are checkpoints (.pth) or FP32 ONNX files, foreign ones too. Checkpoints fine-tuned for INT8 are variants of
the network they were made from; those in its folder are taken along.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Optional, Sequence

from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import check_output
from gradseg.base.options import add, add_common, add_foreign_arguments, check_threads, command_parser
from gradseg.base.packages import need
from gradseg.data.specs import GRAMMAR


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = command_parser("calibration/report.py", __doc__)
    parser.add_argument("models", nargs="+", metavar="CKPT", help="checkpoint (.pth) or FP32 ONNX model (.onnx)")
    add(parser, "--data", required=True, help=f"labelled frames to measure on: {GRAMMAR}")
    add(parser, "--limit", help="measure on at most this many frames, evenly spread; they are in memory")
    add_common(parser, "--calib", "--calib-frames", "--reduce-range", "--threads")
    add(parser, "--samples", type=int, default=50, help="timed frames per engine, 0 for no latency (default 50)")
    add(parser, "--no-qat", action="store_true", help="leave out fine-tuned checkpoints that are not named")
    add(parser, "--json", required=True, help="JSON file to write the figures to")
    add(parser, "--html", type=Path, required=True, metavar="FILE", help="HTML file to write the page to")
    add_foreign_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    _check(args)
    from gradseg.calibration.comparison.run import compare

    return compare(args, sys.argv[1:] if argv is None else argv)


def _check(args: argparse.Namespace) -> None:
    """What can be said before any work."""
    check_output("--json", args.json, (*args.models, args.spec), (".json",))
    check_output("--html", args.html, (*args.models, args.spec), (".html", ".htm"))
    if args.samples < 0:
        raise GradsegError(f"--samples {args.samples}: expected 0 (no latency) or more")
    check_threads(args.threads)
    need("the report", "export", "onnx", "onnxruntime", "matplotlib", "jinja2")


if __name__ == "__main__":
    run_main(main)
