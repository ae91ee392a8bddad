"""`ranges.json`: what calibration found, for people to read, to edit and to use again. Needs onnx; no torch.

One line per tensor. Change a tensor's min or max and its scales follow, for every target; change a target's scale or
zero point and it is used as it stands (as long as min and max are as calibrated).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Union

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.base.files import require_file, write_text
from gradseg.calibration.qdq.targets import SCALES_OF_CPU, TARGETS, Quantisation, Target, activation_quantisation
from gradseg.calibration.ranges.collect import Statistics
from gradseg.calibration.ranges.observers import PERCENTILE, Observer, Range
from gradseg.calibration.ranges.ranges_json import FORMAT, VERSION, checked_json, entry_from_json, pretty, short
from gradseg.commands import command
from gradseg.graphs.graph import Graph

HOW_TO_EDIT = (
    "change min or max of a tensor and its scales follow for every target; or change a target's scale or zero_point, "
    "which is then used as written; then give this file to to_ort.py or to_trt.py with --ranges"
)
# the fields that stand in the file as they are
HEAD = ("model", "data", "preprocessing", "method", "percentile", "power_of_two", "equalised", "warnings")


@dataclass(frozen=True)
class Entry:
    """One tensor. limits: the range to quantise, as it stands in the file. calibrated: as calibration found it.

    seen: minimum and maximum of all values. clipped: the share of values outside `calibrated`. method: how that was
    chosen. targets: the quantisation for each target.
    """

    tensor: str
    limits: Range
    seen: Range
    method: str
    clipped: float
    calibrated: Range
    targets: Mapping[str, Quantisation]

    @property
    def edited(self) -> bool:
        return self.limits != self.calibrated

    def to_json(self) -> Dict[str, Any]:
        """JSON types; all numbers are those of float32."""
        targets = {key: {"scale": short(q.scale), "zero_point": q.zero_point} for key, q in self.targets.items()}
        limits = {"tensor": self.tensor, "min": self.limits.low, "max": self.limits.high}
        seen = {"seen_min": self.seen.low, "seen_max": self.seen.high, "method": self.method, "clipped": self.clipped}
        return {**limits, **seen, "calibrated": [self.calibrated.low, self.calibrated.high], "targets": targets}


@dataclass(frozen=True)
class RangesFile:
    """The content of a ranges.json.

    model: {"file", "sha256", "fingerprint"} of the model before equalisation. data: {"source", "frames", "sha256",
    "skipped"}. preprocessing: {"size", "resize", "color_order", "mean", "std"}. These and `warnings` are for people,
    all but the fingerprint. channel_means: float64 (C,) of the convolutions' inputs, for bias correction. equalised:
    the ranges are those of `repair.equalised(model)`. path: where it was read, for messages.
    """

    model: Dict[str, Any]
    data: Dict[str, Any]
    preprocessing: Dict[str, Any]
    method: str
    power_of_two: bool
    equalised: bool
    entries: Dict[str, Entry]
    channel_means: Dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    warnings: List[str] = field(default_factory=list)
    percentile: Optional[float] = None
    path: str = "ranges.json"

    @staticmethod
    def read(path: Union[str, Path]) -> RangesFile:
        """Reads a file; GradsegError naming file, tensor and field for anything that is missing or makes no sense."""
        found = require_file(path, "a ranges file of calibration/calibrate.py (.json)")
        raw = checked_json(found)
        power_of_two = bool(raw["power_of_two"])
        entries = {}
        for number, each in enumerate(raw["tensors"], 1):
            entry = Entry(**entry_from_json(each, f"{found}: tensor number {number}", str(found), power_of_two))
            if entry.tensor in entries:
                raise GradsegError(f"{found}: tensor {entry.tensor} is listed twice; remove one")
            if entry.edited:
                limits, power = entry.limits, power_of_two
                scales = {key: activation_quantisation(limits, target, power) for key, target in TARGETS.items()}
                entry = replace(entry, targets=scales)
            entries[entry.tensor] = entry
        means = {name: np.asarray(values, np.float64) for name, values in raw["channel_means"].items()}
        kept: Dict[str, Any] = {"data": {}, "preprocessing": {}, **{key: raw[key] for key in HEAD if key in raw}}
        kept["warnings"] = [str(each) for each in raw.get("warnings", [])]
        return RangesFile(entries=entries, channel_means=means, path=str(found), **kept)

    def write(self, path: Union[str, Path]) -> None:
        """Writes the file in one step; `read` gives the same back."""
        raw: Dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "how_to_edit": HOW_TO_EDIT,
            **{key: getattr(self, key) for key in HEAD},
            "tensors": [entry.to_json() for entry in self.entries.values()],
            "channel_means": {name: [short(v) for v in values] for name, values in self.channel_means.items()},
        }
        write_text(path, pretty({key: value for key, value in raw.items() if value is not None}))

    def quantisations(self, target: str, needed: Iterable[str] = ()) -> Dict[str, Quantisation]:
        """Tensor → quantisation for a target; GradsegError naming the tensors of `needed` that the file lacks."""
        missing = [name for name in needed if name not in self.entries]
        if missing:
            names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise GradsegError(
                f"{self.path}: no range for {names}, which {target} needs; "
                + self._again(self.model.get("file", "MODEL"))
            )
        key = "cpu" if target in SCALES_OF_CPU else target
        return {name: entry.targets[key] for name, entry in self.entries.items()}

    def check_belongs(self, model: Any, name: str) -> None:
        """GradsegError unless the ranges are of this FP32 onnx.ModelProto, not equalised, called `name`."""
        fingerprint, own = model_fingerprint(model), str(self.model["fingerprint"])
        if fingerprint == own:
            return
        raise GradsegError(
            f"{self.path}: holds the ranges of {self.model.get('file', 'another model')} ({own[:12]}), not of {name} "
            f"({fingerprint[:12]}): its weights, size or layers differ; {self._again(name)}"
        )

    def _again(self, model: object) -> str:
        again = command("calibration/calibrate.py", model, "--data", "SOURCE", "--out", self.path)
        return f"calibrate again: {again}"


def ranges_from_statistics(
    statistics: Statistics,
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
    method: str = "mse",
    power_of_two: bool = False,
    equalised: bool = True,
    percentile: float = PERCENTILE,
    warnings: Iterable[str] = (),
) -> RangesFile:
    """Statistics of a model's tensors → the ranges and scales by a method; the mappings as in `RangesFile`."""
    entries = {}
    for name, seen in statistics.observers.items():
        chosen = seen.range(method, False, percentile)
        limits = Range(short(chosen.low), short(chosen.high))
        extremes = Range(short(seen.low), short(seen.high))
        targets = {
            key: quantisation_of(statistics, name, target, method, power_of_two, percentile)
            for key, target in TARGETS.items()
        }
        clipped = float(f"{seen.clipped(chosen.low, chosen.high):.3g}")
        entries[name] = Entry(name, limits, extremes, method, clipped, limits, targets)
    means = {name: np.array([short(v) for v in values]) for name, values in statistics.means.items()}
    return RangesFile(
        dict(model),
        {**data, "frames": statistics.frames},
        dict(preprocessing),
        method,
        power_of_two,
        equalised,
        entries,
        means,
        list(warnings),
        percentile if method == "percentile" else None,
    )


