"""A loaded FP32 model → INT8 for a target, as a script's arguments say. Needs onnx; no torch.

Scales come, in this order, from quantisation-aware fine-tuning (they are in the checkpoint), from a ranges file, or
from calibration on frames.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple

from gradseg.base.errors import GradsegError
from gradseg.calibration.cost.accuracy import Frames
from gradseg.calibration.cost.budget import budgeted
from gradseg.calibration.qdq.cpu import int8_saturates
from gradseg.calibration.qdq.int8 import Int8Parts, Settings, calibrated
from gradseg.calibration.qdq.native_form import native_form
from gradseg.calibration.qdq.qat_onnx import int8_from_qat
from gradseg.calibration.qdq.quantise import count_quantised
from gradseg.calibration.qdq.repair import equalised
from gradseg.calibration.qdq.targets import NATIVE, OPENVINO, TARGETS
from gradseg.calibration.ranges.ranges_file import RangesFile
from gradseg.commands import command
from gradseg.data.specs import SCHEMES, is_spec, open_data
from gradseg.graphs import verify
from gradseg.graphs.frames import default_source, other_scenes
from gradseg.graphs.graph import is_quantised, rewritten
from gradseg.graphs.load import Loaded
from gradseg.graphs.passes.dense_groups import dense_groups
from gradseg.graphs.passes.rows_head import rows_head

ENOUGH = 0.95  # share of labels equal to FP32's below which INT8 comes with a warning

# how to write the INT8 model, a note for its metadata, the frames that it is calibrated on (None for scales out of a
# file), and where the scales are from in words
Scales = Tuple[Int8Parts, Mapping[str, Any], Optional[str], str]


@dataclass
class Int8:
    """model: onnx.ModelProto with Q/DQ. calibrated_on: the source, None for scales out of a file. lines: for people."""

    model: Any
    calibrated_on: Optional[str]
    lines: List[str]


def cpu_form(model: Any) -> Any:
    """The FP32 model in the form that ONNX Runtime's INT8 kernels want; the names of its activations stay."""
    return rewritten(model, dense_groups, rows_head)


def form_for(target: str) -> Optional[Callable[[Any], Any]]:
    """What to rewrite a model with before it is quantised for a target."""
    return {"cpu": cpu_form, NATIVE.name: native_form}.get(target)


def int8_from_stored(model: Any, stored: Mapping[str, Any]) -> Any:
    """A fine-tuned network (FP32, deployment form) in INT8, in the form that its target's engine wants; see `qat_onnx`.

    stored: what fine-tuning left under "quantisation" in the checkpoint's info.
    """
    form = form_for(str(stored.get("target")))
    return int8_from_qat(model if form is None else form(model), stored)


def int8_for(loaded: Loaded, args: argparse.Namespace, target: str) -> Int8:
    """INT8 as the arguments of `add_calibration_arguments` say; what cannot be combined is a GradsegError."""
    if is_quantised(loaded.model):
        raise GradsegError(f"{args.model}: is INT8 already; calibrate its FP32 form or its checkpoint")
    if args.max_drop is not None and not is_spec(args.data or ""):
        raise GradsegError(
            f"--max-drop {args.max_drop:g}: mIoU needs labelled frames; give them with --data {': or '.join(SCHEMES)}:"
        )
    stored = loaded.info.get("quantisation")
    if stored:
        return _fine_tuned(loaded, args, target, stored)
    settings = settings_from(args, target, args.calib_method)
    parts, note, source, words = (_from_ranges if args.ranges else _from_frames)(loaded, args, settings)

    def build(kept: Tuple[str, ...]) -> Any:
        return dataclasses.replace(parts, settings=dataclasses.replace(parts.settings, keep_float=kept)).int8(note)

    lines: Sequence[str] = ()
    if args.max_drop is None:
        model = build(())
    else:  # layers go back to float until at most --max-drop points of mIoU are lost on the labelled frames of --data
        frames, threads = Frames(open_data(args.data), loaded.spec), getattr(args, "threads", None)
        found = budgeted(loaded.model, target, build, frames, args.max_drop, parts.form, threads)
        model, lines = found.model, found.lines
    repairs = (("equalised", parts.settings.equalise), ("biases corrected", parts.settings.bias_correction))
    done = " and ".join(name for name, there in repairs if there) or "no repair"
    return Int8(model, source, [f"{words}; {_counted(model)}, {done}", *lines])


def settings_from(args: argparse.Namespace, target: str, method: str) -> Settings:
    """The settings that a script's INT8 arguments name."""
    return Settings(
        target,
        method,
        args.calib_frames,
        args.power_of_two,
        target in ("cpu", OPENVINO.name) and reduces_range(getattr(args, "reduce_range", "off")),
        equalise=not args.no_equalise,
        bias_correction=not args.no_bias_correction,
    )


