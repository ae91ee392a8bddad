"""The source grammar: one line of text → frames.

cam0, /dev/video0, v4l2:///dev/video0   a camera (live)
csi://0                                 a CSI camera of a Jetson, through GStreamer (live)
rtsp://…                                a network camera (live)
FILE                                    a video or an image
FOLDER, "WILDCARD"                      images, sorted by name (quote the wildcard)
scenes:size=360x480,seed=1,fps=25,frames=300   procedural moving street scenes; every option has a default
"""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any, Dict, List, Optional

from gradseg.base.errors import GradsegError
from gradseg.base.files import require_file
from gradseg.data.folders import IMAGE_SUFFIXES, list_images
from gradseg.data.specs import parse_options, whole_number
from gradseg.models.spec import parse_size
from gradseg.runtime.sources.cameras import CsiCamera, NetworkCamera, UsbCamera
from gradseg.runtime.sources.recordings import ImageSequence, SceneSource, VideoFile
from gradseg.runtime.sources.source import Source

LIVE = re.compile(r"cam\d+$|/dev/|csi:|rtsps?:|v4l2:")  # what does not show the same frames twice
GRAMMAR = (
    "a video or image file, a folder of images, a wildcard in quotes, cam0, /dev/video0, csi://0, rtsp://…, or scenes:"
)


def open_source(text: str) -> Source:
    """Opens a source by its line of text (see the module's docstring) and reads its first frame.

    Raises GradsegError for a line that is not understood, a file that is missing, empty or corrupt, a camera that
    cannot be read (exit code 2), or an OpenCV without the needed backend (exit code 3).
    """
    if not text.strip():
        raise GradsegError(f"empty source; expected {GRAMMAR}")
    if text.startswith("scenes:") or text == "scenes":
        return SceneSource(text, **_scene_options(text.partition(":")[2]))
    camera = re.match(r"(?:cam|v4l2://|/dev/video|v4l2:///dev/video)(\d+)$", text)
    if camera:
        return UsbCamera(text, int(camera.group(1)))
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(.*)$", text)
    if scheme:
        return _open_uri(text, scheme.group(1).lower(), scheme.group(2))
    images = image_paths(text)
    if images is not None:
        return ImageSequence(text, images)
    if not Path(text).exists():
        raise GradsegError(f"{text}: no such source; expected {GRAMMAR}")
    return VideoFile(str(require_file(text, "a video or an image")))


def image_paths(text: str) -> Optional[List[Path]]:
    """The images that a folder, a wildcard or an image file's path stands for, in order; None for other sources.

    Raises GradsegError for a folder or wildcard without images and for an image file that is empty or unreadable.
    """
    if not text.strip() or "://" in text:
        return None
    path = Path(text)
    if path.is_dir():
        images = list_images(path)
        if not images:
            raise GradsegError(f"{path}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
        return images
    if not path.exists():
        return _matches(text) if re.search(r"[*?\[]", text) else None
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return None
    return [require_file(path, "a video or an image")]


def _open_uri(text: str, scheme: str, rest: str) -> Source:
    if scheme == "csi":
        if not rest.isdecimal():
            raise GradsegError(f"{text}: expected csi://N with the number of the camera, such as csi://0")
        return CsiCamera(text, int(rest))
    if scheme in ("rtsp", "rtsps"):
        return NetworkCamera(text)
    if scheme == "file":
        return VideoFile(str(require_file(rest, "a video")))
    raise GradsegError(f"{text}: unknown kind of source {scheme}://; expected {GRAMMAR}")


def _matches(pattern: str) -> List[Path]:
    found = sorted(Path(p) for p in glob.glob(pattern, recursive=True))  # noqa: PTH207 patterns may be absolute
    images = [p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
    if not images:
        raise GradsegError(f"{pattern}: {len(found)} files match and none is an image ({', '.join(IMAGE_SUFFIXES)})")
    return images


def _scene_options(text: str) -> Dict[str, Any]:
    """'size=360x480,seed=1' → keyword arguments of `SceneSource`; raises GradsegError for an unknown or wrong one."""
    options = parse_options(text, ("size", "seed", "fps", "frames"), "scenes:")
    values: Dict[str, Any] = {"size_hw": parse_size(options.get("size", "360x480"))}
    values.update(seed=whole_number(options, "seed", 0), frames=whole_number(options, "frames", 300))
    try:
        values["fps"] = float(options.get("fps", "25"))
    except ValueError:
        values["fps"] = 0.0
    if not 0.0 < values["fps"] <= 1000.0:
        raise GradsegError(f"scenes: fps={options['fps']}: expected frames per second above 0")
    return values
