"""The JSON of a ranges file: checked field by field, and laid out with one line per tensor. NumPy only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Dict, List, Mapping

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.base.options import METHODS
from gradseg.calibration.qdq.targets import TARGETS, Quantisation, Target
from gradseg.calibration.ranges.observers import Range

FORMAT, VERSION = "gradseg-ranges", 1
TOP = {"model": dict, "method": str, "power_of_two": bool, "equalised": bool, "tensors": list, "channel_means": dict}
OPTIONAL = {"data": dict, "preprocessing": dict, "warnings": list}
WORDS = {dict: "an object", str: "a text", bool: "true or false", list: "a list"}


def short(value: Any) -> float:
    """The number with the fewest digits that is the same float32: 0.1, not 0.10000000149011612."""
    return float(str(np.float32(value)))


def checked_json(path: Path) -> Dict[str, Any]:
    """The parsed file, its fields outside the tensors checked; GradsegError for what is missing or ill-typed."""
    try:
        raw = json.loads(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise GradsegError(f"{path}: not a text file, so no ranges file") from error
    except (ValueError, RecursionError) as error:
        raise GradsegError(f"{path}: truncated or not JSON ({error})") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        raise GradsegError(f"{path}: not a ranges file (format is {found!r}, not {FORMAT!r}); see calibrate.py")
    if raw.get("version") != VERSION or isinstance(raw["version"], bool):
        raise GradsegError(f"{path}: version {raw.get('version')!r}; this GradSeg reads {VERSION}; calibrate again")
    for name, kind in {**TOP, **OPTIONAL}.items():
        if name not in raw and name in OPTIONAL:
            continue
        if name not in raw:
            raise GradsegError(f"{path}: field {name} is missing; calibrate again")
        if not isinstance(raw[name], kind):
            raise GradsegError(f"{path}: field {name} is {_shown(raw[name])}; expected {WORDS[kind]}")
    if not isinstance(raw["model"].get("fingerprint"), str):
        raise GradsegError(f"{path}: field model: fingerprint is missing, by which the model is known; calibrate again")
    if raw["method"] not in METHODS:
        raise GradsegError(f"{path}: field method is {raw['method']!r}; one of {', '.join(METHODS)}")
    for name, values in raw["channel_means"].items():
        if not isinstance(values, list) or not all(_is_number(value) for value in values):
            raise GradsegError(f"{path}: channel_means of {name}: expected a list of finite numbers")
    return raw


def entry_from_json(raw: Any, place: str, path: str, power_of_two: bool) -> Dict[str, Any]:
    """The fields of an `Entry`; GradsegError naming tensor and field. place: where it stands, while it has no name."""
    if not isinstance(raw, dict):
        raise GradsegError(f"{place}: is {_shown(raw)}; expected an object with tensor, min, max, …")
    name = raw.get("tensor")
    if not isinstance(name, str) or not name:
        raise GradsegError(f"{place}: field tensor is {_shown(name)}; expected the tensor's name")
    where = f"{path}: tensor {name}"
    method = _field(raw, "method", where)
    if method not in METHODS:
        raise GradsegError(f"{where}: field method is {_shown(method)}; one of {', '.join(METHODS)}")
    clipped = _number(raw, "clipped", where)
    if not 0.0 <= clipped <= 1.0:
        raise GradsegError(f"{where}: field clipped is {clipped:g}; it is a share from 0 to 1")
    both = _field(raw, "calibrated", where)
    if not isinstance(both, list) or len(both) != 2 or not all(_is_number(value) for value in both):
        raise GradsegError(f"{where}: field calibrated is {_shown(both)}; expected [min, max]")
    targets = _field(raw, "targets", where)
    if not isinstance(targets, dict):
        raise GradsegError(f"{where}: field targets is {_shown(targets)}; expected an object")
    return {
        "tensor": name,
        "limits": _range(raw, "min", "max", where),
        "seen": _range(raw, "seen_min", "seen_max", where),
        "method": method,
        "clipped": clipped,
        "calibrated": Range(float(both[0]), float(both[1])),
        "targets": {
            key: _quantisation(_field(targets, key, f"{where}: targets"), target, f"{where}: {key}", power_of_two)
            for key, target in TARGETS.items()
        },
    }


def _quantisation(raw: Any, target: Target, where: str, power_of_two: bool) -> Quantisation:
    if not isinstance(raw, dict):
        raise GradsegError(f"{where} is {_shown(raw)}; expected an object with scale and zero_point")
    scale = float(np.float32(_number(raw, "scale", where)))
    if not 0.0 < scale < math.inf:
        raise GradsegError(f"{where}: field scale is {_shown(raw['scale'])}; it must be above 0 and fit a float32")
    if (target.power_of_two or power_of_two) and math.frexp(scale)[0] != 0.5:
        lower = 2.0 ** math.floor(math.log2(scale))
        raise GradsegError(
            f"{where}: field scale is {raw['scale']}, no power of two; its neighbours are {lower} and {2 * lower}"
        )
    zero = _field(raw, "zero_point", where)
    lowest, highest = (0, 0) if target.signed else (0, 255)
    if isinstance(zero, bool) or not isinstance(zero, int) or not lowest <= zero <= highest:
        needed = "0, its integers are symmetric" if target.signed else "a whole number from 0 to 255"
        raise GradsegError(f"{where}: field zero_point is {_shown(zero)}; {target.name} needs {needed}")
    return Quantisation(scale, zero, target.signed)


def _range(raw: Mapping[str, Any], low: str, high: str, where: str) -> Range:
    found = Range(_number(raw, low, where), _number(raw, high, where))
    if found.low > found.high:
        raise GradsegError(f"{where}: field {low} is {found.low:g}, above {high}, {found.high:g}; exchange them")
    return found


def _field(raw: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in raw:
        raise GradsegError(f"{where}: field {name} is missing; put it back, or calibrate again")
    return raw[name]


def _number(raw: Mapping[str, Any], name: str, where: str) -> float:
    value = _field(raw, name, where)
    if not _is_number(value):
        raise GradsegError(f"{where}: field {name} is {_shown(value)}; expected a finite number")
    return float(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= float(np.finfo(np.float32).max)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def pretty(raw: Mapping[str, Any]) -> str:
    """JSON with a line for every field, every tensor and every list of means."""
    lines = []
    for name, value in raw.items():
        text = _line(value)
        if name in ("tensors", "warnings"):
            text = _block("[", "]", [_line(each) for each in value])
        elif name == "channel_means":
            text = _block("{", "}", [f"{json.dumps(key)}: {_line(each)}" for key, each in value.items()])
        lines.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _block(opening: str, closing: str, lines: List[str]) -> str:
    return opening + closing if not lines else opening + "\n    " + ",\n    ".join(lines) + f"\n  {closing}"
