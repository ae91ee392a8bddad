"""What INT8 costs a network in every variant: mIoU, per class, agreement, size, clipping, and latency where it is real.

    frames → statistics, of the network as it is and equalised → 8 variants for each target, and those fine-tuned for it

`trt` and `tidl` variants are emulated in ONNX Runtime on the CPU with its fusions off: each Q/DQ pair rounds and the
convolution between is in float32, so that no integer kernel of this CPU has a part in it. `cpu` variants run for real.
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.calibration.comparison.models import Subject, Tuned
from gradseg.calibration.comparison.recipes import (
    Options,
    Recipe,
    TensorError,
    best_of,
    described,
    described_tuned,
    recipes,
    tensor_errors,
    tuned_names,
)
from gradseg.calibration.cost.accuracy import Frames, Score
from gradseg.calibration.qdq.int8 import Calibrated, Int8Parts, calibrated
from gradseg.calibration.qdq.int8_from_arguments import form_for, int8_from_stored
from gradseg.calibration.qdq.quantise import count_quantised
from gradseg.calibration.qdq.targets import TARGETS, Quantisation
from gradseg.calibration.ranges import checks
from gradseg.graphs.forms import float_form
from gradseg.graphs.frames import open_frames
from gradseg.graphs.sessions import OnnxRunner
from gradseg.runtime.engines.open import open_engine
from gradseg.runtime.loop.latency import measure

EMULATED = "emulated in ONNX Runtime on this CPU: accuracy only"
WARMUP = 5
ALIKE = 1.3  # slowest over fastest cpu variant above which something else was running
Tick = Callable[[str], None]


@dataclass
class Measured:
    """row: the model's entry in the JSON. files: the networks by variant, "float" too, in a folder of the caller.
    calibrations: without and with equalisation. tensors: by variant, the worst first."""

    subject: Subject
    row: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)
    calibrations: dict[bool, Calibrated] = field(default_factory=dict)
    tensors: dict[str, list[TensorError]] = field(default_factory=dict)


def steps_of(subject: Subject) -> int:
    """How many times `measured` will call its `tick`."""
    return 4 + len(TARGETS) * len(recipes("cpu", Options(""))) + len(subject.tuned)


def measured(subject: Subject, frames: Frames, data: str, options: Options, folder: Path, tick: Tick) -> Measured:
    """Measures one network. A variant that fails gets an "error" in its row, said on stderr; the others go on.

    Args:
        frames: labelled frames; data: their spec, to look for calibration frames among them.
        folder: where the variants are written, exists.
        tick: called with a few words before each of `steps_of` steps.
    """
    found = Measured(subject, {})
    warnings = _calibrate(found, data, len(frames), options, tick)
    tick("float")
    model = float_form(subject.loaded.model)
    float_path = _write(found, "float", model, folder)
    score, reference = frames.scored(runner_of(float_path, "cpu", options.threads).first)
    bench = _Bench(found, frames, options, folder, score, reference)
    variants = []
    for target in TARGETS:
        for recipe in recipes(target, options):
            tick(recipe.name)
            variants.append(bench.attempt(recipe.name, described(recipe), partial(bench.from_recipe, recipe)))
    for tuned, name in zip(subject.tuned, tuned_names(subject.tuned), strict=True):
        tick(name)
        variants.append(bench.attempt(name, described_tuned(tuned), partial(bench.from_tuned, tuned)))
    found.row.update(
        model=subject.name,
        file=str(subject.path),
        sha256=subject.sha256,
        input_hw=list(subject.loaded.spec.input_hw),
        float={"miou": score.miou, "per_class": score.per_class, "size_bytes": found.files["float"].stat().st_size},
        variants=variants,
        best=best_of(variants),
        calibration={
            "source": options.calib,
            "frames": found.calibrations[True].statistics.frames,
            "warnings": warnings,
        },
    )
    if "sparsity" in subject.loaded.info:
        found.row["sparsity"] = subject.loaded.info["sparsity"]
    tick("latency")
    _time(found, options)
    return found


def _calibrate(found: Measured, data: str, count: int, options: Options, tick: Tick) -> list[str]:
    """Shows the calibration frames to both forms of the network; warnings about the frames."""
    spec = found.subject.loaded.spec
    watched = checks.Watched(open_frames(options.calib, options.calib_frames), spec.input_hw)
    for equalise in (False, True):
        tick("calibration, equalised" if equalise else "calibration")
        model = found.subject.loaded.model
        found.calibrations[equalise] = calibrated(model, watched, options.calib_frames, equalise, options.threads)
    return [
        *checks.frame_warnings(watched.signatures),
        *checks.source_warnings(watched),
        *checks.prediction_warnings(found.calibrations[False].statistics, spec.classes),
        *checks.leakage_warnings(watched.signatures, open_frames(data, count), spec.input_hw),
    ]


def _write(found: Measured, name: str, model: Any, folder: Path) -> Path:
    path = folder / f"{len(found.files)}.onnx"
    path.write_bytes(model.SerializeToString())
    found.files[name] = path
    return path


def runner_of(path: Path, target: str, threads: Optional[int]) -> OnnxRunner:
    """A variant ready to run: `cpu` (and float) with ONNX Runtime's kernels, the others exactly as written."""
    return OnnxRunner(path.read_bytes(), path.name, threads, integers=target == "cpu")


