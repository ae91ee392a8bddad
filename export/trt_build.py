"""ONNX bytes → TensorRT plan, with whichever TensorRT there is. Python 3.8; needs neither torch nor onnx.

`tensorrt` (8.5 and newer) builds for the GPU in this machine. TensorRT-RTX needs no GPU: it builds for those that are
named, by default for Ampere and newer ones (https://docs.nvidia.com/deeplearning/tensorrt-rtx, "CPU-Only AOT").
Networks of TensorRT 11 and RTX are strongly typed: precision comes from the ONNX alone.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from gradseg.models.errors import GradsegError
from gradseg.models.spec import ModelSpec
from gradseg.runtime.trt_library import LIBRARIES, import_first

INSTALL = (
    "on a Jetson it comes with JetPack (make the virtual environment with --system-site-packages); with an NVIDIA GPU: "
    "pip install tensorrt; to build for another machine's GPU: pip install tensorrt-rtx-cu13-libs "
    "tensorrt-rtx-cu13-bindings, then --compute-capability sm89"
)


@dataclass(frozen=True)
class Built:
    """A serialised plan and what it was built with. compute_capability: names such as sm89, empty for the default."""

    plan: bytes
    library: str
    version: str
    compute_capability: Tuple[str, ...]
    flags: Tuple[str, ...]
    seconds: float


def import_tensorrt(cross: bool) -> Tuple[str, Any]:
    """("tensorrt" | "tensorrt_rtx", module); `cross`: a target GPU is named, which only RTX can build for.

    Raises GradsegError with exit code 3 and what to install if there is none that can.
    """
    found = import_first(tuple(reversed(LIBRARIES)) if cross else LIBRARIES)
    if found is None:
        raise GradsegError(f"no TensorRT is importable here, so no plan was built: {INSTALL}", exit_code=3)
    return found


def check_targets(library: Optional[Tuple[str, Any]], targets: Sequence[str]) -> None:
    """GradsegError for a compute capability that cannot be one, or that the library (if there is one) does not know."""
    for target in targets:
        if not re.fullmatch(r"sm\d{2,3}", target):
            raise GradsegError(f"--compute-capability {target}: expected smNN, such as sm75, sm86, sm89 or sm120")
    if library is not None and library[0] == "tensorrt_rtx":
        _known_targets(library[1], targets)


def build_plan(
    onnx_bytes: bytes, spec: ModelSpec, precision: str, targets: Sequence[str], name: str, library: Tuple[str, Any]
) -> Built:
    """Parses and builds.

    Args:
        onnx_bytes: a deployment-form model.
        precision: fp32, fp16 or int8; INT8 is the Q/DQ in the model.
        targets: compute capabilities such as "sm89"; empty for the library's default.
        name: the ONNX file's, for messages.
        library: from `import_tensorrt`.

    Raises GradsegError: exit code 2 for a model that does not parse (with the node and what to change), 3 where
    TensorRT finds no GPU.
    """
    kind, trt = library
    if targets and kind == "tensorrt":
        raise GradsegError(
            f"tensorrt {trt.__version__} builds for this machine's GPU only; leave --compute-capability out, or "
            "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings to build for another GPU",
            exit_code=3,
        )
    begin = time.perf_counter_ns()
    messages = _Messages(trt)
    try:
        builder = trt.Builder(messages.logger)
    except (TypeError, RuntimeError) as error:
        raise GradsegError(
            f"{kind} {trt.__version__} cannot start ({messages.text() or error}): it needs an NVIDIA GPU and driver"
            + ("" if targets else "; name the GPU to build for with --compute-capability sm89"),
            exit_code=3,
        ) from error
    creation = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if creation is None else 1 << int(creation))
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse(onnx_bytes):
        raise GradsegError(f"{name}: {kind} {trt.__version__} cannot parse it: {parser_errors(parser)}")
    _check_borders(network, trt, spec, name)
    config = builder.create_builder_config()
    flags = _set_flags(trt, config, precision, kind)
    _set_targets(trt, config, targets)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        what = messages.text() or "no reason given"
        no_gpu = not targets and ("CUDA" in what or "device" in what.lower() or "driver" in what.lower())
        hint = "; name the GPU to build for with --compute-capability sm89" if no_gpu and kind != "tensorrt" else ""
        raise GradsegError(
            f"{name}: {kind} {trt.__version__} cannot build it: {what}{hint}", exit_code=3 if no_gpu else 2
        )
    seconds = (time.perf_counter_ns() - begin) / 1e9
    return Built(bytes(plan), kind, str(trt.__version__), tuple(targets), flags, seconds)


class _Messages:
    """A TensorRT logger that keeps the errors for our own one-line message."""

    def __init__(self, trt: Any) -> None:
        kept: List[str] = []

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    kept.append(" ".join(str(text).split())[:300])

        self.kept, self.logger = kept, Logger()

    def text(self) -> str:
        return "; ".join(dict.fromkeys(self.kept[-3:]))


def parser_errors(parser: Any) -> str:
    """The parser's errors in one line: node, operator, reason, and what to change where that is known."""
    parts = []
    for index in range(min(int(parser.num_errors), 3)):
        error = parser.get_error(index)
        node = _asked(error, "node_name") or f"number {_asked(error, 'node')}"
        operator, reason = _asked(error, "node_operator"), " ".join(str(_asked(error, "desc")).split())[:240]
        parts.append(f"node {node}{f' ({operator})' if operator else ''}: {reason}{_advice(str(operator), reason)}")
    return "; ".join(parts) or "no reason given; is it an ONNX model?"


