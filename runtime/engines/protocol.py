"""The engine protocol: uint8 BGR batch in, uint8 labels out. Nothing outside asks which backend stands behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional, Protocol, Tuple, Union, runtime_checkable

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.base.files import read_json
from gradseg.commands import command
from gradseg.models.spec import ModelSpec

PLANS = (".plan", ".engine")
DESCRIBED = ("--mean", "A,B,C", "--std", "A,B,C", "--classes", "LIST")  # what an export wants of a foreign file


class Engine(Protocol):
    """A network ready to run on one device. Not thread-safe: one thread calls `infer`.

    spec: what the network was trained on and how it wants its input. name: the file's path.
    backend: library and version ("onnxruntime 1.20.0"). device: "CPU" or the accelerator's name.
    precision: "fp32", "int8", … as the artefact says. threads: CPU threads it computes with, None on a GPU backend.
    batch: how many frames one call takes, mostly 1. frame_hw: (height, width) of what `infer` takes and gives:
    spec.input_hw, or the frame size that was built into the artefact, which then resizes by itself.
    """

    spec: ModelSpec
    name: str
    backend: str
    device: str
    precision: str
    threads: Optional[int]
    batch: int
    frame_hw: Tuple[int, int]

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 BGR (batch, h, w, 3) with (h, w) = frame_hw → uint8 labels (batch, h, w), valid until the next call."""

    def close(self) -> None:
        """Releases the device. Calling it twice is harmless."""


@runtime_checkable
class Staged(Protocol):
    """What an engine has that would copy what it is given to memory of its own. Others compute on the given array."""

    @property
    def staging(self) -> np.ndarray[Any, Any]:
        """uint8 (batch, h, w, 3) to preprocess the next batch into, which then is not copied again; asked each time."""


@runtime_checkable
class Overlapping(Staged, Protocol):
    """What an engine has that can take the next batch while it works on one: at most two are under way."""

    def begin(self, batch: np.ndarray[Any, Any]) -> None:
        """Starts a batch and returns."""

    def finish(self) -> np.ndarray[Any, Any]:
        """Waits for the labels of the batch begun first; valid until the next `begin`."""


@runtime_checkable
class Loading(Protocol):
    """What an engine has that brings frames in and labels out at another size by itself, with all its threads."""

    def expect(self, frame_hw: Tuple[int, int]) -> None:
        """Gets ready for frames of (height, width), so that none of them takes longer than the others."""

    def load(self, frame: np.ndarray[Any, Any]) -> bool:
        """Takes uint8 BGR (H, W, 3) for the next `infer_loaded`, resized as `Preprocessor` does. False: did nothing."""

    def infer_loaded(self) -> np.ndarray[Any, Any]:
        """uint8 labels (1, h, w) of the frame that `load` took, valid until the next call."""

    def spread(self, out: np.ndarray[Any, Any]) -> bool:
        """The last labels at the size of `out`, contiguous uint8 (H, W), as `resize_labels`. False: did nothing."""


@runtime_checkable
class Lending(Protocol):
    """What an engine has that can free one of its cores while it works."""

    def borrow_core(self) -> None:
        """From any thread: the engine does with a thread less until `return_core`. Waits, a little, until it does."""

    def return_core(self) -> None:
        """Ends one `borrow_core`."""


def staged(engine: Engine) -> Optional[Staged]:
    """The engine, if it is one of those; asked once, when nothing is under way yet."""
    return engine if isinstance(engine, Staged) else None


def overlapping(engine: Engine) -> Optional[Overlapping]:
    """The engine, if it is one of those; asked once, when nothing is under way yet."""
    return engine if isinstance(engine, Overlapping) else None


def lending(engine: Engine, cores: int) -> Optional[Lending]:
    """The engine, if it is one of those and its threads take all the cores there are."""
    busy = engine.threads is not None and 1 < engine.threads >= cores
    return engine if busy and isinstance(engine, Lending) else None


def check_batch(batch: np.ndarray[Any, Any], count: int, frame_hw: Tuple[int, int]) -> None:
    """Raises GradsegError unless `batch` is C-contiguous uint8 (count, h, w, 3) with (h, w) = frame_hw."""
    if batch.dtype != np.uint8 or batch.shape != (count, *frame_hw, 3) or not batch.flags.c_contiguous:
        raise GradsegError(
            f"engine input: expected contiguous uint8 BGR {(count, *frame_hw, 3)}, found {batch.dtype} {batch.shape}"
        )


def read_sidecar(path: Path) -> Dict[str, Any]:
    """What stands beside an engine in NAME.json (m.plan → m.plan.json), parsed; {} if there is no such file.

    "spec" in it is the ModelSpec of a file that cannot carry one. Raises GradsegError if it is not a JSON object.
    """
    sidecar = path.with_name(path.name + ".json")
    if not sidecar.is_file():
        return {}
    found = read_json(sidecar, 'a JSON object with a "spec"')
    if not isinstance(found, dict):
        raise GradsegError(f'{sidecar}: expected a JSON object with a "spec"')
    return found


def read_spec(path: Union[str, Path]) -> ModelSpec:
    """A ModelSpec from a JSON file: the spec itself, or an object with it under "spec"."""
    found = Path(path)
    raw = read_json(found, "a ModelSpec as JSON")
    inner = raw.get("spec", raw) if isinstance(raw, dict) else raw
    short = isinstance(inner, dict) and not {"arch", "classes", "palette", "input_hw"} <= set(inner)
    if short and {"mean", "std", "classes", "color_order"} & set(inner):
        raise GradsegError(
            f"{found}: describes a network in short, which the export scripts read; convert the network first, then "
            "run what comes out, which needs no --spec: "
            f"{command('export/to_ort.py', 'MODEL.onnx', '--spec', path, '-o', 'OUT.onnx')}"
        )
    return ModelSpec.from_dict(inner, str(found))
