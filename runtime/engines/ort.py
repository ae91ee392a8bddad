"""ONNX Runtime engine: our deployment form, the logits form, and ONNX files of other origin with a spec beside them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np

from gradseg.base.conditions import usable_cores
from gradseg.base.errors import GradsegError
from gradseg.base.packages import install
from gradseg.commands import command
from gradseg.models.metadata import PARTNER, PRECISION, SPEC, borders, calibration_of, metadata_of_bytes
from gradseg.models.spec import ModelSpec
from gradseg.runtime.cuda.gpu import need_gpu
from gradseg.runtime.engines.protocol import DESCRIBED, check_batch, read_sidecar
from gradseg.runtime.preprocess import normalised_chw

DTYPES: Dict[str, Any] = {
    "tensor(uint8)": np.uint8,
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class OrtEngine:
    """An .onnx file through ONNX Runtime, on the CPU or one of its GPU providers. See `engines.protocol.Engine`.

    Input and output live in buffers that are bound once, so that a frame allocates nothing on this side.

    Args:
        path: the file. Deployment form: uint8 BGR (batch, h, w, 3) → uint8 (batch, h, w), frame size and batch as its
            metadata says. Logits form: float32 (1, 3, h, w) → float32 (1, C, h, w), or class indices of an integer
            type.
        threads: of ONNX Runtime; None: one for each core that this process may use.
        spec: wins over the file's own; needed for a file that carries none.
        provider: "cpu", "cuda" or "tensorrt".
    """

    def __init__(
        self, path: Path, threads: Optional[int] = None, spec: Optional[ModelSpec] = None, provider: str = "cpu"
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            how = install("ort", "onnxruntime") if provider == "cpu" else "pip install onnxruntime-gpu"
            raise GradsegError(f"{path} needs ONNX Runtime, and this machine has none: {how}", 3) from error
        self.name, self.device, self.provider = str(path), "CPU", provider
        self.backend = f"onnxruntime {onnxruntime.__version__}"
        cores = usable_cores() if threads is None else threads
        self.threads: Optional[int] = cores
        metadata = _metadata(path)
        self.precision = metadata.get(PRECISION, "fp32")
        providers = providers_for(onnxruntime, provider, path, self.precision)
        if provider != "cpu":
            self.device = need_gpu(f"{path}: --provider {provider}").name
            self.backend, self.threads = f"{self.backend} {WORDS[provider]}", None
        self._session = _open_session(onnxruntime, path, cores, providers, PARTNER in metadata)
        check_running(self._session, provider, path)
        self.calibration: Optional[Dict[str, Any]] = calibration_of(metadata)
        self.spec = spec or _spec_of(path, metadata)
        self.batch, self.frame_hw = borders(metadata, self.spec, path)
        self._bind(path)

    def _bind(self, path: Path) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise GradsegError(f"{path}: {len(inputs)} inputs and {len(outputs)} outputs; one of each is expected")
        (height, width), batch = self.frame_hw, self.batch
        self._takes_frame = inputs[0].type == "tensor(uint8)"
        want: List[int] = [batch, height, width, 3] if self._takes_frame else [batch, 3, height, width]
        if inputs[0].type not in ("tensor(uint8)", "tensor(float)") or not _fits(inputs[0].shape, want):
            raise GradsegError(
                f"{path}: input {inputs[0].name!r} is {inputs[0].type} {inputs[0].shape}; expected uint8 "
                f"({batch}, {height}, {width}, 3) or float ({batch}, 3, {height}, {width}) as its spec "
                "says; export it again at that size"
            )
        shape = self._output_shape(path, outputs[0])
        self._input: np.ndarray[Any, Any] = np.zeros(want, DTYPES[inputs[0].type])
        self._output: np.ndarray[Any, Any] = np.zeros(shape, DTYPES[outputs[0].type])
        size = (batch, height, width)
        direct = self._output.dtype == np.uint8
        self._labels = self._output.reshape(size) if direct else np.zeros(size, np.uint8)
        self._index: np.ndarray[Any, Any] = np.zeros(size, np.intp)
        self._input_name, self._bound = inputs[0].name, 0
        self._binding = self._session.io_binding()
        self._bind_input(self._input)
        self._binding.bind_output(
            outputs[0].name, "cpu", 0, self._output.dtype.type, list(self._output.shape), self._output.ctypes.data
        )

    def _output_shape(self, path: Path, output: Any) -> Tuple[int, ...]:
        (height, width), batch = self.frame_hw, self.batch
        labels: List[Tuple[int, ...]] = [(batch, height, width), (batch, 1, height, width)]
        logits = (batch, self.spec.num_classes, height, width)
        self._gives_logits = output.type == "tensor(float)"
        for shape in [logits] if self._gives_logits else labels:
            if output.type in DTYPES and _fits(output.shape, list(shape)):
                return shape
        raise GradsegError(
            f"{path}: output {output.name!r} is {output.type} {output.shape}; expected labels {labels[0]} of an "
            f"integer type or float logits {logits} for the {self.spec.num_classes} classes of its spec; others are "
            f"converted by {command('export/to_ort.py', path)}"
        )

    def _bind_input(self, array: np.ndarray[Any, Any]) -> None:
        """Points the session at `array`; nothing to do if it already is."""
        if array.ctypes.data != self._bound:
            self._binding.bind_input(self._input_name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)
            self._bound, self._held = array.ctypes.data, array

    def infer(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """uint8 BGR (batch, h, w, 3) → uint8 labels (batch, h, w), valid until the next call."""
        check_batch(batch, self.batch, self.frame_hw)
        if self._takes_frame:
            self._bind_input(batch)
        else:
            normalised_chw(batch, self.spec, out=self._input)
        self._session.run_with_iobinding(self._binding)
        if self._gives_logits:
            np.argmax(self._output, axis=1, out=self._index)
            np.copyto(self._labels, self._index, casting="unsafe")
        elif self._labels.base is not self._output and self._labels is not self._output:
            np.copyto(self._labels, self._output.reshape(self._labels.shape), casting="unsafe")
        return self._labels

    def close(self) -> None:
        """Drops the session and its memory."""
        self._binding = self._session = None


def session_options(onnxruntime: Any, threads: Optional[int]) -> Any:
    """Options that every session of ours has; `threads` None lets ONNX Runtime choose."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # failures come as exceptions; the log would only repeat them
    if threads is not None:
        options.intra_op_num_threads = threads
    # between frames the cores belong to capture, sink and other engines: the workers may spin within a run only
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _metadata(path: Path) -> Dict[str, str]:
    """Before the session: its providers want to know the precision. {} for what is no model, which the session says."""
    try:
        return metadata_of_bytes(path.read_bytes())
    except (ValueError, UnicodeDecodeError):
        return {}


