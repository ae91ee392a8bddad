"""GradSeg's own INT8 engine for CPUs: a .gsn file, run by the library of runtime/native."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from gradseg.base.conditions import usable_cores
from gradseg.base.errors import GradsegError
from gradseg.models.spec import ModelSpec
from gradseg.runtime.engines.protocol import check_batch
from gradseg.runtime.native.files import load_program
from gradseg.runtime.native.frames import ForSizes, frame_resize, label_resize, packed
from gradseg.runtime.native.library import ABI, open_library
from gradseg.runtime.native.program import HEAD, NativeOp


class NativeEngine:
    """A .gsn program on the CPU. See `engines.protocol.Engine`.

    Args:
        path: the file, as export/to_native.py writes it.
        threads: the caller's included; None: one for each core that this process may use.
        spec: in place of the file's own; of the same size and number of classes.
        isa: instructions to use, see `native.library.Library.isa`; None: the best that this CPU has.
    """

    def __init__(
        self, path: Path, threads: Optional[int] = None, spec: Optional[ModelSpec] = None, isa: Optional[str] = None
    ) -> None:
        library = open_library()
        self._program = load_program(path)
        self.spec = spec or self._program.spec
        known = self._program.spec
        if (self.spec.input_hw, self.spec.num_classes) != (known.input_hw, known.num_classes):
            raise GradsegError(f"{path}: its frame size or classes are not those of the spec given; leave it out")
        used = library.isa(isa)
        if used is None:
            raise GradsegError(f"{path}: this CPU or build has no {isa or 'instructions for the native engine'}", 3)
        self.name, self.device, self.precision = str(path), "CPU", self._program.precision
        self.backend = f"gradseg-native {ABI} ({used})"
        cores = usable_cores() if threads is None else threads
        self.threads: Optional[int] = cores
        self.batch, self.frame_hw = 1, known.input_hw
        self.calibration: Optional[Dict[str, Any]] = self._program.calibration
        self._labels: np.ndarray[Any, Any] = np.zeros((1, *self.frame_hw), np.uint8)
        self._plan = library.create(self._program, cores, isa)
        self._resize, self._spread = ForSizes(frame_resize), ForSizes(label_resize)

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 BGR (1, h, w, 3) → uint8 labels (1, h, w), valid until the next call."""
        check_batch(batch, 1, self.frame_hw)
        self._plan.run(batch.ctypes.data, 3 * self.frame_hw[1], self._labels.ctypes.data)
        return self._labels

    def expect(self, frame_hw: Tuple[int, int]) -> None:
        """See `engines.protocol.Loading`."""
        self._resize.expect(frame_hw, self.frame_hw)
        self._spread.expect(self.frame_hw, frame_hw)

    def load(self, frame: np.ndarray[Any, Any]) -> bool:
        """See `engines.protocol.Loading`."""
        frame_hw = (int(frame.shape[0]), int(frame.shape[1]))
        resize = self._resize(frame_hw, self.frame_hw) if frame_hw != self.frame_hw and packed(frame) else None
        return resize is not None and self._plan.load(resize.address, frame.ctypes.data, frame.strides[0])

    def infer_loaded(self) -> np.ndarray[Any, Any]:
        """As `infer`, of the frame that `load` took."""
        self._plan.run(None, 0, self._labels.ctypes.data)
        return self._labels

    def spread(self, out: np.ndarray[Any, Any]) -> bool:
        """See `engines.protocol.Loading`."""
        out_hw = (int(out.shape[0]), int(out.shape[1]))
        repeat = self._spread(self.frame_hw, out_hw) if out_hw != self.frame_hw else None
        if repeat is not None:
            self._plan.spread(repeat.address, out.ctypes.data)
        return repeat is not None

    def borrow_core(self) -> None:
        """See `engines.protocol.Lending`."""
        self._plan.borrow()

    def return_core(self) -> None:
        """See `engines.protocol.Lending`."""
        self._plan.give_back()

    def profile(self, batch: Optional[np.ndarray[Any, Any]] = None) -> List[Tuple[str, int, int, float]]:
        """(name, multiply-accumulates, bytes read and written, milliseconds) of each operator for one frame.

        What the library computes together with the operator behind it takes 0 ms. batch: as for `infer`; None: a black
        frame.
        """
        frame = np.zeros((1, *self.frame_hw, 3), np.uint8) if batch is None else batch
        check_batch(frame, 1, self.frame_hw)
        self._plan.run(frame.ctypes.data, 3 * self.frame_hw[1], self._labels.ctypes.data, profile=True)
        times = self._plan.nanoseconds / 1e6
        return [
            (op.name, op.macs, self._bytes(op), float(milliseconds))
            for op, milliseconds in zip(self._program.ops, times)
        ]

    def _bytes(self, op: NativeOp) -> int:
        """What an operator reads and writes if nothing is kept in cache."""
        tensors = self._program.tensors
        source = tensors[op.input]
        total = source.height * source.width * op.cin * (1 + source.dtype)
        pixels = op.out_h * op.out_w
        total += pixels if op.kind == HEAD else pixels * op.cout * (1 + tensors[op.output].dtype)
        total += pixels * op.cout if op.residual >= 0 else 0
        return total + sum(array.nbytes for array in (op.weight, op.scale, op.bias) if array is not None)

    def close(self) -> None:
        """Gives its memory and threads back."""
        self._plan.close()
