"""Data specs: one line of text that names labelled frames. NumPy and OpenCV only.

camvid:DIR    DIR/images/*.jpg|png, DIR/labels/*.png of the same name, index 11 ignored
folder:DIR    the same layout with the user's own DIR/classes.json
scenes:       procedural street scenes, options such as scenes:frames=200,seed=3,size=360x480
A + B         both, one after the other, if their classes are the same
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Callable, Dict, List, Optional

from gradseg.base.errors import GradsegError
from gradseg.data.base import Concat, Dataset, spread
from gradseg.data.folders import camvid, folder_with_classes
from gradseg.data.scenes.frames import ScenesData
from gradseg.models.spec import parse_size

GRAMMAR = "camvid:DIR, folder:DIR, scenes:[frames=N,seed=S,size=HxW], or several joined by +"


def is_spec(text: str) -> bool:
    """Whether a text is a data spec, by its first scheme."""
    return text.partition(":")[0] in SCHEMES and ":" in text


def parts_of(text: str) -> List[str]:
    """A spec's single specs, or the one text of another kind of source."""
    return re.split(rf"\s*\+\s*(?=(?:{'|'.join(SCHEMES)}):)", text.strip())


def paths_of(text: str) -> List[str]:
    """The files, folders or wildcards that a spec or another source names, as written; none for scenes."""
    bare = [part.partition(":")[2] if is_spec(part) else part for part in parts_of(text) if part[:7] != "scenes:"]
    return [path.strip() for path in bare]


def open_data(text: str, limit: Optional[int] = None) -> Dataset:
    """Opens a data spec; `limit` keeps that many frames, evenly spread. GradsegError for a spec it cannot open."""
    opened = [_open_one(part) for part in parts_of(text)]
    data = opened[0] if len(opened) == 1 else Concat(opened)
    return spread(data, limit) if limit is not None else data


def _open_one(text: str) -> Dataset:
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in SCHEMES:
        raise GradsegError(f"data spec {text!r}: expected {GRAMMAR}")
    if scheme != "scenes" and not (rest and Path(rest).is_dir()):
        raise GradsegError(f"data spec {text!r}: no such folder {rest!r}")
    return SCHEMES[scheme](rest)


def scenes_from_options(text: str) -> ScenesData:
    """'frames=200,seed=3,size=360x480' → still frames; every option has a default. GradsegError for an unknown one."""
    options = parse_options(text, ("frames", "seed", "size"), "scenes:")
    size_hw = parse_size(options.get("size", "360x480"))
    return ScenesData(whole_number(options, "frames", 200), size_hw, whole_number(options, "seed", 0))


SCHEMES: Dict[str, Callable[[str], Dataset]] = {
    "camvid": lambda folder: camvid(Path(folder)),
    "folder": lambda folder: folder_with_classes(Path(folder)),
    "scenes": scenes_from_options,
}


def parse_options(text: str, known: tuple[str, ...], where: str) -> Dict[str, str]:
    """'a=1,b=2' → {'a': '1', 'b': '2'}; raises GradsegError for an option that is not in `known`."""
    options: Dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or key not in known:
            raise GradsegError(f"{where}{text}: unknown option {part!r}; known: {', '.join(k + '=…' for k in known)}")
        options[key] = value
    return options


def whole_number(options: Dict[str, str], key: str, default: int) -> int:
    """An option's value, above 0 if it counts frames; raises GradsegError for anything else."""
    value = options.get(key, str(default))
    if not value.isdecimal() or (key == "frames" and int(value) < 1):
        raise GradsegError(f"scenes: {key}={value}: expected a whole number{' above 0' if key == 'frames' else ''}")
    return int(value)