def _open_session(onnxruntime: Any, path: Path, threads: int, providers: List[Any], half_scales: bool) -> Any:
    options = session_options(onnxruntime, threads)
    if half_scales:  # INT8 for TensorRT: with float16 scales, ONNX Runtime's INT8 kernels round the biases wrongly
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:  # without fallback: it would go on with the CPU, and print that to stdout
        return onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions have no common public base class
        if isinstance(error, (MemoryError, TypeError)):
            raise
        reason = str(error).replace(str(path), "").strip()[:200]
        raise GradsegError(
            f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: truncated, not an ONNX model, or made "
            f"for a newer version ({reason})"
        ) from error


def _spec_of(path: Path, metadata: Dict[str, str]) -> ModelSpec:
    if SPEC in metadata:
        return ModelSpec.from_json(metadata[SPEC], f"{path}: its gradseg.spec")
    beside = read_sidecar(path).get("spec")
    if beside is not None:
        return ModelSpec.from_dict(beside, f"{path}.json")
    raise GradsegError(
        f"{path}: an ONNX file without GradSeg's metadata (no gradseg.spec); convert it: "
        f"{command('export/to_ort.py', path, *DESCRIBED, '-o', 'OUT.onnx')}; "
        f'or describe it in {path.name}.json beside it: {{"spec": {{"arch": name, "classes": [names], "palette": '
        '[[r, g, b], …], "input_hw": [h, w], "mean": […], "std": […], "color_order": "rgb", "blocks": ""}} '
        "(run_video.py takes it with --spec FILE, too)"
    )


