"""A ranges file from a script's arguments: frames shown to a network, what its tensors held, and what is to be said."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, List, Tuple

from gradseg.base.errors import GradsegError
from gradseg.base.files import sha256_of
from gradseg.calibration.qdq.int8 import calibrated
from gradseg.calibration.ranges import checks
from gradseg.calibration.ranges.collect import Statistics
from gradseg.calibration.ranges.observers import PERCENTILE
from gradseg.calibration.ranges.ranges_file import RangesFile, model_fingerprint, ranges_from_statistics
from gradseg.commands import command
from gradseg.graphs.frames import open_frames
from gradseg.graphs.graph import is_quantised
from gradseg.graphs.load import Loaded, load_any

WORST = 5  # tensors listed as the most clipped
ALL = 1 << 30  # frames of a validation set


def calibrate(args: argparse.Namespace, out: Path) -> List[str]:
    """Calibrates as `calibrate.py`'s arguments say and writes `out`; gives the lines for people."""
    source = open_frames(args.data, args.frames, args.skip_bad)
    validation = open_frames(args.val, ALL, args.skip_bad) if args.val else None
    loaded = load_any(argparse.Namespace(**{**vars(args), "data": None}))  # --data may hold frames that cannot be read
    if is_quantised(loaded.model):
        raise GradsegError(f"{args.model}: is INT8 already; calibrate its FP32 form or its checkpoint")
    watched = checks.Watched(source, loaded.spec.input_hw)
    statistics = calibrated(
        loaded.model, watched, args.frames, not args.no_equalise, args.threads, show=True
    ).statistics
    warnings = [
        *checks.source_warnings(watched),
        *checks.frame_warnings(watched.signatures),
        *checks.prediction_warnings(statistics, loaded.spec.classes),
    ]
    if validation is not None:
        warnings += checks.leakage_warnings(watched.signatures, validation, loaded.spec.input_hw)
    ranges = ranges_of(args, loaded, statistics, watched, warnings)
    ranges.write(out)
    described = " (and the options that describe the network, as here)" if loaded.notes else ""
    use = command("export/to_ort.py", args.model, "--precision", "int8", "--ranges", out)
    return [*report_lines(args, ranges), f"wrote {out}; use it: {use}{described}"]


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
    pixels = {"color_order": spec.color_order, "mean": list(spec.mean), "std": list(spec.std)}
    preprocessing = {"size": list(spec.input_hw), "resize": "bilinear", **pixels}
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
