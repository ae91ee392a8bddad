"""Shows real frames to a model and writes what its tensors held, and the INT8 scales that follow, to a ranges.json.

python calibration/calibrate.py m.onnx --data camvid:DIR --method mse --out ranges.json

The file is for people: it can be edited, and to_ort.py and to_trt.py take it with --ranges in place of calibrating.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import List, Optional, Sequence

from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import refuse_inputs, require_file
from gradseg.base.options import COMMON, add, add_common, add_model_arguments, check_threads, command_parser
from gradseg.base.packages import need
from gradseg.calibration.ranges.observers import PERCENTILE
from gradseg.data.specs import paths_of
from gradseg.graphs.frames import GRAMMAR
from gradseg.graphs.load import check_out
from gradseg.models import metadata


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = command_parser("calibration/calibrate.py", __doc__)
    out, frames = {"help": "file to write; by default MODEL.ranges.json"}, f"frames to calibrate on: {GRAMMAR}"
    add_model_arguments(parser, out=out, required=True, metavar="SOURCE", help=frames)
    group = parser.add_argument_group("calibration")
    add(group, "--frames", **COMMON["--calib-frames"])
    add(group, "--percentile", type=float, metavar="P", help=f"of --method percentile (default {PERCENTILE})")
    add(group, "--pow2", action="store_true", help="scales as powers of two for every target, not for tidl alone")
    add(group, "--val", help="frames that INT8 will be measured on: none of them may be calibrated on")
    add_common(group, "--method", "--no-equalise", "--skip-bad", "--threads")
    args = parser.parse_args(argv)
    if args.percentile is not None and args.method != "percentile":
        parser.error(f"--percentile is for --method percentile, not {args.method}")
    return args


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    out = Path(args.out) if args.out else Path(args.model).with_suffix(".ranges.json")
    check_before(args, out)
    from gradseg.calibration.ranges.run import calibrate

    print("\n".join(calibrate(args, out)))
    return 0


def check_before(args: argparse.Namespace, out: Path) -> None:
    """Raises GradsegError for what can be known to fail before any work is done."""
    require_file(args.model, "a checkpoint (.pth) or an ONNX model (.onnx)")
    check_out(args.model, out, (".json",))
    given = [*_files_of(args.data), *_files_of(args.val), args.spec, args.classes, f"{args.model}.json"]
    refuse_inputs(out, [path for path in given if path], "--out")
    if args.percentile is not None and not 50.0 < args.percentile <= 100.0:
        raise GradsegError(f"--percentile {args.percentile:g}: expected a share above 50 and up to 100, such as 99.99")
    check_threads(args.threads)
    need(args.model, "export", "onnx", "onnxruntime")
    check_input(args)


def _files_of(source: Optional[str]) -> List[str]:
    """Files that a source is read from, as far as its text says."""
    found = paths_of(source) if source else []
    return [*found, *(str(Path(path) / "classes.json") for path in found)]


def check_input(args: argparse.Namespace) -> None:
    """GradsegError listing the model's inputs if --input names none of them."""
    if args.input is None:
        return
    names, own = ["frame"], True
    if Path(args.model).suffix.lower() == ".onnx":
        import onnx

        own = metadata.SPEC in metadata.read_metadata(args.model)
        try:
            graph = onnx.load(args.model, load_external_data=False).graph
        except Exception as error:  # onnx and protobuf raise many classes for a damaged file
            raise GradsegError(f"{args.model}: not a valid ONNX model ({str(error).strip()[:160]})") from error
        weights = {tensor.name for tensor in graph.initializer}
        names = [value.name for value in graph.input if value.name not in weights]
    if args.input not in names:
        raise GradsegError(f"{args.model}: has no input {args.input!r}; its inputs: {', '.join(names) or 'none'}")
    if own:  # which of its inputs is the frame is known; for other networks it is said by this option
        args.input = None


if __name__ == "__main__":
    run_main(main)
