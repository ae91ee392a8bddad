"""OpenVINO engine: the IR files that export/to_openvino.py writes, on the CPU."""

from __future__ import annotations

import xml.etree.ElementTree as Tree
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np

from gradseg.base.conditions import usable_cores
from gradseg.base.errors import GradsegError
from gradseg.base.files import require_file, sha256_of
from gradseg.base.packages import need
from gradseg.commands import command
from gradseg.models.metadata import PRECISION, SPEC, borders, calibration_of
from gradseg.models.spec import ModelSpec
from gradseg.runtime.engines.protocol import DESCRIBED, check_batch


class OvEngine:
    """An .xml through OpenVINO on the CPU. See `engines.protocol.Engine`.

    The frame is read where it lies and the labels are written into one array that is kept: a frame allocates nothing
    here and is not copied. precision: "int8" as the artefact says, else the float type that OpenVINO really computes
    in, which is fp32 where the CPU lacks the one that the file asks for.

    Args:
        path: the .xml; its .bin stands beside it. uint8 BGR (batch, h, w, 3) → uint8 labels (batch, h, w).
        threads: of OpenVINO; None: one for each core that this process may use.
        spec: wins over the file's own; needed for a file that carries none.
        pinning: whether threads stay on their cores; None: as the file says, else OpenVINO's choice.

    Raises:
        GradsegError: no OpenVINO here (exit code 3); a file that is truncated, not whole, or of another form.
    """

    def __init__(
        self,
        path: Path,
        threads: Optional[int] = None,
        spec: Optional[ModelSpec] = None,
        pinning: Optional[bool] = None,
    ) -> None:
        need(path, "openvino", "openvino")
        import openvino

        metadata = read_ir_metadata(path)
        self.spec = spec or _spec_of(path, metadata)
        check_weights(path, metadata)
        self.batch, self.frame_hw = borders(metadata, self.spec, path)
        self.name, self.device = str(path), "CPU"
        self.backend = f"openvino {openvino.__version__.partition('-')[0]}"
        cores = usable_cores() if threads is None else threads
        self.threads: Optional[int] = cores
        self.calibration: Optional[Dict[str, Any]] = calibration_of(metadata)
        compiled = _compiled(openvino, path, _settings(path, metadata, cores, pinning))
        self.precision = metadata.get(PRECISION, "fp32")
        if self.precision != "int8":
            executed = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            self.precision = HINTS.get(executed, "fp32")
        self._openvino = openvino
        self._request: Any = compiled.create_infer_request()
        self._bind(path, compiled)

    def _bind(self, path: Path, compiled: Any) -> None:
        frame = [self.batch, *self.frame_hw, 3]
        found = [(str(port.get_element_type().get_type_name()), _shape(port)) for port in compiled.inputs]
        given = [(str(port.get_element_type().get_type_name()), _shape(port)) for port in compiled.outputs]
        if found != [("u8", frame)] or given != [("u8", frame[:3])]:
            raise GradsegError(
                f"{path}: takes {_words(found)} and gives {_words(given)}; expected one u8 {frame} (BGR) and one u8 "
                f"{frame[:3]}, as its spec says and export/to_openvino.py writes; convert the ONNX file that it came "
                "from"
            )
        self._labels: np.ndarray[Any, Any] = np.zeros(frame[:3], np.uint8)
        self._bound = 0
        self._request.set_output_tensor(self._openvino.Tensor(self._labels, shared_memory=True))
        self._bind_input(np.zeros(frame, np.uint8))

    def _bind_input(self, array: np.ndarray[Any, Any]) -> None:
        """Points the request at `array`; nothing to do if it already is."""
        if array.ctypes.data != self._bound:
            self._request.set_input_tensor(self._openvino.Tensor(array, shared_memory=True))
            self._bound, self._held = array.ctypes.data, array

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 BGR (batch, h, w, 3) → uint8 labels (batch, h, w), valid until the next call."""
        check_batch(batch, self.batch, self.frame_hw)
        self._bind_input(batch)
        self._request.infer(share_outputs=True)  # without, Python copies the outputs once more
        return self._labels

    def close(self) -> None:
        """Drops the network and its memory."""
        self._request = None


def _settings(path: Path, metadata: Dict[str, str], threads: int, pinning: Optional[bool]) -> Dict[str, Any]:
    hint, pin = metadata.get(HINT, "f32"), metadata.get(PINNING)
    if hint not in HINTS or pin not in (None, "yes", "no"):
        raise GradsegError(f"{path}: {HINT} is {hint!r} and {PINNING} {pin!r}, which this version does not know")
    settings: Dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": hint,
    }
    if pinning is not None or pin is not None:
        settings["ENABLE_CPU_PINNING"] = pin == "yes" if pinning is None else pinning
    return settings


def _compiled(openvino: Any, path: Path, settings: Dict[str, Any]) -> Any:
    try:
        return openvino.Core().compile_model(str(path), "CPU", settings)
    except RuntimeError as error:  # the only class that OpenVINO raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Exception from" not in line]
        raise GradsegError(
            f"{path}: OpenVINO {openvino.__version__.partition('-')[0]} cannot load it: damaged, or made for a newer "
            f"version ({' '.join(lines)[:200]})"
        ) from error


def _spec_of(path: Path, metadata: Dict[str, str]) -> ModelSpec:
    if SPEC in metadata:
        return ModelSpec.from_json(metadata[SPEC], f"{path}: its {SPEC}")
    raise GradsegError(
        f"{path}: an OpenVINO IR without GradSeg's metadata (no {SPEC}); convert the ONNX file that it came from: "
        f"{command('export/to_openvino.py', 'MODEL.onnx', *DESCRIBED, '-o', 'OUT.xml')}"
    )


def _shape(port: Any) -> List[int]:
    """A port's dimensions, -1 for an open one."""
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return [-1]
    return [-1 if dimension.is_dynamic else int(dimension.get_length()) for dimension in shape]


