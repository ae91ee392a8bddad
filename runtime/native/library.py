"""The library of the native engine: found, loaded, called. Built from runtime/native by setup.py, into it; optional.

`GRADSEG_NATIVE_LIBRARY` names another build of it, for tests.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import numpy as np

from gradseg.base.errors import GradsegError
from gradseg.commands import ROOT
from gradseg.runtime.native.program import NativeProgram

ABI = 2
VARIABLE = "GRADSEG_NATIVE_LIBRARY"
WHEELS = "py3-none-manylinux_2_17_x86_64 and py3-none-manylinux_2_17_aarch64"
BUILD = (
    f"build it where a C compiler is: pip install -e {shlex.quote(str(ROOT))}"
    if (ROOT / "setup.py").is_file()
    else f"the wheels {WHEELS} have it"
) + " (or give the .onnx to ONNX Runtime)"

OP_INTEGERS = (
    *("kind", "input", "output", "residual", "cin", "cout", "groups", "out_offset"),
    *("kh", "kw", "sy", "sx", "dy", "dx", "pt", "pl", "oy", "py", "ox", "px", "out_h", "out_w"),
)
PEAK_KINDS = ("fp32", "int8")
PEAK_ROUNDS, PEAK_TURNS = 1_000_000, 8  # some milliseconds each


class TensorStruct(ctypes.Structure):
    """`gs_tensor`."""

    _fields_ = [(name, ctypes.c_int32) for name in ("height", "width", "channels", "halo", "dtype", "zero")]


class OpStruct(ctypes.Structure):
    """`gs_op`."""

    _fields_ = [
        *[(name, ctypes.c_int32) for name in OP_INTEGERS],
        ("residual_scale", ctypes.c_float),
        *[(name, ctypes.c_void_p) for name in ("weight", "scale", "bias")],
    ]


_AT, _INT, _LONG, _TEXT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_char_p
_TENSORS, _OPS = ctypes.POINTER(TensorStruct), ctypes.POINTER(OpStruct)
FUNCTIONS: Dict[str, Tuple[Any, ...]] = {  # name: what it gives, what it takes
    "gs_create": (_AT, _TENSORS, _INT, _OPS, _INT, _INT, _TEXT, _TEXT, _INT),
    "gs_destroy": (None, _AT),
    "gs_run": (None, _AT, _AT, _LONG, _AT, _AT),
    "gs_load": (_INT, _AT, _AT, _AT, _LONG),
    "gs_spread": (None, _AT, _AT, _AT),
    "gs_borrow": (None, _AT),
    "gs_return": (None, _AT),
    "gs_read": (_INT, _AT, _INT, _AT),
    "gs_isa": (_TEXT, _TEXT),
    "gs_peak": (_LONG, _INT, _LONG),
}


def library_path() -> Optional[Path]:
    """The shared object, None if it was not built."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    path = Path(__file__).resolve().with_name("_native.so")
    return path if path.is_file() else None


def native_isa() -> Optional[str]:
    """What the library runs on this CPU ("avx512-vnni", "avx2" …); None if it was not built or cannot run here."""
    try:
        return open_library().isa()
    except GradsegError:
        return None


def open_library() -> Library:
    """The loaded library; GradsegError with exit code 3 if there is none, or one of another version."""
    path = library_path()
    if path is None:
        raise GradsegError(f"the native engine was not built on this machine; {BUILD}", 3)
    return _loaded(str(path))