def quantisation_of(
    statistics: Statistics,
    name: str,
    target: Target,
    method: str,
    power_of_two: bool = False,
    percentile: float = PERCENTILE,
) -> Quantisation:
    """How a target should quantise a tensor, by what was seen of it. Pixels are uint8 already, whatever was seen.

    With mse, a power-of-two scale is the neighbour of the float scale that has the smaller squared error; with the
    other methods it is the upper one, which clips no more than they do.
    """
    if name in statistics.pixels and not target.signed:
        return Quantisation(1.0, 0, False)
    seen = statistics.observers[name]
    error = partial(_error_with, seen, target) if method == "mse" else None
    return activation_quantisation(seen.range(method, target.signed, percentile), target, power_of_two, error)


def _error_with(seen: Observer, target: Target, scale: float) -> float:
    low = 0.0 if target.signed else min(seen.low, 0.0)
    zero = int(np.clip(np.rint(-low / scale), 0, 255))
    return seen.square_error(scale, zero, *Quantisation(scale, zero, target.signed).limits)


def model_fingerprint(model: Any) -> str:
    """Hex SHA-256 over the nodes and weights of an onnx.ModelProto; metadata, shapes and the file's name do not enter.

    A checkpoint and the ONNX file exported from it have the same one.
    """
    graph = Graph(model)
    digest = hashlib.sha256()
    used = {name for node in graph.nodes for name in node.input}
    for node in graph.nodes:
        parts = [node.op_type, node.domain, node.name, *node.input, "->", *node.output]
        digest.update(json.dumps(parts).encode())
        for attribute in sorted(node.attribute, key=lambda each: str(each.name)):
            digest.update(attribute.SerializeToString(deterministic=True))
    for name in sorted(used & set(graph.weights)):
        array = np.ascontiguousarray(graph.weights[name])
        digest.update(json.dumps([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
