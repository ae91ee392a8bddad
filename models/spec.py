"""`ModelSpec`: everything a user of a trained network must know, torch-free, carried inside every artefact."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Sequence, Tuple

from gradseg.base.errors import GradsegError

STRIDE = 8  # three stride-2 downsamplers: height and width must be multiples of this
MAX_SIDE = 16384  # pixels; beyond it a size is a typing error
BLOCKS = ("dense", "selective", "all")
DOWNSAMPLERS = ("conv", "pool-concat")

Rgb = Tuple[int, int, int]

# Classes and their RGB colours. CamVid: its colour key (Brostow et al., Pattern Recognition Letters 2009).
CAMVID: Dict[str, Rgb] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (0, 0, 192),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
CAMVID_CLASSES, CAMVID_PALETTE = tuple(CAMVID), tuple(CAMVID.values())

# Cityscapes' 19 evaluated classes (Cordts et al., CVPR 2016) and the 20th "void" of the public ERFNet checkpoints.
CITYSCAPES: Dict[str, Rgb] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
    "void": (0, 0, 0),
}
CITYSCAPES_CLASSES, CITYSCAPES_PALETTE = tuple(CITYSCAPES), tuple(CITYSCAPES.values())


@dataclass(frozen=True)
class Arch:
    """The architecture half of a spec: one point of the ERFNet family.

    blocks: which encoder blocks are Conv-modules instead of Non-bottleneck-1D: none ("dense"), the last two of the
        64-channel and the last four of the 128-channel ones ("selective", Table 2 of the gradual-grouping paper),
        or "all" (Table 1).
    groups, shuffle: of the encoder Conv-modules' 1x1 convolutions; the decoder's stay dense, as published.
    """

    blocks: str
    groups: int = 1
    shuffle: bool = False
    downsampler: str = "conv"
    decoder_blocks: int = 1
    light_decoder: bool = False


def _family() -> Dict[str, Arch]:
    table = {
        "erfnet": Arch("dense", downsampler="pool-concat", decoder_blocks=2),
        "erfnet-paper": Arch("dense"),
        "d": Arch("selective"),
        "d-star": Arch("all"),
        "d-star-light": Arch("all", light_decoder=True),
    }
    for groups in (2, 4, 8):
        for shuffle in (False, True):
            name = f"dg{groups}{'s' if shuffle else ''}"
            table[name] = Arch("selective", groups, shuffle)
            table[f"{name}-star"] = Arch("all", groups, shuffle)
    for groups in (2, 4):
        table[f"dg{groups}-star-light"] = Arch("all", groups, light_decoder=True)
    return table


ARCHS: Mapping[str, Arch] = _family()


@dataclass(frozen=True)
class ModelSpec:
    """A network's contract: what goes in, what comes out, and how it is built. Frozen; JSON round trip is exact.

    arch: architecture id, a key of `ARCHS` (or any name for a network that is not ours, then `blocks` is "").
    classes, palette: names and RGB colours, one per label value 0..C-1.
    input_hw: (height, width) in pixels that the network sees; multiples of 8.
    mean, std: in units of pixel/255, in the order of `color_order`: x = (pixel / 255 - mean) / std.
    color_order: "rgb" or "bgr", the channel order the network was trained with (frames at the border are always BGR).
    """

    arch: str
    classes: Tuple[str, ...]
    palette: Tuple[Rgb, ...]
    input_hw: Tuple[int, int]
    mean: Tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: Tuple[float, float, float] = (1.0, 1.0, 1.0)
    color_order: str = "rgb"
    blocks: str = "all"
    groups: int = 1
    shuffle: bool = False
    downsampler: str = "conv"
    decoder_blocks: int = 1
    light_decoder: bool = False

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise GradsegError(f"model spec of {self.arch!r}: {problem}")

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def with_size(self, size_hw: Tuple[int, int]) -> ModelSpec:
        """The same spec at another input size (h, w); raises GradsegError if the network cannot take it."""
        return dataclasses.replace(self, input_hw=(int(size_hw[0]), int(size_hw[1])))

    def to_dict(self) -> Dict[str, Any]:
        """Plain JSON types; `from_dict` is its inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @staticmethod
    def from_dict(raw: Mapping[str, Any], where: str = "model spec") -> ModelSpec:
        """Builds a spec from parsed JSON; a missing, unknown or ill-typed field raises a GradsegError naming it."""
        names = {field.name for field in dataclasses.fields(ModelSpec)}
        if not isinstance(raw, Mapping):
            raise GradsegError(f"{where}: expected a JSON object, found {type(raw).__name__}")
        unknown = sorted(set(raw) - names)
        missing = sorted({"arch", "classes", "palette", "input_hw"} - set(raw))
        if unknown or missing:
            raise GradsegError(
                f"{where}: missing fields {missing}, unknown fields {unknown}; known are {sorted(names)}"
            )
        problem = _type_problem(raw)
        if problem:
            raise GradsegError(f"{where}: ill-typed field: {problem}")
        values: Dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()
        }
        values["palette"] = tuple(tuple(rgb) for rgb in raw["palette"])
        for key in {"mean", "std"} & set(raw):
            values[key] = tuple(float(v) for v in raw[key])
        return ModelSpec(**values)

    @staticmethod
    def from_json(text: str, where: str = "model spec") -> ModelSpec:
        """Inverse of `to_json`; raises GradsegError if the text is not JSON or not a spec."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise GradsegError(f"{where}: not JSON ({error})") from error
        return ModelSpec.from_dict(raw, where)


def _type_problem(raw: Mapping[str, Any]) -> str:
    """The first field of parsed JSON that has another type than the spec's, or an empty string."""
    plain = {"arch": str, "color_order": str, "blocks": str, "downsampler": str, "groups": int, "decoder_blocks": int}
    plain.update(shuffle=bool, light_decoder=bool)
    for name, kind in plain.items():
        if name in raw and type(raw[name]) is not kind:
            return f"{name} is {raw[name]!r}, expected {kind.__name__}"
    lists = {"classes": (str,), "input_hw": (int,), "mean": (int, float), "std": (int, float)}
    for name, kinds in lists.items():
        value = raw.get(name, [])
        if not isinstance(value, (list, tuple)) or any(type(item) not in kinds for item in value):
            return f"{name} is {value!r}, expected a list of {' or '.join(kind.__name__ for kind in kinds)}"
        if any(type(item) is float and not math.isfinite(item) for item in value):
            return f"{name} holds NaN or infinity"
    palette = raw["palette"]
    if not isinstance(palette, (list, tuple)) or not all(isinstance(rgb, (list, tuple)) for rgb in palette):
        return "palette, expected a list of [r, g, b]"
    return "" if all(type(v) is int for rgb in palette for v in rgb) else "palette, expected whole numbers"


