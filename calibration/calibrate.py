"""Shows real frames to a model and writes what its tensors held, and the INT8 scales that follow, to a ranges.json.

python calibration/calibrate.py m.onnx --data camvid:DIR --method mse --out ranges.json

The file is for people: it can be edited, and to_ort.py and to_trt.py take it with --ranges in place of calibrating.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence, Tuple

from gradseg.base.errors import GradsegError, run_main
from gradseg.base.files import refuse_inputs, require_file, sha256_of
from gradseg.base.options import METHODS, add_model_arguments, check_threads
from gradseg.calibration.qdq.int8 import observed_tensors
from gradseg.calibration.qdq.repair import equalised
from gradseg.calibration.ranges import checks
from gradseg.calibration.ranges.collect import Statistics, statistics_from_frames
from gradseg.calibration.ranges.observers import PERCENTILE
from gradseg.calibration.ranges.ranges_file import RangesFile, model_fingerprint, ranges_from_statistics
from gradseg.graphs.frames import GRAMMAR, open_frames
from gradseg.graphs.graph import is_quantised
from gradseg.graphs.inputs import Loaded, check_out, load_any, need_packages
from gradseg.models import metadata

WORST = 5  # tensors listed as the most clipped
ALL = 1 << 30  # frames of a validation set


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, conflict_handler="resolve"
    )
    add_model_arguments(parser)
    add = parser.add_argument_group("calibration").add_argument
    add("--data", required=True, metavar="SOURCE", help=f"frames to calibrate on: {GRAMMAR}")
    add("--frames", type=int, default=32, metavar="N", help="at most this many, evenly spread (default 32)")
    add("--method", default="mse", choices=METHODS, help="how ranges are chosen (default mse)")
    add("--percentile", type=float, metavar="P", help=f"of --method percentile (default {PERCENTILE})")
    add("--pow2", action="store_true", help="activation scales as powers of two for every target, not for tidl alone")
    add("--no-equalise", action="store_true", help="the ranges of the model without cross-layer equalisation")
    add("--val", metavar="SPEC", help="frames that INT8 will be measured on: none of them may be calibrated on")
    add("--skip-bad", action="store_true", help="leave out frames that cannot be read, and count them")
    add("--threads", type=int, metavar="N", help="CPU threads; by default ONNX Runtime chooses")
    add("-o", "--out", metavar="F", help="file to write (default: MODEL.ranges.json beside the model)")
    args = parser.parse_args(argv)
    if args.percentile is not None and args.method != "percentile":
        parser.error(f"--percentile is for --method percentile, not {args.method}")
    return args


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse(argv)
    out = Path(args.out) if args.out else Path(args.model).with_suffix(".ranges.json")
    check_before(args, out)
    source = open_frames(args.data, args.frames, args.skip_bad)
    validation = open_frames(args.val, ALL, args.skip_bad) if args.val else None
    loaded = load_any(argparse.Namespace(**{**vars(args), "data": None}))  # --data may hold frames that cannot be read
    if is_quantised(loaded.model):
        raise GradsegError(f"{args.model}: is INT8 already; calibrate its FP32 form or its checkpoint")
    base = loaded.model if args.no_equalise else equalised(loaded.model)
    watched = checks.Watched(source, loaded.spec.input_hw)
    tensors, means = observed_tensors(base)
    statistics = statistics_from_frames(base, tensors, watched, means, args.threads, _progress(args.frames))
    if sys.stderr.isatty():
        print(file=sys.stderr)
    warnings = all_warnings(watched, statistics, loaded)
    if validation is not None:
        warnings += checks.leakage_warnings(watched.signatures, validation, loaded.spec.input_hw)
    ranges = ranges_of(args, loaded, statistics, watched, warnings)
    ranges.write(out)
    for line in report_lines(args, ranges):
        print(line)
    described = " (and the options that describe the network, as here)" if loaded.notes else ""
    print(f"wrote {out}; use it: python export/to_ort.py {args.model} --precision int8 --ranges {out}{described}")
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
    need_packages(args.model, "onnx", "onnxruntime")
    check_input(args)


def _files_of(source: Optional[str]) -> List[str]:
    """Files that a source is read from, as far as its text says."""
    parts = re.split(r"\s*\+\s*(?=\w+:)", source) if source else []
    bare = [re.sub(r"^(camvid|folder):", "", part.strip()) for part in parts]
    return [*bare, *(str(Path(part) / "classes.json") for part in bare)]


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


def _progress(most: int) -> Callable[[int], None]:
    def shown(frames: int) -> None:
        if sys.stderr.isatty():
            print(f"\rcalibrating: {frames} of at most {most} frames", end="", file=sys.stderr, flush=True)

    return shown


def all_warnings(watched: checks.Watched, statistics: Statistics, loaded: Loaded) -> List[str]:
    """Everything there is to say against the frames."""
    return [
        *checks.source_warnings(watched),
        *checks.frame_warnings(watched.signatures),
        *checks.prediction_warnings(statistics, loaded.spec.classes),
    ]


def ranges_of(
    args: argparse.Namespace, loaded: Loaded, statistics: Statistics, watched: checks.Watched, warnings: List[str]
) -> RangesFile:
    """What was measured, with where it comes from."""
    model = {
        "file": Path(args.model).name,
        "sha256": sha256_of(args.model),
        "fingerprint": model_fingerprint(loaded.model),
    }
    data = {"source": args.data, "sha256": watched.sha256, "skipped": watched.skipped}
    spec = loaded.spec
    preprocessing = {
        "size": list(spec.input_hw),
        "resize": "bilinear",
        "color_order": spec.color_order,
        "mean": list(spec.mean),
        "std": list(spec.std),
    }
    percentile = PERCENTILE if args.percentile is None else args.percentile
    chosen: Tuple[Any, ...] = (args.method, args.pow2, not args.no_equalise, percentile, warnings)
    return ranges_from_statistics(statistics, model, data, preprocessing, *chosen)


def report_lines(args: argparse.Namespace, ranges: RangesFile) -> List[str]:
    """What was measured, for people."""
    skipped = len(ranges.data["skipped"])
    lines = [
        f"calibrated {args.model} on {ranges.data['frames']} frames of {args.data}"
        + (f" ({skipped} skipped)" if skipped else "")
        + f": {len(ranges.entries)} tensors, method {ranges.method}"
        + (", equalised" if ranges.equalised else "")
    ]
    worst = sorted(ranges.entries.values(), key=lambda entry: -entry.clipped)[:WORST]
    if worst and worst[0].clipped > 0:
        lines.append("most clipped:")
    for entry in worst:
        if entry.clipped > 0:
            limits = f"{entry.limits.low:.4g}..{entry.limits.high:.4g}"
            seen = f"{entry.seen.low:.4g}..{entry.seen.high:.4g}"
            lines.append(f"  {100 * entry.clipped:8.4f} %  {entry.tensor}: {limits} of {seen}")
    return [*lines, *(f"warning: {text}" for text in ranges.warnings)]


if __name__ == "__main__":
    run_main(main)