def parts_from_ranges(loaded: Loaded, name: str, ranges: RangesFile, settings: Settings) -> Int8Parts:
    """A network with the scales of a ranges file, which decides on method and equalisation.

    GradsegError if the file belongs to another network than this one, called `name`, or lacks a tensor.
    """
    ranges.check_belongs(loaded.model, name)
    settings = dataclasses.replace(
        settings, method=ranges.method, power_of_two=ranges.power_of_two, equalise=ranges.equalised
    )
    base = equalised(loaded.model) if ranges.equalised else loaded.model
    scales = ranges.quantisations(settings.target)
    parts = Int8Parts(base, scales, ranges.channel_means, settings, form_for(settings.target))
    ranges.quantisations(settings.target, parts.whole.observed())
    return parts


def _from_frames(loaded: Loaded, args: argparse.Namespace, settings: Settings) -> Scales:
    source = args.calib
    if source is None:
        source = default_source(loaded.spec.input_hw)
        print(
            f"note: no --calib given, so INT8 is calibrated on procedural scenes ({source}); "
            "calibrate on your own frames for your own camera"
        )

    threads = getattr(args, "threads", None)
    found = calibrated(loaded.model, source, settings.frames, settings.equalise, threads, args.skip_bad, show=True)
    parts = Int8Parts.of(found, settings, form_for(settings.target))
    return parts, found.note, source, f"calibrated on {source} ({args.calib_method})"


def _from_ranges(loaded: Loaded, args: argparse.Namespace, settings: Settings) -> Scales:
    given = [name for name in ("calib", "no_equalise", "power_of_two", "skip_bad") if getattr(args, name)]
    if given:
        raise GradsegError(
            f"--ranges {args.ranges}: takes the place of calibration, --{given[0].replace('_', '-')} does not go with "
            "it; leave one out"
        )
    ranges = RangesFile.read(args.ranges)
    parts = parts_from_ranges(loaded, Path(args.model).name, ranges, settings)
    edited = [entry.tensor for entry in ranges.entries.values() if entry.edited]
    note = {"ranges": Path(args.ranges).name, **{key: ranges.data.get(key) for key in ("source", "frames")}}
    words = f"ranges from {args.ranges} ({ranges.method}, calibrated on {ranges.data.get('source')}"
    return parts, note, None, words + (f", {len(edited)} edited by hand)" if edited else ")")


def _fine_tuned(loaded: Loaded, args: argparse.Namespace, target: str, stored: Mapping[str, Any]) -> Int8:
    if stored.get("target") != target:
        tune = f", or fine-tune for this target: {command('train/finetune.py', 'CKPT', '--target', target)}"
        raise GradsegError(
            f"{args.model}: was fine-tuned for INT8 of target {stored.get('target')}, not {target}; give its base "
            f"checkpoint{tune if target in TARGETS else ''}"
        )
    for name in ("ranges", "calib", "max_drop"):
        if getattr(args, name) is not None:
            raise GradsegError(
                f"{args.model}: holds the scales that it was fine-tuned with; --{name.replace('_', '-')} does not go "
                "with them; leave it out, or give the base checkpoint"
            )
    model = int8_from_stored(loaded.model, stored)
    return Int8(model, None, [f"scales from quantisation-aware fine-tuning; {_counted(model)}"])


def _counted(model: Any) -> str:
    packed, total = count_quantised(model)
    return f"{packed} of {total} convolutions in INT8"


def reduces_range(choice: str) -> bool:
    """What `--reduce-range` auto, on or off means on this machine."""
    return choice == "on" or (choice == "auto" and int8_saturates())


def verification_source(args: argparse.Namespace, calibrated_on: Optional[str], hw: Tuple[int, int]) -> Tuple[str, str]:
    """The frames that INT8 is verified on, and them in words: --data, else scenes of another seed, else the same."""
    if args.data:
        return args.data, f"of {args.data}"
    if calibrated_on is None:  # scales out of a file: scenes that it was not made with
        calibrated_on = default_source(hw)
    other = other_scenes(calibrated_on)
    if other is not None:
        return other, f"of {other} (other scenes than the calibration's)"
    return calibrated_on, f"of the calibration source, {calibrated_on}; --data verifies on other frames"


def int8_lines(agreement: verify.Agreement, words: str, note: str = "") -> List[str]:
    """What is said of the labels of INT8: the agreement, before it a warning if that is low."""
    lines = [f"INT8: labels equal to FP32's on {agreement} {words}{note}"]
    if agreement.fraction < ENOUGH:
        lines.insert(
            0,
            f"warning: INT8 changes {100 * (1 - agreement.fraction):.1f} % of the labels; calibrate on frames of your "
            "own camera (--calib), try another --calib-method, or keep FP32",
        )
    return lines