def _problem(spec: ModelSpec) -> str:
    """The first thing wrong with a spec, or an empty string."""
    count = len(spec.classes)
    if not 2 <= count <= 255:
        return f"{count} classes; 2 to 255 fit uint8 labels with 255 kept for ignored pixels"
    if len(spec.palette) != count:
        return f"{len(spec.palette)} palette colours for {count} classes"
    if any(len(rgb) != 3 or min(rgb) < 0 or max(rgb) > 255 for rgb in spec.palette):
        return "palette colours must be three values 0..255"
    if spec.color_order not in ("rgb", "bgr"):
        return f"color_order {spec.color_order!r}; use 'rgb' or 'bgr'"
    if len(spec.mean) != 3 or len(spec.std) != 3 or min(spec.std) <= 0:
        return "mean and std need three values each, std above 0"
    if len(spec.input_hw) != 2 or max(spec.input_hw) > MAX_SIDE:
        return f"input_hw must be (height, width), each at most {MAX_SIDE}"
    if spec.blocks:
        return _family_problem(spec) or size_problem(spec.input_hw)
    return "" if min(spec.input_hw) >= 1 else "input size must be positive"


def _family_problem(spec: ModelSpec) -> str:
    published = ARCHS.get(spec.arch)
    if published is not None:
        other = [name for name, value in dataclasses.asdict(published).items() if getattr(spec, name) != value]
        if other:
            return f"{', '.join(other)} disagree with architecture {spec.arch!r}; a variant needs a name of its own"
    if spec.blocks not in BLOCKS:
        return f"blocks {spec.blocks!r}; one of {', '.join(BLOCKS)}"
    if spec.downsampler not in DOWNSAMPLERS:
        return f"downsampler {spec.downsampler!r}; one of {', '.join(DOWNSAMPLERS)}"
    if spec.decoder_blocks not in (1, 2):
        return f"decoder_blocks {spec.decoder_blocks}; 1 or 2"
    if spec.groups < 1 or 64 % spec.groups:
        return f"groups {spec.groups}; must divide 64"
    return ""


def size_problem(size_hw: Sequence[int], stride: int = STRIDE) -> str:
    """Why (h, w) does not fit a network that downsamples by `stride`, with the nearest sizes that do; else ''."""
    height, width = (int(v) for v in size_hw)
    if height >= stride and width >= stride and height % stride == 0 and width % stride == 0:
        return ""
    low = [max(stride, v // stride * stride) for v in (height, width)]
    high = [max(stride, -(-v // stride) * stride) for v in (height, width)]
    return (
        f"input size {height}x{width} (height x width) is not divisible by {stride}; "
        f"{low[0]}x{low[1]} and {high[0]}x{high[1]} fit"
    )


def parse_size(text: str) -> Tuple[int, int]:
    """'360x480' (height x width) → (360, 480); raises GradsegError on anything else."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and 0 < int(part) <= MAX_SIDE for part in parts):
        raise GradsegError(f"size {text!r}: write HEIGHTxWIDTH in pixels, such as 360x480, each at most {MAX_SIDE}")
    return int(parts[0]), int(parts[1])


def spec_for(
    arch: str,
    classes: Sequence[str] = CAMVID_CLASSES,
    palette: Sequence[Rgb] = CAMVID_PALETTE,
    input_hw: Tuple[int, int] = (360, 480),
    **preprocessing: Any,
) -> ModelSpec:
    """The spec of a family member by its id; `preprocessing` may set mean, std and color_order.

    Raises GradsegError for an id that is not in `ARCHS`, listing those that are.
    """
    if arch not in ARCHS:
        raise GradsegError(f"unknown architecture {arch!r}; known: {', '.join(ARCHS)}")
    fields = dataclasses.asdict(ARCHS[arch])
    return ModelSpec(arch, tuple(classes), tuple(palette), input_hw, **fields, **preprocessing)


def distinct_palette(count: int) -> Tuple[Rgb, ...]:
    """`count` distinguishable RGB colours by bit interleaving, the scheme of the Pascal VOC devkit's colour map."""
    colours = []
    for index in range(1, count + 1):
        rgb = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                rgb[channel] |= ((index >> (3 * bit + channel)) & 1) << (7 - bit)
        colours.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colours)
