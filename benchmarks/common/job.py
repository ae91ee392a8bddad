"""One network as the workers get it, and what they make of it. NumPy only: engines may run under another Python."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Optional, Protocol, Tuple

import numpy as np

if TYPE_CHECKING:
    from gradseg.models.checkpoint import Checkpoint

INPUT_HW = (512, 1024)


@dataclass(frozen=True)
class Job:
    """One network. checkpoint: its file, inside `folder` and yet to be made if the network is untrained. calib: frames
    to calibrate on. val: labelled frames that `tune.py` decides by. tuned: the engine that it chose, None if it is to
    be called."""

    model: str
    checkpoint: Path
    trained: bool
    folder: Path
    threads: int
    calib: str = ""
    val: Optional[str] = None
    tuned: Optional[Path] = None
    input_hw: Tuple[int, int] = INPUT_HW
    calib_frames: int = 16

    def to_dict(self) -> Dict[str, Any]:
        """Plain JSON types."""
        raw = dataclasses.asdict(self)
        return {key: str(value) if isinstance(value, Path) else value for key, value in raw.items()}

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Job:
        """Inverse of `to_dict`."""
        paths = {name: raw[name] and Path(raw[name]) for name in ("checkpoint", "folder", "tuned")}
        return Job(**{**raw, **paths, "input_hw": tuple(raw["input_hw"])})

    def load(self) -> Checkpoint:
        """The network at the size that is measured. Needs torch."""
        from gradseg.models.checkpoint import load_checkpoint

        found = load_checkpoint(self.checkpoint)
        found.spec = found.spec.with_size(self.input_hw)
        return found


class Pipeline(Protocol):
    """From a frame to labels or logits, timed by itself.

    engine, precision: the class of engine ("onnxruntime") and of arithmetic ("fp32", "bf16", "int8") that it runs with.
    """

    engine: str
    precision: str

    def run(self, frame: np.ndarray[Any, Any]) -> Tuple[np.ndarray[Any, Any], Tuple[int, ...]]:
        """uint8 BGR (H, W, 3) → uint8 labels (H, W); in the survey float32 (1, 3, h, w), normalised → float32 logits
        (1, classes, h, w). Valid until the next call. And what each stage took, nanoseconds."""
        ...


def missing(packages: Iterable[str]) -> List[str]:
    """Those that this Python lacks."""
    return [name for name in packages if importlib.util.find_spec(name) is None]
