"""Which layers INT8 hurts: quantises one at a time and ranks them by what that costs.

python calibration/sensitivity.py ckpt.pth --data camvid:DIR --calib camvid:DIR --target tidl --json F --plot F.png

Per layer: the change of mIoU and of the class that loses most, the labels that change, and signal to quantisation noise
of the layer's output and of the network's scores. Without labels (an image folder, a video) there is no mIoU.
"""

from __future__ import annotations

import argparse
from typing import Optional, Sequence

from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import check_output, require_file
from gradseg.base.options import add, add_common, add_foreign_arguments, check_threads, command_parser
from gradseg.base.packages import need
from gradseg.calibration.qdq.targets import TARGETS
from gradseg.graphs.frames import GRAMMAR

LIMIT, TOP = 24, 20


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = command_parser("calibration/sensitivity.py", __doc__)
    parser.add_argument("model", help="checkpoint (.pth) or FP32 ONNX model (.onnx)")
    add(parser, "--data", required=True, help=f"frames to measure on, labelled ones for mIoU: {GRAMMAR}")
    add(parser, "--limit", default=LIMIT, help=f"at most N of them, evenly spread (default {LIMIT})")
    add(parser, "--target", default="cpu", choices=tuple(TARGETS), help="whom INT8 is for (default cpu)")
    add(parser, "--top", type=int, default=TOP, metavar="N", help=f"layers printed (default {TOP})")
    add_common(parser, "--json", "--plot", "--threads", "--arch", "--size")
    group = parser.add_argument_group("INT8")
    add_common(group, "--calib", "--calib-frames", "--method", "--ranges", "--power-of-two")
    add_common(group, "--no-equalise", "--no-bias-correction", "--reduce-range")
    add_foreign_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    check(args)
    from gradseg.calibration.cost.run import rank_layers

    rank_layers(args)
    return 0


def check(args: argparse.Namespace) -> None:
    """Raises GradsegError for what can be known to fail before any work is done."""
    require_file(args.model, "a checkpoint (.pth) or an ONNX model (.onnx)")
    inputs = (args.model, f"{args.model}.json", args.ranges, args.spec, args.classes)
    check_output("--json", args.json, inputs, (".json",))
    check_output("--plot", args.plot, inputs, (".png",))
    for option, value in (("--limit", args.limit), ("--top", args.top), ("--calib-frames", args.calib_frames)):
        if value < 1:
            raise GradsegError(f"{option} {value}: expected 1 or more")
    given = [name for name in ("calib", "no_equalise", "power_of_two") if getattr(args, name)]
    if args.ranges and given:
        name = given[0].replace("_", "-")
        raise GradsegError(f"--ranges {args.ranges}: takes the place of calibration; leave --{name} or it out")
    check_threads(args.threads)
    need(args.model, "export", "onnx", "onnxruntime", *(["matplotlib"] if args.plot else []))


if __name__ == "__main__":
    run_main(main)
