"""The ranking of layers from a script's arguments: networks and frames loaded, layers measured, table and files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

from gradseg.base.conditions import conditions, usable_cores
from gradseg.base.errors import GradsegError
from gradseg.base.files import sha256_of, write_json
from gradseg.calibration.cost.accuracy import Frames
from gradseg.calibration.cost.plots import plot_ranking
from gradseg.calibration.cost.ranking import Effect, Ranking, ranking
from gradseg.calibration.qdq.int8 import Int8Parts, Settings, calibrated
from gradseg.calibration.qdq.int8_from_arguments import form_for, parts_from_ranges, settings_from
from gradseg.calibration.ranges.ranges_file import RangesFile
from gradseg.data.specs import is_spec, open_data
from gradseg.graphs.frames import default_source, open_frames
from gradseg.graphs.graph import is_quantised
from gradseg.graphs.load import Loaded, load_any
from gradseg.models.spec import ModelSpec
from gradseg.runtime.preprocess import Preprocessor


def rank_layers(args: argparse.Namespace) -> None:
    """Measures and ranks the layers as `sensitivity.py`'s arguments say, prints the worst and writes the files."""
    labelled = is_spec(args.data)
    data = open_data(args.data, args.limit) if labelled else None
    loaded = load_any(args)
    if is_quantised(loaded.model):
        raise GradsegError(f"{args.model}: is INT8 already; give its FP32 form or its checkpoint")
    if loaded.info.get("quantisation"):
        raise GradsegError(
            f"{args.model}: was fine-tuned for INT8, its layers have made up for each other; give its base checkpoint"
        )
    shown = batches(args.data, args.limit, loaded.spec) if data is None else Frames(data, loaded.spec)
    if data is None:
        print(f"note: {args.data} has no labels: no mIoU, only the labels that change and signal to noise")
    parts, source = parts_from(loaded, args)
    found = ranking(parts, shown, args.threads, progress(len(parts.layers()) + 1))
    title = f"{Path(args.model).name}, target {args.target}, {source}"
    print("\n".join(table(found, title, args)))
    if args.json:
        write_json(args.json, document(found, parts.settings, args, source))
        print(f"wrote {args.json}")
    if args.plot:
        plot_ranking(found, title, args.plot)
        print(f"wrote {args.plot}")


def batches(source: str, limit: int, spec: ModelSpec) -> List[Any]:
    """Preprocessed frames without labels, uint8 BGR (1, h, w, 3)."""
    prepare = Preprocessor(spec.input_hw)
    return [prepare(frame).copy() for frame in open_frames(source, limit)]


def parts_from(loaded: Loaded, args: argparse.Namespace) -> Tuple[Int8Parts, str]:
    """What is needed to quantise any part of the model, and in words what the scales come from."""
    settings = settings_from(args, args.target, args.method)
    if args.ranges:
        parts = parts_from_ranges(loaded, Path(args.model).name, RangesFile.read(args.ranges), settings)
        return parts, f"ranges from {args.ranges}"
    source = args.calib or default_source(loaded.spec.input_hw)
    if args.calib is None:
        print(f"note: no --calib given, so INT8 is calibrated on procedural scenes ({source})")
    known = calibrated(loaded.model, source, args.calib_frames, settings.equalise, args.threads)
    parts = Int8Parts.of(known, settings, form_for(args.target))
    return parts, f"{args.method} on {known.statistics.frames} frames of {source}"


def progress(total: int) -> Any:
    """Says on a terminal how far it is."""
    done = 0

    def tick(name: str) -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            line = f"{done} of {total}: {name}"[:78]
            print(f"\r{line:<78}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return tick


def table(found: Ranking, title: str, args: argparse.Namespace) -> List[str]:
    """The worst layers, for people."""
    whole = f"all layers in INT8: {100 * (1 - found.int8_agreement):.2f} % of the labels change"
    if found.base is not None and found.int8 is not None:
        worst = found.int8.worst_class(found.base)
        whole = f"float {100 * found.base.miou:.2f} % mIoU; {whole}, mIoU {_points(found.int8.miou - found.base.miou)}"
        whole += f" points, {worst[0]} {worst[1]:+.2f}"
    lines = [
        f"{title}; one layer in INT8 at a time, {found.frames} frames of {args.data}",
        whole,
        f"{'mIoU':>7}{'labels':>9}{'SQNR':>8}{'scores':>8}{'worst class':>22}{'MMAC':>9}  layer",
        f"{'points':>7}{'changed':>9}{'dB':>8}{'dB':>8}{'points':>22}{'':>9}",
    ]
    lines += [_line(effect) for effect in found.effects[: args.top]]
    left = len(found.effects) - args.top
    return lines if left <= 0 else [*lines, f"… and {left} layers that matter less (--top, --json)"]


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.2f}"


def _line(effect: Effect) -> str:
    change = "-" if effect.miou_change is None else f"{effect.miou_change:+.3f}"
    worst = "-" if effect.worst_class is None else f"{effect.worst_class[0]} {effect.worst_class[1]:+.2f}"
    decibels = ["-" if value is None else f"{value:.1f}" for value in (effect.sqnr_db, effect.scores_sqnr_db)]
    changed = f"{100 * (1 - effect.agreement):.3f} %"
    work = f"{effect.layer.macs / 1e6:.1f}"
    return f"{change:>7}{changed:>9}{decibels[0]:>8}{decibels[1]:>8}{worst:>22}{work:>9}  {effect.layer.name}"


def document(found: Ranking, settings: Settings, args: argparse.Namespace, source: str) -> Dict[str, Any]:
    """The JSON: what was measured, on what, and every layer."""
    return {
        "model": {"file": Path(args.model).name, "sha256": sha256_of(args.model)},
        "target": settings.target,
        "calibration": source,
        "repair": {"equalise": settings.equalise, "bias_correction": settings.bias_correction},
        "data": args.data,
        **found.to_json(),
        "conditions": conditions(threads=args.threads or usable_cores()),
    }
