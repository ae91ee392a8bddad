"""Reads the folder that `gpu.py --prepare` wrote: networks, frames, ONNX Runtime's labels. NumPy and OpenCV only.

index.json           what there is, with SHA-256 of every file
networks.xz          the ONNX files one after the other: LZMA keeps equal weights once
frames/              frames, and their true labels (PNG, 255 is ignored)
labels/MODEL/KIND/   ONNX Runtime's labels (blue) and how decided they are (green: 0 a near-tie in FP32, 1 one for FP16
                     and INT8, 2 decided); KIND is fp32, int8, or frame (FP32 with the resize inside)
torch/MODEL.pth      checkpoints, for PyTorch in the same run
"""

from __future__ import annotations

import hashlib
import lzma
import zlib
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import cv2
import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.base.files import read_json, require_file, sha256_of
from gradseg.commands import command
from gradseg.data.folders import read_image
from gradseg.export.trt.options import PRECISIONS as PRECISIONS
from gradseg.models.spec import ModelSpec

FORMAT = "gradseg.gpu-pack/2"
INDEX, NETWORKS = "index.json", "networks.xz"
BORDERS = ("network", "frame")  # takes frames of the network's size, or any camera frame's with the resize inside
FP32_TIE, HALF_TIE = 1e-4, 1e-2  # relative distance of the two best scores below which a label is not decided
UNDECIDED, UNDECIDED_HALF, DECIDED = 0, 1, 2


class Pack:
    """A prepared folder. Everything is checked against its SHA-256 once, when it is opened.

    Raises GradsegError for a folder that is not one, is damaged, or lacks a file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: Dict[str, Any] = _checked(folder)
        self.sha256 = sha256_of(folder / INDEX)
        self.models: List[str] = list(self.index["models"])
        self.input_hw: Tuple[int, int] = _size(self.index["input_hw"])
        self.frame_hw: Tuple[int, int] = _size(self.index["frame_hw"])
        self.classes: Tuple[str, ...] = tuple(self.index["data"]["classes"])
        self._networks = lzma.decompress((folder / NETWORKS).read_bytes())
        self._decoded: Dict[str, np.ndarray[Any, Any]] = {}  # every engine is compared on the same frames

    def __len__(self) -> int:
        return len(self.index["frames"])

    def spec(self, model: str) -> ModelSpec:
        return ModelSpec.from_dict(self.index["models"][model]["spec"], f"{self.folder / INDEX}: {model}")

    def onnx(self, model: str, precision: str, border: str, typed: bool) -> Tuple[bytes, Tuple[str, ...]]:
        """The ONNX file for one engine, and the nodes that it must compute in FP32.

        typed: for builders that take the precision from the ONNX alone. GradsegError if the pack holds none.
        """
        try:
            entry = self.index["models"][model]["onnx"][border][precision]["typed" if typed else "weak"]
        except KeyError as error:
            raise GradsegError(f"{self.folder}: holds no {precision} network of {model} ({border} size)") from error
        data = self._networks[entry["start"] : entry["start"] + entry["bytes"]]
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise GradsegError(
                f"{self.folder}: the {precision} network of {model} is not what {INDEX} says; copy again"
            )
        return data, tuple(entry["keep_fp32"])

    def image(self, index: int) -> Tuple[np.ndarray[Any, Any], bool]:
        """Frame `index`, uint8 BGR (H, W, 3), and whether these are the pixels that ONNX Runtime saw.

        JPEG decoders may differ by a grey level; then the frame is good for mIoU, not to compare labels with.
        """
        entry = self.index["frames"][index]
        if entry["image"] not in self._decoded:
            self._decoded[entry["image"]] = read_image(self.folder / entry["image"])
        image = self._decoded[entry["image"]]
        return image, zlib.crc32(image.tobytes()) == entry["pixels_crc32"]

    def truth(self, index: int) -> np.ndarray[Any, Any]:
        """The true labels of frame `index`, uint8 (H, W)."""
        labels: np.ndarray[Any, Any] = self._stored(self.index["frames"][index]["label"], 1)[0]
        return labels

    def references(self, model: str, kind: str) -> int:
        """For how many frames, from the first on, ONNX Runtime's labels are there."""
        return len(self.index["models"][model]["labels"].get(kind, []))

    def reference(self, model: str, kind: str, index: int) -> Tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """ONNX Runtime's labels and how decided they are, both uint8 of one shape."""
        labels, levels = self._stored(self.index["models"][model]["labels"][kind][index], 2)
        return labels, levels

    def counts(self, model: str, precision: str, border: str) -> Dict[str, Any]:
        """What `on_gpu.counts.counts_of` found."""
        counts: Dict[str, Any] = self.index["models"][model]["counts"][border][precision]
        return counts

    def scored(self, model: str) -> bool:
        """Whether mIoU means something: the network was trained, on the classes of these frames."""
        entry = self.index["models"][model]
        return bool(entry["trained"]) and tuple(entry["spec"]["classes"]) == self.classes

    def check_all(self) -> int:
        """How many frames OpenCV decodes to other pixels here than where they were packed.

        GradsegError unless every network can be put together, and some frame is decoded to the same pixels.
        """
        for model in self.models:
            for border, precisions in self.index["models"][model]["onnx"].items():
                for precision, forms in precisions.items():
                    for form in forms:
                        self.onnx(model, precision, border, form == "typed")
        other = [index for index in range(len(self)) if not self.image(index)[1]]
        if len(other) == len(self):
            raise GradsegError(
                f"{self.folder}: OpenCV {cv2.__version__} decodes every frame to other pixels than those packed, so "
                "that labels cannot be compared"
            )
        return len(other)

    def checkpoint(self, model: str) -> Optional[Path]:
        name = self.index["models"][model].get("torch")
        return self.folder / name if name else None

    def _stored(self, name: str, planes: int) -> np.ndarray[Any, Any]:
        """The first planes of a label image, uint8 (planes, h, w), read once."""
        if name not in self._decoded:
            found = cv2.imread(str(require_file(self.folder / name, "a label image")), cv2.IMREAD_UNCHANGED)
            if found is None or found.dtype != np.uint8 or (1 if found.ndim == 2 else found.shape[2]) < planes:
                raise GradsegError(f"{self.folder / name}: not a label image of {planes} planes; prepare it again")
            self._decoded[name] = np.ascontiguousarray(np.atleast_3d(found)[..., :planes].transpose(2, 0, 1))
        return self._decoded[name]


def _checked(folder: Path) -> Dict[str, Any]:
    if not folder.is_dir():
        raise GradsegError(
            f"{folder}: no such folder; make it with {command('benchmarks/gpu.py', '--prepare', folder)}"
        )
    index = read_json(folder / INDEX, "the index that gpu.py --prepare writes last")
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise GradsegError(f"{folder / INDEX}: format {found!r}, needed {FORMAT!r}; prepare it again with this version")
    lacking = {"input_hw", "frame_hw", "data", "frames", "models", "files"} - set(index)
    if lacking:
        raise GradsegError(f"{folder / INDEX}: lacks {', '.join(sorted(lacking))}; prepare it again")
    for name, digest in index["files"].items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise GradsegError(f"{folder / INDEX}: file {name!r} lies outside the folder; prepare it again")
        if not path.is_file() or sha256_of(path) != digest:
            state = "is damaged" if path.is_file() else "is missing"
            raise GradsegError(f"{path}: {state}; copy the whole folder again, or prepare it again")
    return index


def _size(raw: Any) -> Tuple[int, int]:
    return int(raw[0]), int(raw[1])
