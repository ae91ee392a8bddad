"""What the engines of the survey have in common: where a network comes from, and how a runner is found.

An engine is a module `with_NAME.py` that runs under whatever Python has its packages, so it needs NumPy and the
standard library until it is called. It has

PIP, NEEDS       the command that brings it; its packages' import names
PRECISIONS       what `convert` takes
convert          (Source, precision, folder) → Path: writes the engine's own file(s) there; what `Runner` opens
Runner           (Path, precision, threads): a network ready to run. `version`: of the library and of its converter, for
                 the record. `run`: float32 (1, 3, h, w) → logits float32 (1, classes, h, w), valid until the next call
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import Any, Tuple

import numpy as np

from gradseg.base.errors import GradsegError

# by the first column of the table; a module may hold more than one
ENGINES = ("onnxruntime", "openvino", "ncnn", "mnn", "litert", "executorch")


@dataclass(frozen=True)
class Source:
    """One network in the logits form: input float32 (1, 3, h, w), normalised as it was trained; logits float32
    (1, classes, h, w). checkpoint: GradSeg's .pth. onnx: the same network exported. frames: .npy, float32
    (frames, 3, h, w), procedural scenes for calibration and comparison. input_hw: (h, w).
    """

    checkpoint: str
    onnx: str
    frames: str
    input_hw: Tuple[int, int]

    def load_frames(self) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = np.load(self.frames, allow_pickle=False)
        return found

    def load_network(self) -> Any:
        """The torch module in eval mode. Needs torch."""
        from gradseg.models.checkpoint import load_checkpoint

        return load_checkpoint(self.checkpoint).network


class Unsupported(GradsegError):  # noqa: N818  a row of the table says so
    """What this engine cannot do here; the message is the reason that stands in the result."""


def engine(name: str) -> Any:
    """The module of an engine."""
    return importlib.import_module(f"gradseg.benchmarks.survey.with_{name}")


def missing(module: Any) -> Tuple[str, ...]:
    """The packages of `module.NEEDS` that this Python lacks."""
    return tuple(name for name in module.NEEDS if not _found(name))


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def versions(*distributions: str) -> str:
    """ "name 1.2, other 3" of what is installed."""
    texts = []
    for name in distributions:
        try:
            texts.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(texts)