@dataclass
class _Bench:
    """What all variants of one network share."""

    found: Measured
    frames: Frames
    options: Options
    folder: Path
    base: Score
    reference: list[np.ndarray[Any, Any]]
    scales: dict[tuple[bool, str, str], tuple[Mapping[str, Quantisation], list[TensorError]]] = field(
        default_factory=dict
    )

    def attempt(
        self, name: str, known: dict[str, Any], make: Callable[[], tuple[Any, dict[str, Any]]]
    ) -> dict[str, Any]:
        """The variant's row; `make` gives its network and more about it."""
        row = {"name": name, **known}
        try:
            model, more = make()
            row.update(self._score(name, known["target"], model), **more)
        except GradsegError as error:
            row.update(miou=None, error=str(error))
        except Exception as error:  # noqa: BLE001 one variant's bug must not lose the others' hours
            traceback.print_exc()
            row.update(miou=None, error=f"{type(error).__name__}: {error}")
        if "error" in row:
            print(f"error: {self.found.subject.name}, {name}: {row['error']}", file=sys.stderr)
        return row

    def from_recipe(self, recipe: Recipe) -> tuple[Any, dict[str, Any]]:
        known, settings = self.found.calibrations[recipe.settings.equalise], recipe.settings
        key = (settings.equalise, settings.target, settings.method)
        if key not in self.scales:
            found = known.activations(settings.target, settings.method)
            self.scales[key] = found, tensor_errors(known, settings, found)
        scales, errors = self.scales[key]
        parts = Int8Parts(known.model, scales, known.statistics.means, settings, form_for(settings.target))
        self.found.tensors[recipe.name] = errors
        worst = max(errors, key=lambda each: each.clipped)
        mean = float(np.mean([each.clipped for each in errors]))
        return parts.int8(), {"clipped": {"mean": mean, "worst": worst.clipped, "tensor": worst.name}}

    def from_tuned(self, tuned: Tuned) -> tuple[Any, dict[str, Any]]:
        if tuple(tuned.loaded.spec.classes) != tuple(self.frames.spec.classes):
            raise GradsegError(f"{tuned.path}: its classes are not those of the network that it was made from")
        if tuned.loaded.spec.input_hw != self.frames.spec.input_hw:
            raise GradsegError(f"{tuned.path}: its input size is not that of the network that it was made from")
        model = tuned.loaded.model
        own = OnnxRunner(float_form(model).SerializeToString(), "float", self.options.threads)
        return int8_from_stored(model, tuned.quantisation), {"own_float_miou": self.frames.score(own.first).miou}

    def _score(self, name: str, target: str, model: Any) -> dict[str, Any]:
        path = _write(self.found, name, model, self.folder)
        score = self.frames.score(runner_of(path, target, self.options.threads).first, self.reference)
        worst, change = score.worst_class(self.base)
        packed, total = count_quantised(model)
        return {
            "miou": score.miou,
            "drop_points": 100 * (self.base.miou - score.miou),
            "per_class": score.per_class,
            "worst_class": {"name": worst, "change_points": change},
            "agreement": score.agreement,
            "size_bytes": path.stat().st_size,
            "int8_convolutions": packed,
            "convolutions": total,
        }


def _time(found: Measured, options: Options) -> None:
    """Adds the latency of float and of every cpu variant, taken in turns.

    latency_reliable: calibration alone does not change what a variant computes, so their latencies must be alike.
    """
    rows = {"float": found.row["float"]}
    rows.update({row["name"]: row for row in found.row["variants"] if row["target"] == "cpu" and "error" not in row})
    if options.samples == 0:
        return
    engines = [open_engine(found.files[name], options.threads) for name in rows]
    timed = measure(engines, found.subject.loaded.spec.input_hw, WARMUP, options.samples)
    for row, result in zip(rows.values(), timed, strict=True):
        row.update(latency_ms=result["p50_ms"], latency_p90_ms=result["p90_ms"], latency_samples=result["samples"])
    for engine in engines:
        engine.close()
    alike = [row["latency_ms"] for row in rows.values() if row.get("qat") is False]
    found.row["latency_reliable"] = not alike or max(alike) <= ALIKE * min(alike)
