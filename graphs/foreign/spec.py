"""What the user says about a network that is not ours: normalisation, classes, which input and output.

It comes from the command line and from a JSON file (`--spec`): a whole ModelSpec, or a short one with any of the keys

    mean, std      three numbers each, in the order of `color_order`; x = (pixel / input_scale - mean) / std
    input_scale    255 (the default), or 1 for a mean in pixel values, as Caffe models have; any number above 0
    color_order    "rgb" (the default) or "bgr"
    classes        a list of names, or their number; palette: a list of [r, g, b]
    input, output  names of tensors; threshold: of a network with one output channel
    input_hw       [height, width] for a network whose size is open; arch: a name for the network

The command line wins over the file. Python 3.8; needs no onnx.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from gradseg.base.errors import GradsegError
from gradseg.base.files import read_json
from gradseg.base.options import ORDERS
from gradseg.commands import command
from gradseg.data.folders import is_palette, read_classes
from gradseg.models.spec import ModelSpec, Rgb, distinct_palette, parse_size

SCALE = 255.0  # what ModelSpec's mean and std are in units of
OPTIONS = ("mean", "std", "color_order", "input_scale", "classes", "input", "output", "threshold")
SAY = (
    "say what it is with --spec FILE (JSON) or --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --classes FILE; "
    f"or export it again from its checkpoint: {command('export/to_onnx.py', 'CKPT')}"
)
Three = Tuple[float, float, float]


@dataclass(frozen=True)
class Given:
    """What was said; None for what was not. classes: names, or count: only how many. whole: a ModelSpec from --spec."""

    mean: Optional[Three] = None
    std: Optional[Three] = None
    color_order: Optional[str] = None
    input_scale: Optional[float] = None
    classes: Optional[Tuple[str, ...]] = None
    count: Optional[int] = None
    palette: Optional[Tuple[Rgb, ...]] = None
    input: Optional[str] = None
    output: Optional[str] = None
    threshold: Optional[float] = None
    input_hw: Optional[Tuple[int, int]] = None
    arch: Optional[str] = None
    whole: Optional[ModelSpec] = None

    def over(self, other: Given) -> Given:
        """Both together; what this one says wins."""
        said = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) is not None}
        if "classes" in said or "count" in said:  # new classes replace names, number and colours together
            other = dataclasses.replace(other, classes=None, count=None, palette=None)
        return dataclasses.replace(other, **said)

    @property
    def describes(self) -> bool:
        """Whether anything was said of the pixels or the classes, so that the rest may take its defaults."""
        said = (self.mean, self.std, self.color_order, self.input_scale, self.classes, self.count)
        return any(value is not None for value in said)


def given_as(spec: ModelSpec) -> Given:
    """A whole ModelSpec as what was said."""
    pixels: Dict[str, Any] = {"mean": spec.mean, "std": spec.std, "color_order": spec.color_order, "input_scale": SCALE}
    return Given(
        classes=spec.classes, palette=spec.palette, input_hw=spec.input_hw, arch=spec.arch, whole=spec, **pixels
    )


def given_by(args: argparse.Namespace) -> Given:
    """What the options of `add_foreign_arguments` (those that the script has), --size and the --spec file say."""
    raw: Dict[str, Any] = {}
    for name in OPTIONS:
        text = getattr(args, name, None)
        if text is not None:
            raw[name] = [_number(part) for part in text.split(",")] if name in ("mean", "std") else text
    for name in ("input_scale", "threshold"):
        if name in raw:
            raw[name] = _number(raw[name])
    classes = raw.pop("classes", None)
    values = _values(raw, lambda name: f"--{name.replace('_', '-')} {getattr(args, name)}")
    if classes is not None:
        values.update(_classes_option(classes))
    if getattr(args, "size", None):
        values["input_hw"] = parse_size(args.size)
    spec_file = getattr(args, "spec", None)
    said = Given(**values)
    return said.over(given_in(spec_file)) if spec_file else said


def refuse_foreign_options(args: argparse.Namespace, why: str) -> None:
    """Raises GradsegError if one of the options above, --spec aside, was given where, as `why` says, it has no use."""
    used = [f"--{name.replace('_', '-')}" for name in OPTIONS if getattr(args, name, None) is not None]
    if used:
        raise GradsegError(f"{args.model}: {why}; leave {', '.join(used)} out")


def given_in(path: str) -> Given:
    """Reads a --spec file; GradsegError naming the field that is wrong."""
    raw = read_json(path, "a model description as JSON")
    raw = raw.get("spec", raw) if isinstance(raw, dict) else raw
    if not isinstance(raw, dict):
        raise GradsegError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    short = {f.name for f in dataclasses.fields(Given)} - {"count", "whole"}
    unknown = sorted(set(raw) - short)
    fields = {f.name for f in dataclasses.fields(ModelSpec)}
    if unknown and set(unknown) <= fields:  # how one of our networks is built: a whole ModelSpec
        more = {name: value for name, value in raw.items() if name not in fields}
        whole = ModelSpec.from_dict({name: value for name, value in raw.items() if name in fields}, path)
        return Given(**_values(more, lambda name: f"{path}: {name} {raw[name]!r}")).over(given_as(whole))
    if unknown:
        raise GradsegError(f"{path}: unknown fields {unknown}; known are {sorted(short)}, or those of a ModelSpec")
    return Given(**_values(raw, lambda name: f"{path}: {name} {raw[name]!r}"))


def spec_from(
    given: Given,
    channels: Optional[int],
    size_hw: Tuple[int, int],
    where: str,
    output_hw: Optional[Tuple[int, int]] = None,
) -> Tuple[ModelSpec, str]:
    """The ModelSpec of a network with `channels` classes (None: its labels do not tell), and what to say about it.
    `output_hw`: the size of its logits, for messages.

    The second is a note on what was assumed and a warning on what looks wrong, or empty. Raises GradsegError for
    classes that the network does not have, and for a mean that pixels cannot have.
    """
    names, assumed = _names(given, channels, output_hw or size_hw, where)
    mean, std = given.mean or (0.0, 0.0, 0.0), given.std or (1.0, 1.0, 1.0)
    scale = given.input_scale or SCALE
    if max(abs(value) for value in mean) * scale > 1.001 * SCALE:
        raise GradsegError(
            f"{where}: mean {_text(mean)} lies beyond pixels divided by {scale:g}; if mean and std are in pixel values "
            "(0..255), say --input-scale 1"
        )
    said = [("mean 0,0,0", given.mean), ("std 1,1,1", given.std), ("input scale 255", given.input_scale)]
    taken = [text for text, value in [*said, ("colour order rgb", given.color_order)] if value is None] + assumed
    lines = [f"note: not said, so taken: {'; '.join(taken)}"] if taken else []
    if scale == 1 and any(mean) and max(abs(value) for value in mean) <= 1:
        lines.append(f"warning: mean {_text(mean)} with input scale 1 is next to nothing; is it for pixels / 255?")
    palette = given.palette if given.palette and len(given.palette) == len(names) else distinct_palette(len(names))
    values: Dict[str, Any] = {
        "arch": given.arch or "foreign",
        "classes": names,
        "palette": palette,
        "input_hw": size_hw,
        "mean": tuple(value * (scale / SCALE) for value in mean),
        "std": tuple(value * (scale / SCALE) for value in std),
        "color_order": given.color_order or "rgb",
    }
    if given.whole is not None:
        return dataclasses.replace(given.whole, **values), "\n".join(lines)
    return ModelSpec(blocks="", **values), "\n".join(lines)


def _names(given: Given, channels: Optional[int], hw: Tuple[int, int], where: str) -> Tuple[Tuple[str, ...], List[str]]:
    """The names of the classes, and what is to be said of names that were made up."""
    count = len(given.classes) if given.classes else given.count
    if count is None and channels is None:
        raise GradsegError(f"{where}: gives labels, which do not tell how many classes there are; say --classes LIST")
    if given.classes and channels == 2 and count == 1:  # a network that finds one thing
        return ("background", *given.classes), []
    number = channels if count is None else count
    assert number is not None
    if channels is not None and number != channels:
        raise GradsegError(
            f"{where}: its output is {[1, channels, *hw]}, its spec needs logits {[1, number, *hw]} (1, classes, "
            "height, width); correct --classes or --spec"
        )
    if given.classes:
        return given.classes, []
    return tuple(f"class {i}" for i in range(number)), [f"classes called 'class 0' to 'class {number - 1}'"]


def _values(raw: Mapping[str, Any], where: Any) -> Dict[str, Any]:
    """The fields of `Given` from parsed JSON or options; `where` says how a field is called in an error."""
    values: Dict[str, Any] = {}
    for name, value in raw.items():
        if name in ("mean", "std"):
            values[name] = _three(value, where(name))
            if name == "std" and min(values[name]) <= 0:
                raise GradsegError(f"{where(name)}: std must be above 0")
        elif name in ("input_scale", "threshold"):
            if not _is_number(value) or (name == "input_scale" and value <= 0):
                raise GradsegError(f"{where(name)}: expected a number{' above 0' if name == 'input_scale' else ''}")
            values[name] = float(value)
        elif name == "input_hw":
            if not isinstance(value, list) or len(value) != 2 or not all(type(side) is int for side in value):
                raise GradsegError(f"{where(name)}: expected [height, width] in pixels")
            values[name] = parse_size(f"{value[0]}x{value[1]}")
        elif name in ("color_order", "input", "output", "arch"):
            if not isinstance(value, str) or (name == "color_order" and value not in ORDERS):
                raise GradsegError(f"{where(name)}: expected {'rgb or bgr' if name == 'color_order' else 'a text'}")
            values[name] = value
    values.update(_classes_field(raw, where))
    return values


def _classes_field(raw: Mapping[str, Any], where: Any) -> Dict[str, Any]:
    classes, palette = raw.get("classes"), raw.get("palette")
    values: Dict[str, Any] = {}
    if type(classes) is int:
        values["count"] = _count(classes, where("classes"))
    elif classes is not None:
        if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
            raise GradsegError(f"{where('classes')}: expected a list of names, or their number")
        values["classes"] = tuple(classes)
    if palette is not None:
        count = len(values.get("classes", ())) or values.get("count")
        if not is_palette(palette, count):
            raise GradsegError(f"{where('palette')}: expected a list of [r, g, b] of 0..255, one for each of `classes`")
        values["palette"] = tuple((c[0], c[1], c[2]) for c in palette)
    return values


def _classes_option(text: str) -> Dict[str, Any]:
    """--classes: a file, a number, or names with commas."""
    path = Path(text)
    if path.is_file():
        if path.suffix.lower() == ".json":
            names, palette, _ = read_classes(path)
            return {"classes": names, "palette": palette}
        lines = tuple(line.strip() for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip())
        if len(lines) < 2:
            raise GradsegError(f"--classes {text}: {len(lines)} line(s) of text; expected one name a line")
        return {"classes": lines}
    if text.isdecimal():
        return {"count": _count(int(text), f"--classes {text}")}
    listed = tuple(part.strip() for part in text.split(","))
    if len(listed) < 2 or not all(listed) or "/" in text:
        raise GradsegError(f"--classes {text}: no such file; expected a file, a number, or names such as road,car,sky")
    return {"classes": listed}


def _count(number: int, where: str) -> int:
    if not 2 <= number <= 255:
        raise GradsegError(f"{where}: expected 2 to 255 classes")
    return number


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _number(text: str) -> Any:
    """The number in a text, or the text, which will be refused by name."""
    try:
        return float(text)
    except ValueError:
        return text


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _three(values: Any, where: str) -> Three:
    wanted = "expected three numbers, one for each colour channel, such as 0.485,0.456,0.406"
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(_is_number(value) for value in values):
        raise GradsegError(f"{where}: {wanted}")
    return float(values[0]), float(values[1]), float(values[2])