def _words(ports: List[Tuple[str, List[int]]]) -> str:
    return ", ".join(f"{kind} {shape}" for kind, shape in ports) or "nothing"


SECTION, PREFIX = "gradseg", "gradseg."
HINT, PINNING = "gradseg.hint", "gradseg.pinning"
WEIGHTS_BYTES, WEIGHTS_SHA256 = "gradseg.weights_bytes", "gradseg.weights_sha256"
HINTS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}  # OpenVINO's word for a float type → GradSeg's


def again(path: Path) -> str:
    return f"make it again: {command('export/to_openvino.py', 'MODEL', '-o', path.name)}"


def weights_of(path: Path) -> Path:
    """The .bin that belongs to an .xml."""
    return path.with_suffix(".bin")


def read_ir_metadata(path: Union[str, Path]) -> Dict[str, str]:
    """GradSeg's metadata in an .xml, with the keys of `gradseg.models.metadata`; {} in one of other origin.

    GradsegError if the file is missing, truncated or no IR.
    """
    found = require_file(path, "an OpenVINO IR (.xml)")
    try:
        root = Tree.parse(str(found)).getroot()
    except (Tree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise GradsegError(
            f"{found}: truncated or not an OpenVINO IR ({error}); copy it here again with its .bin, or " + again(found)
        ) from error
    if root.tag != "net" or root.find("layers") is None:
        raise GradsegError(f"{found}: is XML, but not an OpenVINO IR (its root is <{root.tag}>)")
    section = root.find(f"rt_info/{SECTION}")
    return {} if section is None else {PREFIX + entry.tag: entry.get("value", "") for entry in section}


def check_weights(path: Path, metadata: Mapping[str, str]) -> None:
    """Raises GradsegError unless the .bin beside `path` is there and the very one that `metadata` names."""
    weights = weights_of(path)
    if not weights.is_file():
        raise GradsegError(f"{path}: its weights, {weights.name}, are not beside it; copy both files")
    mended = f"copy both files here again, or {again(path)}"
    size, wanted = weights.stat().st_size, metadata.get(WEIGHTS_BYTES)
    if wanted is not None and str(size) != wanted:
        raise GradsegError(f"{weights}: {size} bytes, but {path.name} was written with {wanted}; {mended}")
    digest = metadata.get(WEIGHTS_SHA256)
    if digest is not None and sha256_of(weights) != digest:
        raise GradsegError(f"{weights}: is damaged or of another network than {path.name} (SHA-256); {mended}")