def _asked(error: Any, name: str) -> Any:
    method = getattr(error, name, None)  # older versions know fewer of these
    return method() if callable(method) else ""


def _advice(operator: str, reason: str) -> str:
    text = f"{operator} {reason}".lower()
    if "zero point" in text or "zero_point" in text or ("uint8" in text and "quantize" in text):
        return ". TensorRT takes symmetric int8 only: quantise again with export/to_trt.py CKPT --precision int8"
    if "uint8" in text or "cast" in text:
        return ". TensorRT takes uint8 only at a Cast on the border: export again with export/to_onnx.py CKPT"
    if "plugin" in text or "no importer" in text or "unsupported" in text:
        return ". Replace this operator, or export again with export/to_onnx.py at opset 17"
    return ""


def _check_borders(network: Any, trt: Any, spec: ModelSpec, name: str) -> None:
    height, width = spec.input_hw
    borders = (
        ("input", network.num_inputs, network.get_input(0), (1, height, width, 3)),
        ("output", network.num_outputs, network.get_output(0), (1, height, width)),
    )
    for what, count, tensor, shape in borders:
        if count != 1 or tuple(tensor.shape) != shape or tensor.dtype != trt.DataType.UINT8:
            raise GradsegError(
                f"{name}: {what} is {tensor.dtype} {tuple(tensor.shape)}; expected uint8 {shape}, the deployment form: "
                "export it with export/to_onnx.py CKPT (without --logits)"
            )


def _set_flags(trt: Any, config: Any, precision: str, kind: str) -> Tuple[str, ...]:
    """Weakly typed TensorRT (8 to 10) is told which precisions it may use; INT8 networks may use FP16 for the rest."""
    wanted: Dict[str, Tuple[str, ...]] = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}
    if strongly_typed(kind, trt):
        return ()
    for flag in wanted[precision]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    return wanted[precision]


def strongly_typed(kind: str, trt: Any) -> bool:
    """Whether precision comes from the ONNX alone: TensorRT-RTX, and TensorRT from 11 on."""
    return kind == "tensorrt_rtx" or not hasattr(trt.BuilderFlag, "FP16")


def _known_targets(trt: Any, targets: Sequence[str]) -> List[Any]:
    known = {name.lower(): value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    for target in targets:
        if target not in known:
            raise GradsegError(f"--compute-capability {target}: TensorRT-RTX builds for {', '.join(sorted(known))}")
    return [known[target] for target in targets]


def _set_targets(trt: Any, config: Any, targets: Sequence[str]) -> None:
    if not targets:
        return
    values = _known_targets(trt, targets)
    config.num_compute_capabilities = len(values)
    for index, value in enumerate(values):
        config.set_compute_capability(value, index)