def _fits(declared: Any, wanted: List[int]) -> bool:
    """Whether a declared shape, in which names and None stand for free dimensions, admits `wanted`."""
    return len(declared) == len(wanted) and all(not isinstance(d, int) or d == w for d, w in zip(declared, wanted))


NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
WORDS = {"cuda": "CUDA", "tensorrt": "TensorRT"}
TF32_SINCE = (1, 18)  # the CUDA provider knows "use_tf32" since this version, and refuses options it does not know

Provider = Union[str, Tuple[str, Dict[str, str]]]


def providers_for(onnxruntime: Any, provider: str, path: Path, precision: str) -> List[Provider]:
    """What to open a session with: the provider asked for, and behind it those for operators that it does not have.

    precision: of the file. With "tensorrt", FP16 kernels are allowed for fp16 and int8 files, INT8 kernels for int8
    ones, and the engines that it builds, which takes minutes, are kept in the folder {path}.tensorrt beside the file.

    Raises GradsegError (exit code 3) if this ONNX Runtime does not have the provider.
    """
    if provider == "cpu":
        return [NAMES["cpu"]]
    available = list(onnxruntime.get_available_providers())
    if NAMES[provider] not in available:
        raise GradsegError(
            f"{path}: --provider {provider} needs {NAMES[provider]}; this ONNX Runtime {onnxruntime.__version__} has "
            f"{', '.join(available)}. pip uninstall onnxruntime, then pip install onnxruntime-gpu; on a Jetson "
            "NVIDIA's onnxruntime-gpu wheel for its JetPack",
            3,
        )
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21: finds the CUDA libraries that pip installed
        # `check_running` says what is missing
        with contextlib.suppress(RuntimeError), contextlib.redirect_stdout(None):
            onnxruntime.preload_dlls()
    options = {"device_id": "0"}
    version = tuple(int(part) for part in str(onnxruntime.__version__).split(".")[:2])
    cuda = {**options, **({"use_tf32": "0"} if version >= TF32_SINCE else {})}  # fp32 means fp32
    if provider == "cuda":
        return [(NAMES["cuda"], cuda), NAMES["cpu"]]
    cache = path.with_name(f"{path.name}.tensorrt")
    cache.mkdir(exist_ok=True)
    options.update(trt_engine_cache_enable="1", trt_engine_cache_path=str(cache))
    options.update(trt_fp16_enable="1" if precision in ("fp16", "int8") else "0")
    options.update(trt_int8_enable="1" if precision == "int8" else "0")
    return [(NAMES["tensorrt"], options), (NAMES["cuda"], cuda), NAMES["cpu"]]


def check_running(session: Any, provider: str, path: Path) -> None:
    """GradsegError (exit code 3) if the session does without the provider that was asked for."""
    running = list(session.get_providers())
    if NAMES[provider] not in running:
        raise GradsegError(
            f"{path}: --provider {provider}: {NAMES[provider]} did not start, ONNX Runtime would go on with "
            f"{', '.join(running)}. Its libraries (CUDA, cuDNN{', TensorRT' if provider == 'tensorrt' else ''}) must "
            "be there in the versions that this onnxruntime-gpu was built with: see https://onnxruntime.ai/docs/"
            "execution-providers; or leave --provider out",
            3,
        )