class Library:
    """The C functions of `gradseg_native.h` with their types."""

    def __init__(self, path: str) -> None:
        try:
            self._c = ctypes.CDLL(path)
            found = int(self._c.gs_abi())
            if found != ABI:
                raise GradsegError(
                    f"{path}: the native engine's interface {found}, this version needs {ABI}; {BUILD}", 3
                )
            for name, (result, *arguments) in FUNCTIONS.items():
                function = getattr(self._c, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise GradsegError(f"{path}: cannot be loaded as the native engine ({error}); {BUILD}", 3) from error

    def peak(self, kind: int, rounds: int) -> int:
        """`gs_peak`."""
        return int(self._c.gs_peak(kind, rounds))

    def isa(self, wanted: Optional[str] = None) -> Optional[str]:
        """The instructions that are used; with `wanted` None if this CPU or build lacks those."""
        found = self._c.gs_isa(wanted.encode() if wanted else None)
        return found.decode() if found else None

    def create(self, program: NativeProgram, threads: int, isa: Optional[str] = None) -> NativePlan:
        """A program ready to run; GradsegError with the library's reason if it cannot."""
        tensors = (TensorStruct * len(program.tensors))(*[_struct(TensorStruct, each) for each in program.tensors])
        structs = (OpStruct * len(program.ops))(*[_struct(OpStruct, each) for each in program.ops])
        error = ctypes.create_string_buffer(256)
        wanted = isa.encode() if isa else None
        handle = self._c.gs_create(tensors, len(tensors), structs, len(structs), threads, wanted, error, len(error))
        if not handle:
            reason = error.value.decode("utf-8", "replace")
            raise GradsegError(f"the native engine cannot run this program: {reason or 'no reason given'}", 3)
        return NativePlan(self._c, handle, program)


_loaded = functools.lru_cache(maxsize=None)(Library)


def _struct(kind: Any, of: Any) -> Any:
    """A structure with the fields of a tensor or operator; of arrays their addresses, which stay the caller's."""
    values = [getattr(of, name) for name, _ in kind._fields_]
    return kind(*[value.ctypes.data if isinstance(value, np.ndarray) else value for value in values])


def native_peak(kind: str, threads: int) -> Optional[float]:
    """What the best instructions of this CPU reach on registers alone, multiply-accumulates per second, all threads.

    kind: "fp32" or "int8"; None for any other, and where the library was not built.
    """
    if kind not in PEAK_KINDS or native_isa() is None:
        return None
    peak = open_library().peak

    def rate(_: int) -> float:
        start = time.perf_counter()
        return peak(PEAK_KINDS.index(kind), PEAK_ROUNDS) / (time.perf_counter() - start)

    with ThreadPoolExecutor(threads) as pool:
        return max(sum(pool.map(rate, range(threads))) for _ in range(PEAK_TURNS))


class NativePlan:
    """A `gs_plan`. Not reentrant. Memory is given back by `close`, or when it is collected."""

    def __init__(self, functions: Any, handle: int, program: NativeProgram) -> None:
        self._c, self._handle, self._program = functions, handle, program
        self.nanoseconds: np.ndarray[Any, Any] = np.zeros(len(program.ops), np.int64)

    def load(self, resize: int, frame: int, stride: int) -> bool:
        """Brings a frame in: addresses of a `gs_resize` and of uint8 BGR (H, W, 3) with `stride` bytes a row.

        False if the resize is to another size: nothing was done.
        """
        return int(self._c.gs_load(self._open(), resize, frame, stride)) == 0

    def run(self, frame: Optional[int], stride: int, labels: int, profile: bool = False) -> None:
        """One frame. Addresses of uint8 BGR (h, w, 3) with `stride` bytes a row, and of uint8 labels (h, w).

        frame: None for the one that `load` brought in. profile: what each operator took goes to `nanoseconds`.
        """
        self._c.gs_run(self._open(), frame, stride, labels, self.nanoseconds.ctypes.data if profile else None)

    def spread(self, repeat: int, out: int) -> None:
        """The last frame's labels at another size: addresses of a `gs_repeat` and of its uint8 (H, W)."""
        self._c.gs_spread(self._open(), repeat, out)

    def borrow(self) -> None:
        """Has one thread stand aside until `give_back`; from any thread, also while `run` lasts. See `gs_borrow`."""
        self._c.gs_borrow(self._open())

    def give_back(self) -> None:
        """Ends one `borrow`."""
        self._c.gs_return(self._open())

    def read(self, tensor: int) -> Optional[np.ndarray[Any, Any]]:
        """A tensor of the last frame, (height, width, channels) as stored; None if it is never in memory."""
        known = self._program.tensors[tensor]
        shape = (known.height, known.width, known.channels)
        out: np.ndarray[Any, Any] = np.zeros(shape, np.int16 if known.dtype else np.uint8)
        return out if self._c.gs_read(self._open(), tensor, out.ctypes.data) == 0 else None

    def _open(self) -> int:
        if not self._handle:
            raise RuntimeError("the native engine was closed")
        return self._handle

    def close(self) -> None:
        handle, self._handle = self._handle, 0
        if handle:
            self._c.gs_destroy(handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", 0):
            self.close()
