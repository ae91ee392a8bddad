"""Labelled frames in folders: CamVid, and the user's own images/ + labels/ + classes.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Sequence, Tuple

import cv2
import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.base.files import read_json, require_file
from gradseg.data.base import IGNORE, Dataset, Sample
from gradseg.models.spec import CAMVID_CLASSES, CAMVID_PALETTE, Rgb, distinct_palette

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def list_images(folder: Path) -> List[Path]:
    """The image files directly in `folder`, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def read_image(path: Path) -> np.ndarray[Any, Any]:
    """uint8 BGR (H, W, 3); raises GradsegError naming a file that is missing, empty or not decodable."""
    image = cv2.imread(str(require_file(path, "an image")), cv2.IMREAD_COLOR)
    if image is None:
        raise GradsegError(f"{path}: corrupt or not an image; remove it or replace it")
    return image


class FolderData(Dataset):
    """DIR/images/NAME.(jpg|png|…) with DIR/labels/NAME.png, uint8 class indices.

    `ignore` lists label values that are not counted; they and 255 come out as `IGNORE`. A label outside the class
    range, or of another size than its image, raises GradsegError naming the file when it is read.
    """

    def __init__(
        self, folder: Path, classes: Sequence[str], palette: Sequence[Rgb], ignore: Sequence[int] = (IGNORE,)
    ) -> None:
        self.classes, self.palette = tuple(classes), tuple(palette)
        images, labels = folder / "images", folder / "labels"
        for part in (images, labels):
            if not part.is_dir():
                raise GradsegError(f"{folder}: no folder {part.name}/ inside; expected images/ and labels/")
        self.pairs: List[Tuple[Path, Path]] = [(p, labels / f"{p.stem}.png") for p in list_images(images)]
        if not self.pairs:
            raise GradsegError(f"{images}: no images ({', '.join(IMAGE_SUFFIXES)}) inside")
        missing = [str(label) for _, label in self.pairs if not label.is_file()]
        if missing:
            raise GradsegError(f"{folder}: {len(missing)} of {len(self.pairs)} images lack a label, first {missing[0]}")
        # -1 marks values that are neither a class nor ignored
        table = np.full(256, -1, np.int16)
        table[: len(self.classes)] = np.arange(len(self.classes))
        table[[*ignore, IGNORE]] = IGNORE
        self._table = table

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        image_path, label_path = self.pairs[index]
        image = read_image(image_path)
        raw = cv2.imread(str(require_file(label_path, "a label image")), cv2.IMREAD_UNCHANGED)
        if raw is None:
            raise GradsegError(f"{label_path}: corrupt or not an image")
        if raw.ndim != 2 or raw.dtype != np.uint8:
            raise GradsegError(
                f"{label_path}: a label is one channel of uint8 class indices; found shape {raw.shape}, {raw.dtype}"
            )
        if raw.shape != image.shape[:2]:
            found, needed = ("x".join(str(v) for v in each.shape[:2]) for each in (raw, image))
            raise GradsegError(f"{label_path}: label is {found} (height x width), its image {needed}")
        mapped = self._table[raw]
        if mapped.min() < 0:
            bad = sorted({int(v) for v in np.unique(raw[mapped < 0])})
            count = len(self.classes)
            raise GradsegError(f"{label_path}: label values {bad[:8]} outside the {count} classes (0..{count - 1})")
        return Sample(image, mapped.astype(np.uint8), image_path.stem)


def camvid(folder: Path) -> FolderData:
    """CamVid in the 11-class split of the SegNet tutorial (Brostow et al.); index 11 is ignored."""
    return FolderData(folder, CAMVID_CLASSES, CAMVID_PALETTE, ignore=(11,))


def folder_with_classes(folder: Path) -> FolderData:
    """The user's own data. classes.json: {"classes": [name, …], "palette": [[r, g, b], …]?, "ignore": [value, …]?}."""
    classes, palette, ignore = read_classes(folder / "classes.json")
    return FolderData(folder, classes, palette, ignore)


def read_classes(path: Path) -> Tuple[Tuple[str, ...], Tuple[Rgb, ...], Tuple[int, ...]]:
    """Names, RGB palette (generated if absent) and ignored values of a classes.json; GradsegError if ill-formed."""
    raw = read_json(path, 'a classes.json such as {"classes": ["road", "car"]}')
    fields: Any = {"classes": raw} if isinstance(raw, list) else raw
    if not isinstance(fields, dict) or not isinstance(fields.get("classes"), list):
        raise GradsegError(f'{path}: expected {{"classes": [names]}} or a list of names')
    names, palette, ignore = fields["classes"], fields.get("palette"), fields.get("ignore", [])
    if not all(isinstance(name, str) for name in names) or not 2 <= len(names) <= 255:
        raise GradsegError(f"{path}: {len(names)} classes; expected 2 to 255 names")
    if palette is not None and not is_palette(palette, len(names)):
        raise GradsegError(f"{path}: palette must hold {len(names)} colours [r, g, b] of 0..255")
    ignored = tuple(ignore) if isinstance(ignore, list) else (ignore,)
    if not all(_is_byte(v) for v in ignored):
        raise GradsegError(f"{path}: ignore must hold label values 0..255")
    colours = distinct_palette(len(names)) if palette is None else tuple((r, g, b) for r, g, b in palette)
    return tuple(names), colours, ignored


def is_palette(value: Any, count: Any) -> bool:
    """Whether `value` is a list of `count` colours [r, g, b] of 0..255."""
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(isinstance(c, list) and len(c) == 3 and all(_is_byte(v) for v in c) for c in value)


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255
